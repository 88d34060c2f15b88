// Images of the spline PSF, one block per image (grid-stride); spline.cuh says how.
#include "spline.cuh"
#include "reduce.cuh"

extern "C" __global__ void spline_partials(const REAL* __restrict__ parameters, const REAL* __restrict__ table,
                                           const REAL* __restrict__ geometry, REAL* __restrict__ value,
                                           REAL* __restrict__ partials, int n, int p, int q, int r) {
    __shared__ SplineColumns columns;
    const SplineTable t = {table, geometry, p, q, r};
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const REAL* theta = parameters + (size_t)i * 5;
        const REAL photons = theta[3], background = theta[4], known = theta[0] + theta[1] + theta[2];
        spline_columns(t, theta[0], theta[1], theta[2], columns, threadIdx.x, blockDim.x);
        __syncthreads();
        for (int k = threadIdx.x; k < H * W; k += blockDim.x) {
            const SplinePixel s = spline_pixel(columns, k);
            const REAL f = s.f + (known - known);  // NaN makes the image NaN
            REAL* d = partials + (size_t)i * 5 * H * W + k;
            value[(size_t)i * H * W + k] = photons * f + background;
            d[0] = photons * s.d_x, d[H * W] = photons * s.d_y, d[2 * H * W] = photons * s.d_z;
            d[3 * H * W] = f, d[4 * H * W] = 1;
        }
        __syncthreads();
    }
}

extern "C" __global__ void spline_render(const REAL* __restrict__ x, const REAL* __restrict__ y,
                                         const REAL* __restrict__ z, const REAL* __restrict__ photons,
                                         const REAL* __restrict__ background, const REAL* __restrict__ table,
                                         const REAL* __restrict__ geometry, REAL* __restrict__ image, int n, int e,
                                         int p, int q, int r) {
    __shared__ SplineColumns columns;
    const SplineTable t = {table, geometry, p, q, r};
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        REAL* out = image + (size_t)i * H * W;
        for (int k = threadIdx.x; k < H * W; k += blockDim.x) out[k] = background[i];
        for (int m = i * e; m < (i + 1) * e; m++) {
            const REAL known = x[m] + y[m] + z[m];
            spline_columns(t, x[m], y[m], z[m], columns, threadIdx.x, blockDim.x);
            __syncthreads();
            for (int k = threadIdx.x; k < H * W; k += blockDim.x)
                out[k] += photons[m] * spline_pixel(columns, k).f + (known - known);
            __syncthreads();
        }
    }
}

extern "C" __global__ void spline_render_vjp(const REAL* __restrict__ x, const REAL* __restrict__ y,
                                             const REAL* __restrict__ z, const REAL* __restrict__ photons,
                                             const REAL* __restrict__ table, const REAL* __restrict__ geometry,
                                             const REAL* __restrict__ gradient, REAL* __restrict__ gx,
                                             REAL* __restrict__ gy, REAL* __restrict__ gz,
                                             REAL* __restrict__ gphotons, REAL* __restrict__ gbackground, int n, int e,
                                             int p, int q, int r) {
    __shared__ SplineColumns columns;
    __shared__ REAL scratch[32];
    const SplineTable t = {table, geometry, p, q, r};
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const REAL* g = gradient + (size_t)i * H * W;
        REAL total = 0;
        for (int k = threadIdx.x; k < H * W; k += blockDim.x) total += g[k];
        total = block_sum(total, scratch);
        if (threadIdx.x == 0) gbackground[i] = total;
        for (int m = i * e; m < (i + 1) * e; m++) {
            spline_columns(t, x[m], y[m], z[m], columns, threadIdx.x, blockDim.x);
            __syncthreads();
            REAL sf = 0, sx = 0, sy = 0, sz = 0;
            for (int k = threadIdx.x; k < H * W; k += blockDim.x) {
                const SplinePixel s = spline_pixel(columns, k);
                sf += g[k] * s.f, sx += g[k] * s.d_x, sy += g[k] * s.d_y, sz += g[k] * s.d_z;
            }
            sf = block_sum(sf, scratch);
            sx = block_sum(sx, scratch);
            sy = block_sum(sy, scratch);
            sz = block_sum(sz, scratch);
            if (threadIdx.x == 0) {
                gx[m] = photons[m] * sx, gy[m] = photons[m] * sy, gz[m] = photons[m] * sz, gphotons[m] = sf;
            }
        }
    }
}
