// Activations: y = f(x), and the derivative if `slope` has room for it (s = n, else 0).

#include "activation.cuh"

extern "C" __global__ void activation(const REAL* __restrict__ x, int activation, REAL* __restrict__ y,
                                      REAL* __restrict__ slope, int n, int s) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        REAL value, derivative;
        activate(activation, x[i], value, derivative);
        y[i] = value;
        if (s) slope[i] = derivative;
    }
}
