// Direct convolution, channels-last, with z planes (one for images):
//   out[o,p,q,d] = f(bias[d] + sum over j,k,l,c of x[o*stride+j-pad, p*stride+k-pad, q*stride+l-pad, c] * weight[j,k,l,c,d]);
// along an axis where the filter is 1 long there is no border.  f is an activation; its derivative goes to `slope`, if that
// has room (s > 0).  One thread per output element; neighbouring threads differ in the last channel, so that weights and
// results are read and written side by side, and the pixel is the same for a warp.

#include "activation.cuh"

typedef long long index_t;  // batches of large images have more than 2^31 elements

__device__ __forceinline__ int border(int pad, int taps) { return taps > 1 ? pad : 0; }

extern "C" __global__ void conv(const REAL* __restrict__ x, const REAL* __restrict__ weight, const REAL* __restrict__ bias,
                                int stride, int pad, int activation, REAL* __restrict__ out, REAL* __restrict__ slope,
                                int n, int f, int h, int w, int c, int j, int k, int l, int d, int o, int p, int q, int s) {
    const index_t size = index_t(n) * o * p * q * d;
    for (index_t t = index_t(blockIdx.x) * blockDim.x + threadIdx.x; t < size; t += index_t(gridDim.x) * blockDim.x) {
        const int to = int(t % d);
        const index_t pixel = t / d, plane = pixel / q / p, image = plane / o;
        const int front = int(plane % o) * stride - border(pad, j);
        const int left = int(pixel % q) * stride - border(pad, l), top = int(pixel / q % p) * stride - border(pad, k);
        REAL sum = bias[to];
        for (int a = max(0, -front); a < j && front + a < f; a++)
            for (int b = max(0, -top); b < k && top + b < h; b++)
                for (int e = max(0, -left); e < l && left + e < w; e++) {
                    const REAL* from = x + (((image * f + front + a) * h + top + b) * w + left + e) * c;
                    const REAL* tap = weight + index_t((a * k + b) * l + e) * c * d + to;
                    for (int m = 0; m < c; m++) sum += from[m] * tap[index_t(m) * d];
                }
        REAL value, derivative;
        activate(activation, sum, value, derivative);
        out[t] = value;
        if (s) slope[t] = derivative;
    }
}

// The pixel (z, y, x) receives the gradient of output row p through the filter row k = y + pad - stride*p, and so on.
extern "C" __global__ void conv_input_gradient(const REAL* __restrict__ gradient, const REAL* __restrict__ slope,
                                               const REAL* __restrict__ weight, int stride, int pad, REAL* __restrict__ out,
                                               int n, int o, int p, int q, int d, int s, int j, int k, int l, int c,
                                               int f, int h, int w) {
    const index_t size = index_t(n) * f * h * w * c;
    for (index_t t = index_t(blockIdx.x) * blockDim.x + threadIdx.x; t < size; t += index_t(gridDim.x) * blockDim.x) {
        const int to = int(t % c);
        const index_t pixel = t / c, plane = pixel / w / h, image = plane / f;
        const int behind = int(plane % f) + border(pad, j);
        const int right = int(pixel % w) + border(pad, l), below = int(pixel / w % h) + border(pad, k);
        REAL sum = REAL(0);
        for (int a = behind % stride; a < j && a <= behind; a += stride) {
            const int depth = (behind - a) / stride;
            if (depth >= o) continue;
            for (int b = below % stride; b < k && b <= below; b += stride) {
                const int row = (below - b) / stride;
                if (row >= p) continue;
                for (int e = right % stride; e < l && e <= right; e += stride) {
                    const int column = (right - e) / stride;
                    if (column >= q) continue;
                    const index_t from = (((image * o + depth) * p + row) * q + column) * d;
                    const REAL* tap = weight + (index_t((a * k + b) * l + e) * c + to) * d;
                    for (int m = 0; m < d; m++) sum += (s ? gradient[from + m] * slope[from + m] : gradient[from + m]) * tap[m];
                }
            }
        }
        out[t] = sum;
    }
}

// One block per (tap, input channel) and 32 output channels, a lane each; its warps share the pixels, and their sums are
// added in a fixed order: the same bits at every run.  The block after the last tap is the bias, with 1 for the pixel.
extern "C" __global__ void conv_weight_gradient(const REAL* __restrict__ x, const REAL* __restrict__ gradient,
                                                const REAL* __restrict__ slope, int stride, int pad,
                                                REAL* __restrict__ weight, REAL* __restrict__ bias,
                                                int n, int f, int h, int w, int c, int o, int p, int q, int d, int s,
                                                int j, int k, int l) {
    __shared__ REAL sums[32][33];  // [warp][lane]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int tiles = (d + 31) / 32, taps = j * k * l * c;
    const index_t pixels = index_t(n) * o * p * q;
    for (index_t block = blockIdx.x; block < index_t(taps + 1) * tiles; block += gridDim.x) {
        const int tap = int(block / tiles), to = int(block % tiles) * 32 + lane, from = tap % c;
        const int front = tap / c / l / k - border(pad, j);
        const int top = tap / c / l % k - border(pad, k), left = tap / c % l - border(pad, l);
        REAL sum = REAL(0);
        if (to < d)
            for (index_t pixel = warp; pixel < pixels; pixel += warps) {
                const REAL g = s ? gradient[pixel * d + to] * slope[pixel * d + to] : gradient[pixel * d + to];
                const index_t plane = pixel / q / p;
                const int depth = int(plane % o) * stride + front;
                const int row = int(pixel / q % p) * stride + top, column = int(pixel % q) * stride + left;
                if (tap == taps) sum += g;
                else if (depth >= 0 && depth < f && row >= 0 && row < h && column >= 0 && column < w)
                    sum += g * x[(((plane / o * f + depth) * h + row) * w + column) * c + from];
            }
        sums[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && to < d) {
            for (int i = 1; i < warps; i++) sum += sums[i][lane];
            if (tap == taps) bias[to] = sum;
            else weight[index_t(tap) * d + to] = sum;
        }
        __syncthreads();
    }
}
