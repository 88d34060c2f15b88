// Maximum over windows of depth x size x size, channels-last, and its gradient, which goes to the first maximum.

typedef long long index_t;

extern "C" __global__ void max_pool(const REAL* __restrict__ x, int depth, int size, REAL* __restrict__ out,
                                    int n, int f, int h, int w, int c, int o, int p, int q) {
    const index_t total = index_t(n) * o * p * q * c;
    for (index_t t = index_t(blockIdx.x) * blockDim.x + threadIdx.x; t < total; t += index_t(gridDim.x) * blockDim.x) {
        const index_t pixel = t / c, plane = pixel / q / p;
        const REAL* from = x + (((plane / o * f + plane % o * depth) * h + pixel / q % p * size) * w + pixel % q * size) * c + t % c;
        REAL value = from[0];
        for (int i = 0; i < depth; i++)
            for (int j = 0; j < size; j++)
                for (int k = 0; k < size; k++) {
                    const REAL other = from[((index_t(i) * h + j) * w + k) * c];
                    if (!(other <= value)) value = other;
                }
        out[t] = value;
    }
}

// One thread per input element: it receives the gradient if no earlier element of its window equals the maximum.
extern "C" __global__ void max_pool_gradient(const REAL* __restrict__ x, const REAL* __restrict__ out,
                                             const REAL* __restrict__ gradient, int depth, int size, REAL* __restrict__ dx,
                                             int n, int f, int h, int w, int c, int o, int p, int q) {
    const index_t total = index_t(n) * f * h * w * c;
    for (index_t t = index_t(blockIdx.x) * blockDim.x + threadIdx.x; t < total; t += index_t(gridDim.x) * blockDim.x) {
        const index_t pixel = t / c, plane = pixel / w / h;
        const int a = int(plane % f), b = int(pixel / w % h), e = int(pixel % w), z = a / depth, y = b / size, s = e / size;
        REAL value = REAL(0);
        if (z < o && y < p && s < q) {
            const index_t to = (((plane / f * o + z) * p + y) * q + s) * c + t % c;
            const REAL* from = x + (((plane / f * f + z * depth) * h + y * size) * w + s * size) * c + t % c;
            const int own = ((a % depth) * size + b % size) * size + e % size;
            bool first = x[t] == out[to];
            for (int k = 0; k < own && first; k++)
                first = from[((index_t(k / size / size) * h + k / size % size) * w + k % size) * c] != out[to];
            if (first) value = gradient[to];
        }
        dx[t] = value;
    }
}
