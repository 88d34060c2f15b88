// Fisher scoring with damping for one image, by one warp; smlmcore/fit/generic.py holds the formulas.
//
// A warp and not a thread for each fit, because: its lanes read an image as it lies in memory, side by side; the tables
// of a PSF (an erf and an exp for each edge of a pixel) are made once for all pixels and lie in shared memory, for a
// thread of its own there would be no room; fits of unequal length do not wait for one another; any size and any PSF
// keeps a warp busy.  The price is the sum over the lanes, 31 shuffles for up to 32 sums together.
//
// A PSF is a type with P parameters and
//     struct Tables                                                        shared memory of one warp
//     static void prepare(const REAL* theta, const REAL* constants, Tables& t, int lane)    fill them, all lanes together
//     static REAL pixel(const REAL* theta, const REAL* constants, const Tables& t, int p, REAL* d)
//                                                                          value at pixel p, its P derivatives in d
// `constants` are those of the PSF: nothing, a calibration, the coefficients of a spline.
#include "reduce.cuh"

enum Status { CONVERGED, MAX_ITERATIONS, AT_BOUND, SINGULAR, INVALID };

template <int P> struct Limits {
    const REAL *lower, *upper, *step, *factor;
    const int* fixed;
};

// What the pixels say about parameters: all sums over the image, in the order in which they are summed.
template <int P> struct Sums {
    static constexpr int FISHER = P, COUNT = P + P * (P + 1) / 2 + 3;
    REAL of[COUNT];  // gradient, lower triangle of the Fisher information, then:
    __device__ REAL& deviance() { return of[COUNT - 3]; }  // half of it: what is made small
    __device__ REAL& doubt() { return of[COUNT - 2]; }     // its rounding error is a few epsilon of this
    __device__ REAL& chi2() { return of[COUNT - 1]; }
    __device__ REAL& fisher(int a, int b) { return of[FISHER + a * (a + 1) / 2 + b]; }
};

// Shared memory of one warp.
template <class PSF> struct Shared {
    typename PSF::Tables tables;
    Sums<PSF::P> now;     // of the fit as it stands
    REAL trial[PSF::P];   // parameters that are tried
    REAL exchange[32];
};

// Hand the sums, which all lanes hold, to shared memory: registers are for those being added up.
template <int P> __device__ inline void keep(const Sums<P>& from, Sums<P>& to, int lane) {
    __syncwarp();
#pragma unroll
    for (int k = 0; k < Sums<P>::COUNT; k++)
        if (lane == k % 32) to.of[k] = from.of[k];
    __syncwarp();
}

constexpr REAL EPSILON = sizeof(REAL) == 4 ? REAL(1.2e-7) : REAL(2.2e-16);

// One pixel's photoelectrons x = max(d + v, 0), read-noise variance v, and datum d; false if it does not count.
struct Pixel {
    REAL d, v, x;
    __device__ bool read(const REAL* spot, const REAL* variance, int p) {
        d = spot[p], v = variance ? variance[p] : REAL(0), x = d + v < 0 ? REAL(0) : d + v;
        return !isnan(d) && !isinf(v);
    }
};

template <class PSF> __device__ void evaluate(const REAL* theta, const REAL* constants, const REAL* spot,
                                              const REAL* variance, Shared<PSF>& shared, int lane,
                                              Sums<PSF::P>& sums) {
    constexpr int P = PSF::P;
    __syncwarp();  // the tables are about to be written again
    PSF::prepare(theta, constants, shared.tables, lane);
    __syncwarp();
#pragma unroll
    for (int k = 0; k < Sums<P>::COUNT; k++) sums.of[k] = 0;
    for (int p = lane; p < H * W; p += 32) {
        Pixel pixel;
        if (!pixel.read(spot, variance, p)) continue;
        REAL d[P];
        const REAL value = PSF::pixel(theta, constants, shared.tables, p, d), m = value + pixel.v, w = 1 / m;
        const REAL excess = pixel.x - m, r = excess * w;
#pragma unroll
        for (int a = 0; a < P; a++) {
            sums.of[a] += r * d[a];
            const REAL wd = w * d[a];
#pragma unroll
            for (int b = 0; b <= a; b++) sums.fisher(a, b) += wd * d[b];
        }
        // x log(x / m) + m - x: small, as the terms cancel before they are summed
        sums.deviance() -= pixel.x > 0 ? pixel.x * log1p(-excess / pixel.x) + excess : -m;
        sums.doubt() += fabs(excess);
        sums.chi2() += (pixel.d - value) * (pixel.d - value) * w;
    }
    warp_sums_of_many(sums.of, shared.exchange, lane);
}

