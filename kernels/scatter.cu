// Many Gaussian emitters in large images: smlmcore/psf/scatter.py holds the formula and the reference.
// No atomics: a block owns its pixels, a warp its emitter.
#include "gaussian2d.cuh"
#include "reduce.cuh"

#define TILE 16
#define REACH (sizeof(REAL) == 4 ? REAL(5.3) : REAL(8.5))  // standard deviations; beyond, below rounding

// First and number of the pixels within reach of an emitter; all if that is not finite, perhaps none.
__device__ inline void window(REAL centre, REAL sigma, int size, int* first, int* count) {
    const REAL half = ceil(REACH * sigma), middle = rint(centre);
    *first = 0;
    *count = size;
    if (!(fabs(middle) < REAL(1e9) && half < REAL(1e9))) return;
    *first = max(int(middle) - int(half), 0);
    *count = max(min(int(middle) + int(half), size - 1) - *first + 1, 0);
}

__device__ inline bool touches(REAL centre, REAL sigma, int size, int low) {
    int first, count;
    window(centre, sigma, size, &first, &count);
    return count > 0 && first < low + TILE && first + count > low;
}

// A block draws a tile at a time: it lists the emitters that touch it, 256 at a time and in order, and adds them up.
extern "C" __global__ void __launch_bounds__(256) gaussian2d_scatter(
    const REAL* __restrict__ x, const REAL* __restrict__ y, const REAL* __restrict__ photons,
    const REAL* __restrict__ sigma_x, const REAL* __restrict__ sigma_y, const int* __restrict__ start,
    const REAL* __restrict__ background, REAL* __restrict__ image, int n, int s, int m, int h, int w) {
    __shared__ int hits[256], counts[8];
    __shared__ REAL across[8][TILE], down[8][TILE];  // of eight emitters
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = threadIdx.x % TILE, row = threadIdx.x / TILE;
    const int wide = (w + TILE - 1) / TILE, high = (h + TILE - 1) / TILE;
    for (int tile = blockIdx.x; tile < m * wide * high; tile += gridDim.x) {
        const int i = tile / (wide * high), top = tile / wide % high * TILE, left = tile % wide * TILE;
        REAL sum = background[i];
        for (int base = start[i]; base < start[i + 1]; base += 256) {
            const int k = base + threadIdx.x;
            const bool hit =
                k < start[i + 1] && touches(x[k], sigma_x[k], w, left) && touches(y[k], sigma_y[k], h, top);
            const unsigned votes = __ballot_sync(0xffffffffu, hit);
            if (lane == 0) counts[warp] = __popc(votes);
            __syncthreads();
            int before = 0, total = 0;
            for (int v = 0; v < 8; v++) {
                before += v < warp ? counts[v] : 0;
                total += counts[v];
            }
            if (hit) hits[before + __popc(votes & ((1u << lane) - 1))] = k;
            __syncthreads();
            for (int first = 0; first < total; first += 8) {
                if (first + warp < total) {
                    const int e = hits[first + warp];
                    if (lane < TILE) across[warp][lane] = photons[e] * gaussian_axis(left + lane, x[e], sigma_x[e]).value;
                    else down[warp][lane - TILE] = gaussian_axis(top + lane - TILE, y[e], sigma_y[e]).value;
                }
                __syncthreads();
                for (int v = 0; v < min(8, total - first); v++) sum += across[v][column] * down[v][row];
                __syncthreads();
            }
        }
        if (top + row < h && left + column < w) image[((size_t)i * h + top + row) * w + left + column] = sum;
    }
}

// The first m blocks sum over an image each; in the others a warp has an emitter: its lanes are columns of the window.
extern "C" __global__ void gaussian2d_scatter_vjp(
    const REAL* __restrict__ x, const REAL* __restrict__ y, const REAL* __restrict__ photons,
    const REAL* __restrict__ sigma_x, const REAL* __restrict__ sigma_y, const int* __restrict__ start,
    const REAL* __restrict__ gradient, REAL* __restrict__ gx, REAL* __restrict__ gy, REAL* __restrict__ gphotons,
    REAL* __restrict__ gsigma_x, REAL* __restrict__ gsigma_y, REAL* __restrict__ gbackground, int n, int s, int m,
    int h, int w) {
    __shared__ REAL scratch[32];
    for (int i = blockIdx.x; i < m; i += gridDim.x) {
        REAL total = 0;
        for (int p = threadIdx.x; p < h * w; p += blockDim.x) total += gradient[(size_t)i * h * w + p];
        total = block_sum(total, scratch);
        if (threadIdx.x == 0) gbackground[i] = total;
    }
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int k = blockIdx.x * warps + threadIdx.x / 32; k < n; k += gridDim.x * warps) {
        int i = 0, beyond = m;  // start[i] <= k < start[i + 1] by bisection
        while (beyond - i > 1) {
            const int middle = (i + beyond) / 2;
            if (start[middle] <= k) i = middle;
            else beyond = middle;
        }
        const REAL cx = x[k], cy = y[k], s_x = sigma_x[k], s_y = sigma_y[k];
        int left, columns, top, rows;
        window(cx, s_x, w, &left, &columns);
        window(cy, s_y, h, &top, &rows);
        REAL sx = 0, sy = 0, sn = 0, ssx = 0, ssy = 0;
        for (int c = 0; c < columns; c += 32) {
            REAL sum = 0, sum_c = 0, sum_s = 0;  // of this lane's column, weighted with E_y and its derivatives
            const bool inside = c + lane < columns;
            const REAL* g = gradient + ((size_t)i * h + top) * w + left + c + lane;
            for (int r = 0; r < rows; r += 32) {
                const Axis own = gaussian_axis(top + r + lane, cy, s_y);
                for (int v = 0; v < min(32, rows - r); v++) {
                    const REAL value = inside ? g[(size_t)(r + v) * w] : REAL(0);
                    sum += value * __shfl_sync(0xffffffffu, own.value, v);
                    sum_c += value * __shfl_sync(0xffffffffu, own.d_centre, v);
                    sum_s += value * __shfl_sync(0xffffffffu, own.d_sigma, v);
                }
            }
            const Axis a = gaussian_axis(left + c + lane, cx, s_x);
            sx += sum * a.d_centre;
            sy += sum_c * a.value;
            sn += sum * a.value;
            ssx += sum * a.d_sigma;
            ssy += sum_s * a.value;
        }
        sx = warp_sum(sx);
        sy = warp_sum(sy);
        sn = warp_sum(sn);
        ssx = warp_sum(ssx);
        ssy = warp_sum(ssy);
        if (lane == 0) {
            gx[k] = photons[k] * sx;
            gy[k] = photons[k] * sy;
            gphotons[k] = sn;
            gsigma_x[k] = photons[k] * ssx;
            gsigma_y[k] = photons[k] * ssy;
        }
    }
}
