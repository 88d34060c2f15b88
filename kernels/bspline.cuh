// B-splines of degree 0 to 5: smlmcore/interpolate/bspline.py has the formula, kernels.py the reference.

enum Mode { MIRROR, REFLECT, PERIODIC, ZERO, CONSTANT };

// Weights and slopes of the N + 1 B-splines of degree N at t in [0, 1] beyond a knot, by de Boor's recursion.
template <int N> __device__ inline void bspline_basis(REAL t, REAL (&weight)[N + 1], REAL (&slope)[N + 1]) {
    weight[0] = 1, slope[0] = 0;
#pragma unroll
    for (int j = 1; j <= N; j++) {
        REAL left = 0;
#pragma unroll
        for (int r = 0; r <= j; r++) {
            const REAL right = r < j ? weight[r] : REAL(0);
            slope[r] = left - right;
            weight[r] = ((t + REAL(j - r)) * left + (REAL(r + 1) - t) * right) / REAL(j);
            left = right;
        }
    }
}

// The index in 0...n - 1 that a coefficient anywhere is equal to; -1 for one that is 0.
__device__ inline int bspline_fold(int i, int n, int mode) {
    if (i >= 0 && i < n) return i;
    if (mode == ZERO) return -1;
    const int period = mode == PERIODIC || n == 1 ? n : mode == REFLECT ? 2 * n : 2 * n - 2;
    i %= period, i += i < 0 ? period : 0;
    return i < n ? i : mode == REFLECT ? 2 * n - 1 - i : period - i;
}

template <int N> struct Taps {
    int index[N + 1];
    REAL weight[N + 1], slope[N + 1];
    // Taps of a coordinate along an axis of n; false if it is no number.
    __device__ bool find(REAL x, int n, int mode) {
        if (!(fabs(x) < REAL(1073741824))) return false;
        const REAL y = x + REAL(N % 2 == 0) / REAL(2), first = floor(y);
        bspline_basis<N>(y - first, weight, slope);
        const bool beyond = mode == CONSTANT && !(x >= 0 && x <= REAL(n - 1));
#pragma unroll
        for (int k = 0; k <= N; k++) {
            index[k] = bspline_fold(int(first) - N / 2 + k, n, mode);
            if (index[k] < 0 || beyond) index[k] = 0, weight[k] = slope[k] = 0;
        }
        return true;
    }
};
