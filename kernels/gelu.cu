// Gaussian error linear unit, y = x Phi(x), and its slope Phi(x) + x phi(x).  Phi through erfc: exact in the left tail.

extern "C" __global__ void gelu(const REAL* __restrict__ x, REAL* __restrict__ y, REAL* __restrict__ slope, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const REAL v = x[i];
        const REAL below = REAL(0.5) * erfc(REAL(-0.7071067811865476) * v);
        const REAL density = REAL(0.3989422804014327) * exp(REAL(-0.5) * v * v);
        y[i] = v * below;
        slope[i] = below + v * density;
    }
}
