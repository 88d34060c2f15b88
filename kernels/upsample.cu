// Every pixel becomes depth x size x size equal ones, and the channels of `skip` are appended; and the gradient of both.

typedef long long index_t;

extern "C" __global__ void upsample(const REAL* __restrict__ x, const REAL* __restrict__ skip, int depth, int size,
                                    REAL* __restrict__ out, int n, int f, int h, int w, int c, int o, int p, int q, int d,
                                    int e) {
    const index_t total = index_t(n) * o * p * q * e;
    for (index_t t = index_t(blockIdx.x) * blockDim.x + threadIdx.x; t < total; t += index_t(gridDim.x) * blockDim.x) {
        const index_t pixel = t / e, plane = pixel / q / p;
        const int channel = int(t % e);
        if (channel >= c) out[t] = skip[pixel * d + channel - c];
        else out[t] = x[(((plane / o * f + plane % o / depth) * h + pixel / q % p / size) * w + pixel % q / size) * c + channel];
    }
}

extern "C" __global__ void upsample_gradient(const REAL* __restrict__ gradient, int depth, int size, REAL* __restrict__ dx,
                                             REAL* __restrict__ dskip, int n, int o, int p, int q, int e, int f, int h,
                                             int w, int c, int d) {
    const index_t step = index_t(gridDim.x) * blockDim.x, start = index_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for (index_t t = start; t < index_t(n) * f * h * w * c; t += step) {
        const index_t pixel = t / c, plane = pixel / w / h;
        const REAL* from =
            gradient + (((plane / f * o + plane % f * depth) * p + pixel / w % h * size) * q + pixel % w * size) * e + t % c;
        REAL sum = REAL(0);
        for (int i = 0; i < depth; i++)
            for (int j = 0; j < size; j++)
                for (int k = 0; k < size; k++) sum += from[((index_t(i) * p + j) * q + k) * e];
        dx[t] = sum;
    }
    for (index_t t = start; t < index_t(n) * o * p * q * d; t += step) dskip[t] = gradient[t / d * e + c + t % d];
}
