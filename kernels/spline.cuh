// The spline PSF: smlmcore/psf/spline.py has the formula, rows.py the order of the sums.
//
// The shift between pixels and coefficients is the same for all pixels of an image.  So the threads of a block (or the
// lanes of a warp) first sum over z, one number for each of the (H + 3) (W + 3) columns of coefficients that the image
// needs, and one with the slopes; then every pixel takes 4 x 4 of these.  H, W: compile-time size of an image.
#include "bspline.cuh"

struct SplineTable {  // coefficients (p, q, r): mirrored planes at either end, zeros around; see Spline.table
    const REAL* c;
    const REAL* geometry;  // z, y, x of the centre, 1 / distance of the planes
    int p, q, r;
};

struct SplineColumns {
    REAL value[(H + 3) * (W + 3)], slope[(H + 3) * (W + 3)];  // summed over z, with the weights and with their slopes
    REAL wy[4], dy[4], wx[4], dx[4];
};

// Fill the columns for an emitter at x, y, z, by `count` threads of which this is number `me`.
__device__ inline void spline_columns(const SplineTable& t, REAL x, REAL y, REAL z, SplineColumns& columns, int me,
                                      int count) {
    const REAL last = REAL(t.p - 2), u = z * t.geometry[3] + t.geometry[0], within = u > 1 && u < last ? t.geometry[3] : REAL(0);
    const REAL depth = min(max(u, REAL(1)), last);
    int kz = int(floor(depth));
    if (kz > t.p - 3) kz = t.p - 3;
    REAL wz[4], dz[4], wy[4], dy[4], wx[4], dx[4];
    bspline_basis<3>(depth - REAL(kz), wz, dz);
    const REAL big = REAL(1e6), v = min(max(t.geometry[1] - y, -big), big), w = min(max(t.geometry[2] - x, -big), big);
    const int ky = int(floor(v)), kx = int(floor(w));
    bspline_basis<3>(v - floor(v), wy, dy);
    bspline_basis<3>(w - floor(w), wx, dx);
    if (me == 0)
        for (int k = 0; k < 4; k++) columns.wy[k] = wy[k], columns.dy[k] = -dy[k], columns.wx[k] = wx[k], columns.dx[k] = -dx[k];
    for (int s = me; s < (H + 3) * (W + 3); s += count) {
        const int j = ky - 1 + s / (W + 3), k = kx - 1 + s % (W + 3);
        REAL value = 0, slope = 0;
        if (j >= 0 && j < t.q && k >= 0 && k < t.r) {
            const REAL* c = t.c + ((long long)(kz - 1) * t.q + j) * t.r + k;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const REAL plane = c[(long long)i * t.q * t.r];
                value += wz[i] * plane, slope += dz[i] * plane;
            }
        }
        columns.value[s] = value, columns.slope[s] = within * slope;
    }
}

struct SplinePixel {
    REAL f, d_x, d_y, d_z;
};

__device__ inline SplinePixel spline_pixel(const SplineColumns& columns, int pixel) {
    const int i = pixel / W, j = pixel % W;
    SplinePixel s = {0, 0, 0, 0};
#pragma unroll
    for (int a = 0; a < 4; a++) {
        REAL f = 0, d_x = 0, d_z = 0;
#pragma unroll
        for (int b = 0; b < 4; b++) {
            const int at = (i + a) * (W + 3) + j + b;
            f += columns.wx[b] * columns.value[at];
            d_x += columns.dx[b] * columns.value[at];
            d_z += columns.wx[b] * columns.slope[at];
        }
        s.f += columns.wy[a] * f, s.d_x += columns.wy[a] * d_x, s.d_y += columns.dy[a] * f;
        s.d_z += columns.wy[a] * d_z;
    }
    if (!(s.f > 0)) s = {0, 0, 0, 0};  // where the measured PSF is below 0, there is the background alone
    return s;
}
