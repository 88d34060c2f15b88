// The astigmatic Gaussian: smlmcore/psf/astigmatic.py holds the formula and the reference.
// One block per image (grid-stride); the axes' tables lie in shared memory.  H, W: compile-time size of the image.
#include "astigmatic.cuh"
#include "gaussian2d.cuh"

extern "C" __global__ void astigmatic_partials(const REAL* __restrict__ parameters,
                                               const REAL* __restrict__ calibration, REAL* __restrict__ value,
                                               REAL* __restrict__ partials, int n) {
    __shared__ Axis along_x[W], along_y[H];
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const REAL* t = parameters + 5 * (size_t)i;
        const REAL photons = t[3], background = t[4];
        const Width x = astigmatic_width(t[2], calibration), y = astigmatic_width(t[2], calibration + 5);
        gaussian_tables<H, W>(t[0], t[1], x.sigma, y.sigma, along_x, along_y);
        for (int p = threadIdx.x; p < H * W; p += blockDim.x) {
            const Axis a = along_x[p % W], b = along_y[p / W];
            REAL* d = partials + (size_t)i * 5 * H * W + p;
            separable_pixel(a, b, photons, background, value + (size_t)i * H * W + p, d, d + H * W, d + 3 * H * W,
                            d + 4 * H * W);
            d[2 * H * W] = photons * (x.d_z * b.value * a.d_sigma + y.d_z * b.d_sigma * a.value);
        }
        __syncthreads();
    }
}
