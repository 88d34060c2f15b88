// A Gaussian component for each pixel: its loss against the emitters that are there (smlmcore/loss/mixture.py), and the
// components that are emitters (smlmcore/mapper/mixture.py).  A block computes an image.

#include "reduce.cuh"

constexpr int CHANNELS = 7, THREADS = 128;

__device__ inline REAL softplus(REAL x) { return max(x, REAL(0)) + log1p(exp(-abs(x))); }
__device__ inline REAL sigmoid(REAL x) { return REAL(1) / (REAL(1) + exp(-x)); }

struct Component {
    REAL p, q, height, mean[3], inverse[3];  // q = 1 - p; height: log of p over the standard deviations' product
};

__device__ inline Component component(const REAL* f, int row, int column) {
    const REAL logit = f[0] - REAL(4), reach = REAL(1.2);
    Component c;
    c.p = sigmoid(logit), c.q = sigmoid(-logit), c.height = -softplus(-logit);
    c.mean[0] = column + reach * tanh(REAL(0.5) * f[1]);
    c.mean[1] = row + reach * tanh(REAL(0.5) * f[2]);
    c.mean[2] = f[3];
    for (int i = 0; i < 3; i++) {
        const REAL spread = softplus(f[4 + i]) + REAL(0.01);
        c.inverse[i] = REAL(1) / spread;
        c.height -= log(spread);
    }
    return c;
}

// Logarithm of the component's density at an emitter, but for a constant, and the distances d in standard deviations.
__device__ inline REAL density(const Component& c, const REAL* emitter, REAL* d) {
    REAL t = c.height;
    for (int i = 0; i < 3; i++) {
        d[i] = (emitter[i] - c.mean[i]) * c.inverse[i];
        t -= REAL(0.5) * d[i] * d[i];
    }
    return t;
}

extern "C" __global__ void mixture_loss(const REAL* __restrict__ features, const REAL* __restrict__ truth,
                                        const int* __restrict__ start, REAL* __restrict__ nats, REAL* evidence,
                                        REAL* __restrict__ slope, int n, int h, int w, int e, int s) {
    __shared__ REAL scratch[32], tops[THREADS], sums[THREADS], shared[2];
    const REAL log_tau = REAL(1.8378770664093453);
    const int m = h * w, me = threadIdx.x;
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const REAL* f = features + i * m * CHANNELS;
        REAL total = 0, spread = 0;
        for (int k = me; k < m; k += blockDim.x) {
            const REAL p = sigmoid(f[k * CHANNELS] - REAL(4)), q = sigmoid(REAL(4) - f[k * CHANNELS]);
            total += p, spread += p * q;
        }
        total = block_sum(total, scratch), spread = block_sum(spread, scratch);
        if (me == 0) shared[0] = total, shared[1] = spread + REAL(1e-4);
        __syncthreads();
        total = shared[0], spread = shared[1];

        // how likely each emitter is: logarithm of a sum of exponentials over the pixels
        REAL value = 0;
        for (int j = start[i]; j < start[i + 1]; j++) {
            REAL top = -log(REAL(0)), sum = 0, d[3];
            top = -top;
            for (int k = me; k < m; k += blockDim.x) {
                const REAL t = density(component(f + k * CHANNELS, k / w, k % w), truth + 3 * j, d);
                if (t > top) sum = sum * exp(top - t) + REAL(1), top = t;
                else sum += exp(t - top);
            }
            tops[me] = top, sums[me] = sum;
            for (int step = THREADS / 2; step > 0; step /= 2) {
                __syncthreads();
                if (me < step && sums[me + step] > 0) {
                    const REAL a = tops[me], b = tops[me + step], larger = max(a, b);
                    sums[me] = (sums[me] > 0 ? sums[me] * exp(a - larger) : REAL(0)) + sums[me + step] * exp(b - larger);
                    tops[me] = larger;
                }
            }
            __syncthreads();
            const REAL log_sum = tops[0] + log(sums[0]) - log(total) - REAL(1.5) * log_tau;
            if (me == 0) evidence[j] = log_sum;
            value -= log_sum;
            __syncthreads();
        }
        const REAL count = start[i + 1] - start[i], over = (count - total) / spread;
        if (me == 0) nats[i] = value + REAL(0.5) * (count - total) * over + REAL(0.5) * (log_tau + log(spread));
        const REAL ds = count / total - over, dv = REAL(0.5) / spread - REAL(0.5) * over * over;

        for (int k = me; k < m; k += blockDim.x) {
            const REAL* own = f + k * CHANNELS;
            const Component c = component(own, k / w, k % w);
            REAL g[CHANNELS] = {}, d[3];
            for (int j = start[i]; j < start[i + 1]; j++) {
                const REAL r = exp(density(c, truth + 3 * j, d) - log(total) - REAL(1.5) * log_tau - evidence[j]);
                g[0] += r;
                for (int a = 0; a < 3; a++) {
                    g[1 + a] -= r * d[a] * c.inverse[a];
                    g[4 + a] -= r * (d[a] * d[a] - REAL(1)) * c.inverse[a];
                }
            }
            REAL* out = slope + (i * m + k) * CHANNELS;
            out[0] = c.q * (c.p * (ds + dv * (REAL(1) - 2 * c.p)) - g[0]);
            for (int a = 0; a < 3; a++) {
                const REAL bend = tanh(REAL(0.5) * own[1 + a]);
                out[1 + a] = a < 2 ? g[1 + a] * REAL(0.6) * (REAL(1) - bend * bend) : g[1 + a];
                out[4 + a] = g[4 + a] * sigmoid(own[4 + a]);
            }
        }
        __syncthreads();
    }
}

