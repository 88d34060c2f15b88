// The filter that turns samples into B-spline coefficients, a thread for each line: smlmcore/interpolate/cpu.py has the
// same with comments.  Works in place as well.  DEGREE is a compile-time constant.
#include "bspline.cuh"

constexpr int POLES = DEGREE < 2 ? 0 : DEGREE < 4 ? 1 : 2;
constexpr int STEADY = 32;  // rows after which the factors of a banded matrix do not change any more

__device__ inline REAL bspline_pole(int i) {
    if (DEGREE == 2) return REAL(-0.171572875253809902);
    if (DEGREE == 3) return REAL(-0.267949192431122706);
    if (DEGREE == 4) return i ? REAL(-0.0137254292973391220) : REAL(-0.361341225900220177);
    return i ? REAL(-0.0430962882032646540) : REAL(-0.430575347099973791);
}

// One pole, from a to c (which may be the same), elements `step` apart.
__device__ inline void bspline_recursive(const REAL* a, REAL* c, int n, long long step, REAL z, int mode) {
    const REAL gain = (1 - z) * (1 - 1 / z);
    const int horizon = int(log(sizeof(REAL) == 8 ? REAL(1e-18) : REAL(1e-9)) / log(fabs(z))) + 2;
    const int enough = n < horizon ? n : horizon;
    const bool exact = enough == n;
    REAL w = z, far = 0, head = 0, scale;
    if (mode == PERIODIC) {
        head = a[0];
        for (int k = n - 1; k > n - enough; k--) head += w * a[k * step], w *= z;
        scale = 1 / (1 - (exact ? w : REAL(0)));
    } else if (mode == REFLECT) {
        far = exact ? pow(z, REAL(n)) : REAL(0);
        for (int k = 0; k < enough; k++) head += w * (a[k * step] + far * a[(n - 1 - k) * step]), w *= z;
        scale = 1 / (1 - far * far);
        head += a[0] / scale;
    } else {
        far = exact ? pow(z, REAL(n - 1)) : REAL(0);
        head = a[0] + far * a[(n - 1) * step];
        for (int k = 1; k < (enough < n - 1 ? enough : n - 1); k++)
            head += w * (a[k * step] + far * a[(n - 1 - k) * step]), w *= z;
        scale = 1 / (1 - far * far);
    }
    REAL before = c[0] = gain * scale * head;
    for (int k = 1; k < n; k++) before = c[k * step] = gain * a[k * step] + z * before;
    REAL tail = before;
    if (mode == PERIODIC) {
        w = z;
        for (int k = 0; k < enough - 1; k++) tail += w * c[k * step], w *= z;
        scale = -z / (1 - (exact ? w : REAL(0)));
    } else if (mode == REFLECT) {
        scale = z / (z - 1);
    } else {
        tail += z * c[(n - 2) * step];
        scale = z / (z * z - 1);
    }
    before = c[(n - 1) * step] = scale * tail;
    for (int k = n - 2; k >= 0; k--) before = c[k * step] = z * (before - c[k * step]);
}

struct Factors {  // L D L^T of the banded matrix: 1 / D, and the two diagonals of L
    REAL d[STEADY], u[STEADY], v[STEADY];
    __device__ void find() {
        REAL weight[DEGREE + 2], basis[DEGREE + 1], slope[DEGREE + 1];
        bspline_basis<DEGREE>(REAL(DEGREE % 2 == 0) / REAL(2), basis, slope);
        for (int k = 0; k <= DEGREE; k++) weight[k] = basis[k];
        weight[DEGREE + 1] = 0;
        const REAL *middle = weight + DEGREE / 2, b2 = DEGREE < 2 ? REAL(0) : middle[DEGREE < 2 ? 0 : 2];
        for (int k = 0; k < STEADY; k++) {
            REAL pivot = middle[0], below = middle[1];
            if (k >= 1) pivot -= u[k - 1] * u[k - 1] / d[k - 1], below -= u[k - 1] * v[k - 1] / d[k - 1];
            if (k >= 2) pivot -= v[k - 2] * v[k - 2] / d[k - 2];
            d[k] = 1 / pivot, u[k] = below / pivot, v[k] = b2 / pivot;
        }
    }
};

__device__ inline int steady(int k) { return k < STEADY ? k : STEADY - 1; }

extern "C" __global__ void bspline_prefilter(const REAL* a, int degree, int mode, REAL* c, int o, int n, int i) {
    __shared__ Factors f;
    if (threadIdx.x == 0 && mode == ZERO) f.find();
    __syncthreads();
    const long long lines = (long long)o * i, all = (long long)gridDim.x * blockDim.x, step = i;
    for (long long line = (long long)blockIdx.x * blockDim.x + threadIdx.x; line < lines; line += all) {
        const long long start = line / i * n * i + line % i;
        const REAL* from = a + start;
        REAL* to = c + start;
        if (DEGREE < 2 || (n == 1 && mode != ZERO)) {
            for (int k = 0; k < n; k++) to[k * step] = from[k * step];
        } else if (mode == ZERO) {
            REAL one = 0, two = 0;
            for (int k = 0; k < n; k++) {
                REAL s = from[k * step];
                if (k >= 1) s -= f.u[steady(k - 1)] * one;
                if (k >= 2) s -= f.v[steady(k - 2)] * two;
                to[k * step] = s, two = one, one = s;
            }
            one = two = 0;
            for (int k = n - 1; k >= 0; k--) {
                const REAL s = f.d[steady(k)] * to[k * step] - f.u[steady(k)] * one - f.v[steady(k)] * two;
                to[k * step] = s, two = one, one = s;
            }
        } else {
            for (int p = 0; p < POLES; p++) bspline_recursive(p ? to : from, to, n, step, bspline_pole(p), mode);
        }
    }
}