// log(x^x exp(-x) / Gamma(x + 1)): what the likelihood has beyond the deviance.
__device__ inline REAL log_saturated(REAL x) {
    if (x < 16) return (x > 0 ? x * log(x) : REAL(0)) - x - lgamma(x + 1);
    const REAL y = 1 / (x * x);
    const REAL series = REAL(1) / REAL(12) - y * (REAL(1) / REAL(360) - y * (REAL(1) / REAL(1260) - y / REAL(1680)));
    return REAL(-0.5) * log(REAL(6.283185307179586) * x) - series / x;
}

// Lower Cholesky factor in place; false if a pivot falls to `least`.  All loops are unrolled: l stays in registers.
template <int P> __device__ inline bool cholesky(REAL (&l)[P][P], REAL least) {
    bool good = true;
#pragma unroll
    for (int a = 0; a < P; a++) {
#pragma unroll
        for (int b = 0; b <= a; b++) {
            REAL s = l[a][b];
#pragma unroll
            for (int c = 0; c < b; c++) s -= l[a][c] * l[b][c];
            if (a == b) good = good && s > least;
            l[a][b] = a == b ? sqrt(s) : s / l[b][b];
        }
    }
    return good;
}

template <int P> __device__ inline void solve(const REAL (&l)[P][P], REAL (&x)[P]) {
#pragma unroll
    for (int a = 0; a < P; a++) {
#pragma unroll
        for (int b = 0; b < a; b++) x[a] -= l[a][b] * x[b];
        x[a] /= l[a][a];
    }
#pragma unroll
    for (int a = P - 1; a >= 0; a--) {
#pragma unroll
        for (int b = a + 1; b < P; b++) x[a] -= l[b][a] * x[b];
        x[a] /= l[a][a];
    }
}

// Fisher information with unit diagonal; 1 on the diagonal of parameters that are held.
template <int P> __device__ inline void scaled(Sums<P>& sums, unsigned held, REAL damping, REAL (&scale)[P],
                                               REAL (&matrix)[P][P]) {
#pragma unroll
    for (int a = 0; a < P; a++) {
        scale[a] = sqrt(sums.fisher(a, a)) + REAL(1e-30);
#pragma unroll
        for (int b = 0; b <= a; b++) {
            const REAL value = sums.fisher(a, b) / (scale[a] * scale[b]);
            matrix[a][b] = (held >> a | held >> b) & 1 ? REAL(a == b) : value;
        }
        matrix[a][a] += damping;
    }
}

// Bits of the parameters at a bound that the data push outwards.
template <int P> __device__ inline unsigned pushed(const REAL (&theta)[P], const Sums<P>& sums, const Limits<P>& limits) {
    unsigned bits = 0;
#pragma unroll
    for (int a = 0; a < P; a++) {
        const bool low = theta[a] <= limits.lower[a] && sums.of[a] <= 0;
        const bool high = theta[a] >= limits.upper[a] && sums.of[a] >= 0;
        bits |= unsigned((low || high) && !limits.fixed[a]) << a;
    }
    return bits;
}

