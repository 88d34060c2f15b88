// Squared losses and Gaussian likelihoods, value and slope; smlmcore/loss/pixel.py holds the formulas.

enum Kind { SQUARED, WEIGHTED, CONSTANT, POISSON };

extern "C" __global__ void pixel_loss(const REAL* __restrict__ prediction, const REAL* __restrict__ data,
                                      const REAL* __restrict__ variance, int kind, REAL* __restrict__ value,
                                      REAL* __restrict__ slope, int n) {
    const REAL least = REAL(1e-6), infinity = -log(REAL(0));
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const REAL mu = prediction[i], d = data[i], v = variance[i], r = d - mu;
        const REAL w = kind == SQUARED ? REAL(1) : max(kind == CONSTANT ? v : mu + v, least);
        const REAL inverse = 1 / w, square = r * r * inverse;
        REAL nats = REAL(0.5) * square, gradient = -r * inverse;
        if (kind >= CONSTANT) nats += REAL(0.5) * (REAL(1.8378770664093453) + log(w));
        if (kind == POISSON && w > least) gradient += REAL(0.5) * (1 - square) * inverse;
        const bool masked = isnan(d) || !(v < infinity);
        value[i] = masked ? REAL(0) : nats;
        slope[i] = masked ? REAL(0) : gradient;
    }
}
