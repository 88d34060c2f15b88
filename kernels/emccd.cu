// EMCCD negative log-likelihood and slope; smlmcore/loss/emccd.py holds the formulas.  In double precision whatever REAL
// is: the series and the quadrature lose too many digits of single precision.

// Gauss and Legendre's rule of 40 nodes, which lie symmetrically: the upper half.
__device__ const double NODES[20] = {
    0.038772417506050816, 0.11608407067525521, 0.19269758070137111, 0.26815218500725369,
    0.34199409082575849, 0.41377920437160498, 0.4830758016861787, 0.54946712509512818,
    0.61255388966798019, 0.67195668461417957, 0.7273182551899271, 0.77830565142651942,
    0.8246122308333117, 0.86595950321225945, 0.90209880696887423, 0.93281280827867652,
    0.95791681921379168, 0.9772599499837743, 0.99072623869945697, 0.99823770971055914};
__device__ const double WEIGHTS[20] = {
    0.077505947978424514, 0.077039818164247625, 0.076110361900625978, 0.074723169057967942,
    0.07288658239580377, 0.070611647391286558, 0.067912045815233676, 0.064804013456600765,
    0.061306242492928834, 0.057439769099391288, 0.053227846983936698, 0.048695807635071933,
    0.043870908185673213, 0.03878216797447219, 0.033460195282547893, 0.027937006980023434,
    0.022245849194166653, 0.016421058381906828, 0.010498284531153814, 0.004521277098536349};

// exp(-z) I0(z) and 2 exp(-z) I1(z) / z for z = 2 sqrt(t): the series in t, or that in 1/z.
__device__ inline void bessel(double t, double& zeroth, double& first) {
    const double z = 2 * sqrt(t);
    zeroth = first = 1;
    if (z < 24) {
        double term = 1;
        for (double j = 1; term > 1e-17 * zeroth; j += 1) {
            term *= t / (j * j);
            zeroth += term;
            first += term / (j + 1);
        }
        const double scale = exp(-z);
        zeroth *= scale, first *= scale;
        return;
    }
    double term0 = 1, term1 = 1;
    for (int k = 1; k < 30; k++) {
        const double odd = (2.0 * k - 1) * (2.0 * k - 1) / (8 * k * z);
        term0 *= odd;
        term1 *= odd - 1 / (2 * k * z);
        zeroth += term0;
        first += term1;
    }
    const double scale = 0.3989422804014327 / sqrt(z);
    zeroth *= scale, first *= 2 * scale / z;
}

// Logarithm of the integrand, but for powers of y and mu.
__device__ inline double height(double y, double root, double d, double v) {
    const double s = sqrt(y) - root;
    return -s * s - (d - y) * (d - y) / (2 * v);
}

// Where the integrand falls to exp(-36) of its peak, walking in growing steps; not below 0.
__device__ inline double edge(double peak, double step, double root, double d, double v) {
    const double least = height(peak, root, d, v) - 36;
    double y = peak;
    while (y > 0 || step > 0) {
        y = max(peak + step, 0.0);
        if (height(y, root, d, v) < least) break;
        step *= 1.25;
    }
    return y;
}

__device__ inline void pixel(double mu, double d, double v, double& nll, double& slope) {
    const double root = sqrt(mu);
    double zeroth, first;
    if (v == 0) {
        if (d <= 0) {
            nll = mu, slope = 1;
            return;
        }
        bessel(mu * d, zeroth, first);
        nll = (sqrt(d) - root) * (sqrt(d) - root) - log(mu * first), slope = 1 - zeroth / (mu * first);
        return;
    }
    double low = 0, high = max(d, 0.0) + mu + 1;
    for (int i = 0; i < 60; i++) {  // the derivative of the logarithm falls from infinity
        const double middle = 0.5 * (low + high);
        if (root / sqrt(middle) - 1 - (middle - d) / v > 0) low = middle;
        else high = middle;
    }
    const double peak = 0.5 * (low + high), width = 1 / sqrt(1 / v + 0.5 * root / (peak * sqrt(peak)));
    low = edge(peak, -2 * width, root, d, v), high = edge(peak, 2 * width, root, d, v);
    const double none = -mu - d * d / (2 * v), at = height(peak, root, d, v), top = at > none ? at : none;
    const double half = 0.5 * (high - low);
    double p = 0, q = 0;
    for (int k = 0; k < 40; k++) {
        const double y = low + half * ((k < 20 ? -NODES[19 - k] : NODES[k - 20]) + 1);
        bessel(mu * y, zeroth, first);
        const double weight = half * WEIGHTS[k < 20 ? 19 - k : k - 20] * exp(height(y, root, d, v) - top);
        p += weight * mu * first;
        q += weight * zeroth;
    }
    const double total = p + exp(none - top);
    nll = 0.5 * (1.8378770664093453 + log(v)) - top - log(total), slope = 1 - q / total;
}

extern "C" __global__ void emccd(const REAL* __restrict__ prediction, const REAL* __restrict__ data,
                                 const REAL* __restrict__ variance, REAL* __restrict__ nll, REAL* __restrict__ slope,
                                 int n) {
    const double infinity = -log(0.0);
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const double mu = prediction[i], d = data[i], v = variance[i];
        double value = 0, gradient = 0;
        if (!isnan(d) && v < infinity) {
            pixel(mu > 0 ? mu : 0.0, d, v, value, gradient);
            if (mu < 0) value = infinity;
        }
        nll[i] = value;
        slope[i] = gradient;
    }
}
