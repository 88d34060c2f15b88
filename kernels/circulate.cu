// Circular convolution along one axis: out[o, i] = sum over j of k[b, i - j] a[o, j], a thread for each element of out.
// The lines o are in the order of the kernels b, equally many for each: smlmcore/interpolate/fourier.py.

extern "C" __global__ void fourier_circulate(const REAL* __restrict__ a, const REAL* __restrict__ k,
                                             REAL* __restrict__ out, int o, int n, int i, int b) {
    const long long count = (long long)o * n * i, step = (long long)gridDim.x * blockDim.x;
    for (long long s = (long long)blockIdx.x * blockDim.x + threadIdx.x; s < count; s += step) {
        const long long line = s / ((long long)n * i);
        const int row = int(s / i % n), column = int(s % i);
        const REAL* kernel = k + line / (o / b) * n;
        const REAL* source = a + line * n * i + column;
        REAL total = 0;
        for (int j = 0; j < n; j++) total += kernel[row >= j ? row - j : row - j + n] * source[(long long)j * i];
        out[s] = total;
    }
}