template <class PSF>
__device__ void fit_image(const REAL* spot, const REAL* variance, const REAL* initial, const REAL* constants,
                          const Limits<PSF::P>& limits, int max_iterations, REAL tolerance, Shared<PSF>& shared,
                          int lane, REAL* parameters, REAL* errors, REAL* log_likelihood, REAL* chi2, int* status,
                          int* iterations) {
    constexpr int P = PSF::P;
    const REAL nan = log(REAL(-1));
    REAL theta[P], move[P], scale[P], matrix[P][P];
    Sums<P>& now = shared.now;
    Sums<P> next;
    unsigned fixed = 0;
    int seen = 0, free = 0;
    bool infinite = false, valid = true;
    for (int p = lane; p < H * W; p += 32) {
        Pixel pixel;
        seen += pixel.read(spot, variance, p);
        infinite = infinite || isinf(pixel.d);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) seen += __shfl_xor_sync(0xffffffffu, seen, step);
#pragma unroll
    for (int a = 0; a < P; a++) {
        const bool held = limits.fixed[a];
        fixed |= unsigned(held) << a;
        free += !held;
        valid = valid && isfinite(initial[a]);
        theta[a] = held ? initial[a] : min(max(initial[a], limits.lower[a]), limits.upper[a]);
        if (lane == a) shared.trial[a] = theta[a];
    }
    if (__any_sync(0xffffffffu, infinite) || !valid || seen <= free) {
        if (lane < P) parameters[lane] = errors[lane] = nan;
        if (lane == 0) *log_likelihood = *chi2 = nan, *status = INVALID, *iterations = 0;
        return;
    }

    __syncwarp();
    evaluate<PSF>(shared.trial, constants, spot, variance, shared, lane, next);
    keep(next, now, lane);
    REAL damping = 0;
    int done = 0;
    bool accepted = true, converged = false;
    while (true) {  // all lanes hold the same numbers and go the same way
        const unsigned held = pushed<P>(theta, now, limits) | fixed;
        const REAL least = sizeof(REAL) == 4 ? REAL(1e-7) : REAL(1e-9);
        scaled<P>(now, held, damping + least, scale, matrix);
        const bool regular = cholesky<P>(matrix, 0);
        REAL decrement = 0;
        if (regular) {
#pragma unroll
            for (int a = 0; a < P; a++) move[a] = held >> a & 1 ? REAL(0) : now.of[a] / scale[a];
            solve<P>(matrix, move);
            // the square of the step ahead in standard errors is how far the maximum is
#pragma unroll
            for (int a = 0; a < P; a++) decrement += held >> a & 1 ? REAL(0) : move[a] / scale[a] * now.of[a];
            converged = accepted && damping < REAL(1e-2) && decrement < tolerance * tolerance;
        }
        if (converged || done == max_iterations) break;
        done++;
        if (!regular) {
            damping = max(100 * damping, REAL(1e-1));
            continue;
        }
#pragma unroll
        for (int a = 0; a < P; a++) {
            const REAL most = limits.step[a] + limits.factor[a] * fabs(theta[a]);
            const REAL d = min(max(move[a] / scale[a], -most), most);
            const REAL to = min(max(theta[a] + d, limits.lower[a]), limits.upper[a]);
            if (lane == a) shared.trial[a] = held >> a & 1 ? theta[a] : to;
        }
        __syncwarp();
        evaluate<PSF>(shared.trial, constants, spot, variance, shared, lane, next);
        const REAL slack = REAL(1e-9) * now.deviance() + 2 * EPSILON * next.doubt();
        accepted = next.deviance() <= now.deviance() + slack;
        if (accepted) {
            damping = damping > REAL(1e-4) ? damping / 10 : REAL(0);
#pragma unroll
            for (int a = 0; a < P; a++) theta[a] = shared.trial[a];
            keep(next, now, lane);  // meets the other lanes, before any of them writes the next trial
        } else {
            damping = max(10 * damping, REAL(1e-2));
        }
    }

    REAL saturated = 0;
    for (int p = lane; p < H * W; p += 32) {
        Pixel pixel;
        if (pixel.read(spot, variance, p)) saturated += log_saturated(pixel.x);
    }
    saturated = warp_sum(saturated);  // complete in lane 0, which writes
    const unsigned outwards = pushed<P>(theta, now, limits), held = outwards | fixed;
    scaled<P>(now, held, 0, scale, matrix);
    bool sound = cholesky<P>(matrix, sizeof(REAL) == 4 ? REAL(1e-6) : REAL(1e-12)) && isfinite(now.deviance());
    REAL error[P];
#pragma unroll
    for (int a = 0; a < P; a++) {
#pragma unroll
        for (int b = 0; b < P; b++) move[b] = a == b;
        solve<P>(matrix, move);
        error[a] = sqrt(move[a]) / scale[a];
        sound = sound && (held >> a & 1 || isfinite(error[a]));
    }
    if (lane) return;
#pragma unroll
    for (int a = 0; a < P; a++) {
        parameters[a] = theta[a];
        errors[a] = !sound || held >> a & 1 ? nan : error[a];
    }
    *log_likelihood = saturated - now.deviance();
    *chi2 = now.chi2();
    *iterations = done;
    *status = !sound ? SINGULAR : outwards ? AT_BOUND : converged ? CONVERGED : MAX_ITERATIONS;
}
