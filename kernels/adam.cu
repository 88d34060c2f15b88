// One step of Adam in one pass; settings are b1, 1 - b1, b2, 1 - b2, 1 / (1 - b1^t), 1 / (1 - b2^t) and eps.

extern "C" __global__ void adam(const REAL* __restrict__ g, const REAL* __restrict__ m, const REAL* __restrict__ v,
                                const REAL* __restrict__ settings, REAL* __restrict__ step, REAL* __restrict__ new_m,
                                REAL* __restrict__ new_v, int n) {
    const REAL b1 = settings[0], c1 = settings[1], b2 = settings[2], c2 = settings[3];
    const REAL m_scale = settings[4], v_scale = settings[5], eps = settings[6];
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const REAL a = b1 * m[i] + c1 * g[i], b = b2 * v[i] + c2 * (g[i] * g[i]);
        new_m[i] = a;
        new_v[i] = b;
        step[i] = m_scale * a / (sqrt(v_scale * b) + eps);
    }
}
