// The end of a convolution by matrix products: leave the border out, add the bias, apply the activation.

#include "activation.cuh"

typedef long long index_t;

extern "C" __global__ void conv_finish(const REAL* __restrict__ sums, const REAL* __restrict__ bias, int activation,
                                       REAL* __restrict__ out, REAL* __restrict__ slope, int n, int f, int h, int w, int d,
                                       int o, int p, int q, int s) {
    const index_t size = index_t(n) * o * p * q * d;
    for (index_t t = index_t(blockIdx.x) * blockDim.x + threadIdx.x; t < size; t += index_t(gridDim.x) * blockDim.x) {
        const index_t pixel = t / d, plane = pixel / q / p;
        const index_t from = ((plane / o * f + plane % o) * h + pixel / q % p) * w + pixel % q;
        REAL value, derivative;
        activate(activation, sums[from * d + t % d] + bias[t % d], value, derivative);
        out[t] = value;
        if (s) slope[t] = derivative;
    }
}
