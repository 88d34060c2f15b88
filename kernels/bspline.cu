// Values, slopes and scattering of B-splines, a thread for each point.  AXES (1, 2 or 3) and DEGREE are compile-time
// constants: all taps stay in registers.
#include "bspline.cuh"

constexpr int MOST = DEGREE + 1, COUNT[3] = {AXES == 3 ? MOST : 1, AXES >= 2 ? MOST : 1, MOST};

// The taps of the three axes; those that the points do not have are a single one of weight 1.
struct Point {
    Taps<DEGREE> z, y, x;
    __device__ bool find(const REAL* point, int p, int q, int r, int mode) {
        z.index[0] = y.index[0] = 0, z.weight[0] = y.weight[0] = 1, z.slope[0] = y.slope[0] = 0;
        bool known = x.find(point[AXES - 1], r, mode);
        if (AXES >= 2) known = y.find(point[AXES >= 2 ? AXES - 2 : 0], q, mode) && known;
        if (AXES == 3) known = z.find(point[0], p, mode) && known;
        return known;
    }
};

extern "C" __global__ void bspline_sample(const REAL* __restrict__ coefficients, const REAL* __restrict__ points,
                                          int degree, int mode, REAL* __restrict__ value, int b, int p, int q, int r,
                                          int m) {
    const long long count = (long long)b * m, step = (long long)gridDim.x * blockDim.x;
    for (long long s = (long long)blockIdx.x * blockDim.x + threadIdx.x; s < count; s += step) {
        const REAL* c = coefficients + s / m * p * q * r;
        Point at;
        if (!at.find(points + s * AXES, p, q, r, mode)) {
            value[s] = log(REAL(-1));
            continue;
        }
        REAL total = 0;
#pragma unroll
        for (int i = 0; i < COUNT[0]; i++) {
            REAL plane = 0;
#pragma unroll
            for (int j = 0; j < COUNT[1]; j++) {
                const REAL* row = c + ((long long)at.z.index[i] * q + at.y.index[j]) * r;
                REAL line = 0;
#pragma unroll
                for (int k = 0; k < COUNT[2]; k++) line += at.x.weight[k] * row[at.x.index[k]];
                plane += at.y.weight[j] * line;
            }
            total += at.z.weight[i] * plane;
        }
        value[s] = total;
    }
}

extern "C" __global__ void bspline_slopes(const REAL* __restrict__ coefficients, const REAL* __restrict__ points,
                                          int degree, int mode, REAL* __restrict__ value, REAL* __restrict__ slope,
                                          int b, int p, int q, int r, int m) {
    const long long count = (long long)b * m, step = (long long)gridDim.x * blockDim.x;
    for (long long s = (long long)blockIdx.x * blockDim.x + threadIdx.x; s < count; s += step) {
        const REAL* c = coefficients + s / m * p * q * r;
        REAL* gradient = slope + s * AXES;
        Point at;
        if (!at.find(points + s * AXES, p, q, r, mode)) {
            value[s] = log(REAL(-1));
            for (int a = 0; a < AXES; a++) gradient[a] = log(REAL(-1));
            continue;
        }
        REAL total = 0, dz = 0, dy = 0, dx = 0;
#pragma unroll
        for (int i = 0; i < COUNT[0]; i++) {
            REAL plane = 0, plane_y = 0, plane_x = 0;
#pragma unroll
            for (int j = 0; j < COUNT[1]; j++) {
                const REAL* row = c + ((long long)at.z.index[i] * q + at.y.index[j]) * r;
                REAL line = 0, line_x = 0;
#pragma unroll
                for (int k = 0; k < COUNT[2]; k++) {
                    const REAL v = row[at.x.index[k]];
                    line += at.x.weight[k] * v, line_x += at.x.slope[k] * v;
                }
                plane += at.y.weight[j] * line, plane_y += at.y.slope[j] * line, plane_x += at.y.weight[j] * line_x;
            }
            total += at.z.weight[i] * plane, dz += at.z.slope[i] * plane;
            dy += at.z.weight[i] * plane_y, dx += at.z.weight[i] * plane_x;
        }
        value[s] = total;
        gradient[AXES - 1] = dx;
        if (AXES >= 2) gradient[AXES >= 2 ? AXES - 2 : 0] = dy;
        if (AXES == 3) gradient[0] = dz;
    }
}

// A block for each slab of the first axis: it clears the slab, then adds what all points have for it.  So no other
// block writes there, and nothing has to be cleared beforehand.
extern "C" __global__ void bspline_scatter(const REAL* __restrict__ gradient, const REAL* __restrict__ points,
                                           int degree, int mode, REAL* __restrict__ coefficients, int b, int m, int p,
                                           int q, int r) {
    const int first = AXES == 3 ? p : AXES == 2 ? q : r;
    const long long size = (long long)p * q * r / first;
    for (int part = blockIdx.x; part < b * first; part += gridDim.x) {
        const int image = part / first, slab = part % first;
        REAL* c = coefficients + (long long)image * p * q * r;
        for (long long k = threadIdx.x; k < size; k += blockDim.x) c[slab * size + k] = 0;
        __syncthreads();
        for (int s = threadIdx.x; s < m; s += blockDim.x) {
            const long long of = (long long)image * m + s;
            Point at;
            const Taps<DEGREE>& leading = AXES == 3 ? at.z : AXES == 2 ? at.y : at.x;
            if (!at.find(points + of * AXES, p, q, r, mode)) continue;
#pragma unroll
            for (int a = 0; a < MOST; a++) {
                if (leading.index[a] != slab) continue;
                const REAL u = gradient[of] * leading.weight[a];
                if (AXES == 1) atomicAdd(c + slab, u);
#pragma unroll
                for (int j = 0; j < (AXES == 3 ? MOST : 1); j++) {
                    const REAL v = AXES == 3 ? u * at.y.weight[j] : u;
                    REAL* row = c + slab * size + (AXES == 3 ? (long long)at.y.index[j] * r : 0);
#pragma unroll
                    for (int k = 0; k < (AXES >= 2 ? MOST : 0); k++) atomicAdd(row + at.x.index[k], v * at.x.weight[k]);
                }
            }
        }
        __syncthreads();
    }
}