// Rows in the order of the pixels: first the threads count theirs, in runs of neighbouring pixels, then they write.
extern "C" __global__ void mixture_peaks(const REAL* __restrict__ features, const REAL* __restrict__ threshold,
                                         int* __restrict__ count, REAL* __restrict__ rows, int n, int h, int w,
                                         int most) {
    __shared__ int found[THREADS + 1];
    const int m = h * w, me = threadIdx.x, part = (m + THREADS - 1) / THREADS;
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const REAL* f = features + i * m * CHANNELS;
        REAL* out = rows + i * most * CHANNELS;
        for (int pass = 0; pass < 2; pass++) {
            int at = pass ? found[me] : 0;
            for (int k = me * part; k < min(m, (me + 1) * part); k++) {
                const REAL* own = f + k * CHANNELS;
                const REAL p = sigmoid(own[0] - REAL(4));
                if (!(p > REAL(0.5) * threshold[0])) continue;
                const int y = k / w, x = k % w;
                REAL box = 0;
                bool peak = true;
                for (int a = -1; a <= 1; a++)
                    for (int b = -1; b <= 1; b++) {
                        if (y + a < 0 || y + a >= h || x + b < 0 || x + b >= w) continue;
                        const REAL other = sigmoid(f[(k + a * w + b) * CHANNELS] - REAL(4));
                        box += other;
                        // of equal neighbours the first counts
                        if (other > p || (other == p && 3 * a + b < 0)) peak = false;
                    }
                if (!peak || !(box > threshold[0])) continue;
                if (pass && at < most) {
                    REAL* row = out + at * CHANNELS;
                    const Component c = component(own, y, x);
                    row[0] = c.mean[0], row[1] = c.mean[1], row[2] = REAL(2000) * exp(c.mean[2]);
                    for (int a = 0; a < 3; a++) row[3 + a] = softplus(own[4 + a]) + REAL(0.01);
                    row[5] *= row[2];
                    row[6] = min(box, REAL(1));
                }
                at++;
            }
            if (pass == 0) {
                found[me + 1] = at;
                __syncthreads();
                if (me == 0) {
                    found[0] = 0;
                    for (int k = 0; k < THREADS; k++) found[k + 1] += found[k];
                    count[i] = found[THREADS];
                }
                __syncthreads();
            }
        }
        for (int k = min(found[THREADS], most) * CHANNELS + me; k < most * CHANNELS; k += blockDim.x) out[k] = 0;
        __syncthreads();
    }
}
