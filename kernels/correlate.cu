// Correlation of images (n, z, y, x) with a few taps, where these lie inside: smlmcore/renderer/conv.py.
#include "reduce.cuh"

// A thread has a pixel of the result; neighbouring threads read neighbouring pixels, the taps come from the cache.
extern "C" __global__ void correlate(const REAL* __restrict__ image, const REAL* __restrict__ taps,
                                     REAL* __restrict__ out, int n, int planes, int rows, int columns, int p, int q,
                                     int r, int c, int h, int w) {
    const size_t size = (size_t)n * c * h * w, step = (size_t)gridDim.x * blockDim.x;
    for (size_t o = (size_t)blockIdx.x * blockDim.x + threadIdx.x; o < size; o += step) {
        const int x = o % w, y = o / w % h, z = o / w / h % c;
        const REAL* corner = image + ((o / w / h / c * planes + z) * rows + y) * columns + x;
        const REAL* tap = taps;
        REAL sum = 0;
        for (int a = 0; a < p; a++)
            for (int b = 0; b < q; b++)
                for (int e = 0; e < r; e++) sum += *tap++ * corner[((size_t)a * rows + b) * columns + e];
        out[o] = sum;
    }
}

// The gradient to the taps: a block has a tap and adds up over all pixels, in a fixed order.
extern "C" __global__ void correlate_taps(const REAL* __restrict__ image, const REAL* __restrict__ gradient,
                                          REAL* __restrict__ out, int n, int planes, int rows, int columns, int c,
                                          int h, int w, int p, int q, int r) {
    __shared__ REAL scratch[32];
    const size_t size = (size_t)n * c * h * w;
    for (int k = blockIdx.x; k < p * q * r; k += gridDim.x) {
        const size_t shift = ((size_t)(k / (q * r)) * rows + k / r % q) * columns + k % r;
        REAL sum = 0;
        for (size_t o = threadIdx.x; o < size; o += blockDim.x) {
            const int x = o % w, y = o / w % h, z = o / w / h % c;
            sum += gradient[o] * image[((o / w / h / c * planes + z) * rows + y) * columns + x + shift];
        }
        sum = block_sum(sum, scratch);
        if (threadIdx.x == 0) out[k] = sum;
    }
}
