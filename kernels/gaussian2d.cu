// Pixel-integrated 2-D Gaussians, a sigma for each axis: smlmcore/psf/gaussian.py holds the formula and the reference.
// One block per image (grid-stride); the axes' tables lie in shared memory.  H, W: compile-time size of the image.
#include "gaussian2d.cuh"
#include "reduce.cuh"

extern "C" __global__ void gaussian2d_render(const REAL* __restrict__ x, const REAL* __restrict__ y,
                                             const REAL* __restrict__ photons, const REAL* __restrict__ sigma_x,
                                             const REAL* __restrict__ sigma_y, const REAL* __restrict__ background,
                                             REAL* __restrict__ image, int n, int emitters) {
    __shared__ Axis along_x[W], along_y[H];
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        REAL* out = image + (size_t)i * H * W;
        for (int p = threadIdx.x; p < H * W; p += blockDim.x) out[p] = background[i];
        for (int k = i * emitters; k < (i + 1) * emitters; k++) {
            gaussian_tables<H, W>(x[k], y[k], sigma_x[k], sigma_y[k], along_x, along_y);
            for (int p = threadIdx.x; p < H * W; p += blockDim.x)
                out[p] += photons[k] * along_y[p / W].value * along_x[p % W].value;
            __syncthreads();
        }
    }
}

extern "C" __global__ void gaussian2d_render_vjp(const REAL* __restrict__ x, const REAL* __restrict__ y,
                                                 const REAL* __restrict__ photons, const REAL* __restrict__ sigma_x,
                                                 const REAL* __restrict__ sigma_y, const REAL* __restrict__ gradient,
                                                 REAL* __restrict__ gx, REAL* __restrict__ gy,
                                                 REAL* __restrict__ gphotons, REAL* __restrict__ gsigma_x,
                                                 REAL* __restrict__ gsigma_y, REAL* __restrict__ gbackground, int n,
                                                 int emitters) {
    __shared__ Axis along_x[W], along_y[H];
    __shared__ REAL scratch[32];
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const REAL* g = gradient + (size_t)i * H * W;
        REAL total = 0;
        for (int p = threadIdx.x; p < H * W; p += blockDim.x) total += g[p];
        total = block_sum(total, scratch);
        if (threadIdx.x == 0) gbackground[i] = total;
        for (int k = i * emitters; k < (i + 1) * emitters; k++) {
            gaussian_tables<H, W>(x[k], y[k], sigma_x[k], sigma_y[k], along_x, along_y);
            REAL sx = 0, sy = 0, sn = 0, ssx = 0, ssy = 0;
            for (int p = threadIdx.x; p < H * W; p += blockDim.x) {
                const Axis a = along_x[p % W], b = along_y[p / W];
                sx += g[p] * b.value * a.d_centre;
                sy += g[p] * b.d_centre * a.value;
                sn += g[p] * b.value * a.value;
                ssx += g[p] * b.value * a.d_sigma;
                ssy += g[p] * b.d_sigma * a.value;
            }
            sx = block_sum(sx, scratch);
            sy = block_sum(sy, scratch);
            sn = block_sum(sn, scratch);
            ssx = block_sum(ssx, scratch);
            ssy = block_sum(ssy, scratch);
            if (threadIdx.x == 0) {
                gx[k] = photons[k] * sx;
                gy[k] = photons[k] * sy;
                gphotons[k] = sn;
                gsigma_x[k] = photons[k] * ssx;
                gsigma_y[k] = photons[k] * ssy;
            }
        }
    }
}

extern "C" __global__ void gaussian2d_partials(const REAL* __restrict__ parameters, REAL* __restrict__ value,
                                               REAL* __restrict__ partials, int n) {
    __shared__ Axis along_x[W], along_y[H];
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const REAL* t = parameters + 5 * (size_t)i;
        const REAL photons = t[2], background = t[3];
        gaussian_tables<H, W>(t[0], t[1], t[4], t[4], along_x, along_y);
        for (int p = threadIdx.x; p < H * W; p += blockDim.x) {
            const Axis a = along_x[p % W], b = along_y[p / W];
            REAL* d = partials + (size_t)i * 5 * H * W + p;
            separable_pixel(a, b, photons, background, value + (size_t)i * H * W + p, d, d + H * W, d + 2 * H * W,
                            d + 3 * H * W);
            d[4 * H * W] = photons * (b.d_sigma * a.value + b.value * a.d_sigma);
        }
        __syncthreads();
    }
}
