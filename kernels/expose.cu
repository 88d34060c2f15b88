// Random exposures; smlmcore/camera/sample.py holds the method.  In double precision whatever REAL is: where a
// comparison decides, the CPU must decide alike.

constexpr int GAMMA = 1 << 16;

struct Words {
    unsigned a, b, c;
};

// Philox 4x32-10: the pixel and the block are the counter.
__device__ inline Words philox(unsigned long long pixel, unsigned block, unsigned k, unsigned m) {
    unsigned a = unsigned(pixel), b = unsigned(pixel >> 32), c = block, d = 0;
    for (int round = 0; round < 10; round++) {
        const unsigned long long p = 0xD2511F53ull * a, q = 0xCD9E8D57ull * c;
        a = unsigned(q >> 32) ^ b ^ k, b = unsigned(q);
        c = unsigned(p >> 32) ^ d ^ m, d = unsigned(p);
        k += 0x9E3779B9u, m += 0xBB67AE85u;
    }
    return {a, b, c};
}

__device__ inline double uniform(unsigned word) { return (double(word) + 0.5) * 2.3283064365386963e-10; }

__device__ inline double horner(double x, double a, double b, double c, double d, double e, double f, double g,
                                double h) {
    return ((((((h * x + g) * x + f) * x + e) * x + d) * x + c) * x + b) * x + a;
}

// Quantile of the normal distribution, AS 241.
__device__ inline double normal(double u) {
    const double q = u - 0.5;
    if (fabs(q) <= 0.425) {
        const double r = 0.180625 - q * q;
        return q *
               horner(r, 3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
                      45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727) /
               horner(r, 1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
                      21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610);
    }
    const double r = sqrt(-log(u < 0.5 ? u : 1 - u)) - 1.6;
    const double x =
        horner(r, 1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
               1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4) /
        horner(r, 1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550, 0.148103976427480074590,
               0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9);
    return q > 0 ? x : -x;
}

__device__ inline double poisson(double mean, Words words, unsigned long long pixel, unsigned k, unsigned m) {
    if (mean < 10) {
        const double u = uniform(words.a);
        double count = 0, term = exp(-mean), below = term;
        while (u > below && count < 100) {
            count += 1;
            term *= mean / count;
            below += term;
        }
        return count;
    }
    const double b = 0.931 + 2.53 * sqrt(mean), a = 0.02483 * b - 0.059;
    for (unsigned block = 0;; words = philox(pixel, ++block, k, m)) {
        const double u = uniform(words.a) - 0.5, v = uniform(words.b), near = 0.5 - fabs(u);
        const double count = floor((2 * a / near + b) * u + mean + 0.43);
        if (near >= 0.07 && v <= 0.9277 - 3.6224 / (b - 2)) return count;
        if (count < 0 || (near < 0.013 && v > near)) continue;
        const double height = log(v * (1.1239 + 1.1328 / (b - 3.4)) / (a / (near * near) + b));
        if (height <= count * log(mean) - mean - lgamma(count + 1)) return count;
    }
}

__device__ inline double gamma_variate(double shape, unsigned long long pixel, unsigned k, unsigned m) {
    const double d = shape - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (unsigned block = GAMMA;; block++) {
        const Words words = philox(pixel, block, k, m);
        const double x = normal(uniform(words.a)), root = 1 + c * x, v = root * root * root;
        if (v > 0 && log(uniform(words.b)) < 0.5 * x * x + d - d * v + d * log(v)) return d * v;
    }
}

extern "C" __global__ void expose(const REAL* __restrict__ expected, const REAL* __restrict__ offset,
                                  const REAL* __restrict__ gain, const REAL* __restrict__ read_noise,
                                  const REAL* __restrict__ settings, int seed_a, int seed_b, REAL* __restrict__ counts,
                                  int n, int p) {
    const double em_gain = settings[0], spurious = settings[1], low = settings[2], high = settings[3];
    const bool rounded = settings[4] > 0;
    const long long step = (long long)(gridDim.x) * blockDim.x, total = (long long)(n)*p;
    for (long long i = (long long)(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
        const int j = int(i % p);
        const Words words = philox(i, 0, seed_a, seed_b);
        double electrons = poisson(expected[i] + spurious, words, i, seed_a, seed_b);
        if (em_gain > 0 && electrons > 0) electrons = em_gain * gamma_variate(electrons, i, seed_a, seed_b);
        double value = (electrons + read_noise[j] * normal(uniform(words.c))) / gain[j] + offset[j];
        if (rounded) value = rint(value);
        counts[i] = value < low ? low : value > high ? high : value;
    }
}
