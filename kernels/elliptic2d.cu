// Elliptic 2-D Gaussians, along the pixels and rotated: smlmcore/psf/elliptic.py holds the formulas and references.
// One block per image (grid-stride), one thread per pixel.  H, W: compile-time size of the image.
#include "elliptic2d.cuh"
#include "gaussian2d.cuh"
#include "reduce.cuh"

extern "C" __global__ void elliptic2d_partials(const REAL* __restrict__ parameters, REAL* __restrict__ value,
                                               REAL* __restrict__ partials, int n) {
    __shared__ Axis along_x[W], along_y[H];
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const REAL* t = parameters + 6 * (size_t)i;
        gaussian_tables<H, W>(t[0], t[1], t[4], t[5], along_x, along_y);
        for (int p = threadIdx.x; p < H * W; p += blockDim.x) {
            const Axis a = along_x[p % W], b = along_y[p / W];
            REAL* d = partials + (size_t)i * 6 * H * W + p;
            separable_pixel(a, b, t[2], t[3], value + (size_t)i * H * W + p, d, d + H * W, d + 2 * H * W,
                            d + 3 * H * W);
            d[4 * H * W] = t[2] * b.value * a.d_sigma;
            d[5 * H * W] = t[2] * b.d_sigma * a.value;
        }
        __syncthreads();
    }
}

extern "C" __global__ void rotated2d_render(const REAL* __restrict__ x, const REAL* __restrict__ y,
                                            const REAL* __restrict__ photons, const REAL* __restrict__ sigma_x,
                                            const REAL* __restrict__ sigma_y, const REAL* __restrict__ angle,
                                            const REAL* __restrict__ background, REAL* __restrict__ image, int n,
                                            int emitters) {
    for (int i = blockIdx.x; i < n; i += gridDim.x)
        for (int p = threadIdx.x; p < H * W; p += blockDim.x) {
            REAL sum = background[i];
            for (int k = i * emitters; k < (i + 1) * emitters; k++) {
                const Rotated r = rotated_gaussian(x[k], y[k], sigma_x[k], sigma_y[k], angle[k]);
                sum += photons[k] * rotated_moments(p / W, p % W, r).one;
            }
            image[(size_t)i * H * W + p] = sum;
        }
}

extern "C" __global__ void rotated2d_render_vjp(
    const REAL* __restrict__ x, const REAL* __restrict__ y, const REAL* __restrict__ photons,
    const REAL* __restrict__ sigma_x, const REAL* __restrict__ sigma_y, const REAL* __restrict__ angle,
    const REAL* __restrict__ gradient, REAL* __restrict__ gx, REAL* __restrict__ gy, REAL* __restrict__ gphotons,
    REAL* __restrict__ gsigma_x, REAL* __restrict__ gsigma_y, REAL* __restrict__ gangle,
    REAL* __restrict__ gbackground, int n, int emitters) {
    __shared__ REAL scratch[32];
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const REAL* g = gradient + (size_t)i * H * W;
        REAL total = 0;
        for (int p = threadIdx.x; p < H * W; p += blockDim.x) total += g[p];
        total = block_sum(total, scratch);
        if (threadIdx.x == 0) gbackground[i] = total;
        for (int k = i * emitters; k < (i + 1) * emitters; k++) {
            const Rotated r = rotated_gaussian(x[k], y[k], sigma_x[k], sigma_y[k], angle[k]);
            Moments sum = {0, 0, 0, 0, 0, 0};
            for (int p = threadIdx.x; p < H * W; p += blockDim.x) {
                const Moments m = rotated_moments(p / W, p % W, r);
                sum.one += g[p] * m.one;
                sum.u += g[p] * m.u;
                sum.v += g[p] * m.v;
                sum.uu += g[p] * m.uu;
                sum.vv += g[p] * m.vv;
                sum.uv += g[p] * m.uv;
            }
            sum.one = block_sum(sum.one, scratch);
            sum.u = block_sum(sum.u, scratch);
            sum.v = block_sum(sum.v, scratch);
            sum.uu = block_sum(sum.uu, scratch);
            sum.vv = block_sum(sum.vv, scratch);
            sum.uv = block_sum(sum.uv, scratch);
            if (threadIdx.x == 0) {
                const RotatedPartials d = rotated_partials(sum, r, sigma_x[k], sigma_y[k]);
                gx[k] = photons[k] * d.x;
                gy[k] = photons[k] * d.y;
                gphotons[k] = sum.one;
                gsigma_x[k] = photons[k] * d.sigma_x;
                gsigma_y[k] = photons[k] * d.sigma_y;
                gangle[k] = photons[k] * d.angle;
            }
        }
    }
}

extern "C" __global__ void rotated2d_partials(const REAL* __restrict__ parameters, REAL* __restrict__ value,
                                              REAL* __restrict__ partials, int n) {
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const REAL* t = parameters + 7 * (size_t)i;
        const REAL photons = t[2], background = t[3], sigma_x = t[4], sigma_y = t[5];
        const Rotated r = rotated_gaussian(t[0], t[1], sigma_x, sigma_y, t[6]);
        for (int p = threadIdx.x; p < H * W; p += blockDim.x) {
            const Moments m = rotated_moments(p / W, p % W, r);
            const RotatedPartials along = rotated_partials(m, r, sigma_x, sigma_y);
            REAL* d = partials + (size_t)i * 7 * H * W + p;
            value[(size_t)i * H * W + p] = photons * m.one + background;
            d[0] = photons * along.x;
            d[H * W] = photons * along.y;
            d[2 * H * W] = m.one;
            d[3 * H * W] = REAL(1);
            d[4 * H * W] = photons * along.sigma_x;
            d[5 * H * W] = photons * along.sigma_y;
            d[6 * H * W] = photons * along.angle;
        }
    }
}
