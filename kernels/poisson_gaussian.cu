// Poisson-Gaussian negative log-likelihood and slope; smlmcore/loss/poisson_gaussian.py explains the method.

// log(mu / k), to the last digit where mu and k are close.
__device__ inline REAL log_ratio(REAL mu, REAL k) {
    return mu > REAL(0.5) * k && mu < 2 * k ? log1p((mu - k) / k) : log(mu / k);
}

// x log(x / mu) + mu - x, by a series where the terms cancel.
__device__ inline REAL half_deviance(REAL x, REAL mu) {
    const REAL u = (x - mu) / (x + mu);
    if (fabs(u) > REAL(0.1)) return x * log(x / mu) + mu - x;
    REAL s = 0;
    for (int j = 8; j > 0; j--) s = u * u * (s + REAL(1) / REAL(2 * j + 1));
    return u * (x - mu + 2 * x * s);
}

__device__ inline REAL log_poisson(REAL x, REAL mu) {
    if (x < 16) return (x > 0 ? x * log(mu) : REAL(0)) - mu - lgamma(x + 1);
    const REAL y = 1 / (x * x);
    const REAL c = REAL(1) / REAL(1680) - y * (REAL(1) / REAL(1188));
    const REAL b = REAL(1) / REAL(360) - y * (REAL(1) / REAL(1260) - y * c);
    const REAL stirling = (REAL(1) / REAL(12) - y * b) / x;
    return REAL(-0.5) * log(REAL(6.283185307179586) * x) - stirling - half_deviance(x, mu);
}

// The k of the largest term Pois(k) N(d - k), by Newton's method.
__device__ inline REAL mode(REAL mu, REAL d, REAL v) {
    REAL k = mu * max(d + v, REAL(0)) / (mu + v);
    for (int i = 0; i < 30; i++) {
        const REAL step = (log(mu / (k + 1)) + (d - k - REAL(0.5)) / v) * (k + 1) * v / (k + 1 + v);
        const REAL next = max(k + step, REAL(0));
        const bool near = fabs(next - k) < REAL(0.5);
        k = next;
        if (near) break;
    }
    return ceil(k);
}

__device__ inline void marginal(REAL mu, REAL d, REAL v, REAL& nll, REAL& slope) {
    const REAL tiny = REAL(sizeof(REAL) == 4 ? 1e-9 : 1e-18);
    const REAL m = mode(mu, d, v), delta = -expm1(-1 / v), log_odds = (d - m - REAL(0.5)) / v;
    // sums over the terms above the mode, in units of the first of them, t(m+1) = first t(m)
    const REAL first = exp(log_ratio(mu, m + 1) + log_odds);
    REAL ratio = first, up = 0, up_moment = 0;
    REAL j = 1;
    for (REAL t = 1; t > tiny; t *= ratio) {
        up += t;
        up_moment += j * t;
        ratio -= ratio * ((1 + delta * (m + j)) / (m + j + 1));
        j += 1;
    }
    // and below, in units of t(m)
    REAL down = 0, down_moment = 0;
    if (m > 0) {
        ratio = exp(-log_ratio(mu, m) - (d - m + REAL(0.5)) / v);
        j = 1;
        for (REAL t = ratio; t > tiny; t *= ratio) {
            down += t;
            down_moment += j * t;
            ratio -= ratio * ((1 + delta * (m - j)) / (m - j + 1));
            j += 1;
        }
    }
    const REAL total = 1 + first * up + down;
    nll = REAL(0.5) * log(REAL(6.283185307179586) * v) + (d - m) * (d - m) / (2 * v) - log(total) - log_poisson(m, mu);
    slope = m > 0 ? ((mu - m) - (first * up_moment - down_moment) / total) / mu
                  : 1 - exp(log_odds) * up_moment / total;  // t(1) / mu, finite at mu = 0
}

extern "C" __global__ void poisson_gaussian(const REAL* __restrict__ prediction, const REAL* __restrict__ data,
                                            const REAL* __restrict__ variance, int exact, REAL* __restrict__ nll,
                                            REAL* __restrict__ slope, int n) {
    const REAL steepest = REAL(sizeof(REAL) == 4 ? -3.4e38 : -1.7e308), infinity = -log(REAL(0));
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const REAL mu = prediction[i], d = data[i], v = variance[i];
        if (isnan(d) || !(v < infinity)) {
            nll[i] = slope[i] = 0;
            continue;
        }
        const REAL valid = mu < 0 ? REAL(0) : mu, x = max(d + v, REAL(0));
        REAL value, gradient;
        if (exact && v > 0) marginal(valid, d, v, value, gradient);
        else if (x == 0) value = valid + v, gradient = 1;
        else value = -log_poisson(x, valid + v), gradient = 1 - x / (valid + v);
        nll[i] = mu < 0 ? infinity : value;
        slope[i] = gradient < steepest ? steepest : gradient;
    }
}
