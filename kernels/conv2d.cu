// Direct convolution, channels-last: out[p,q,d] = bias[d] + sum over k,l,c of x[p*stride+k-pad, q*stride+l-pad, c] * weight[k,l,c,d].
// One thread per output element; neighbouring threads differ in the last channel, so that weights and results are read
// and written side by side, and the pixel is the same for a warp.

typedef long long index_t;  // batches of large images have more than 2^31 elements

extern "C" __global__ void conv2d(const REAL* __restrict__ x, const REAL* __restrict__ weight,
                                  const REAL* __restrict__ bias, int stride, int pad, REAL* __restrict__ out,
                                  int n, int h, int w, int c, int k, int l, int d, int p, int q) {
    const index_t size = index_t(n) * p * q * d;
    for (index_t t = index_t(blockIdx.x) * blockDim.x + threadIdx.x; t < size; t += index_t(gridDim.x) * blockDim.x) {
        const int to = int(t % d);
        const index_t pixel = t / d, image = pixel / q / p;
        const int left = int(pixel % q) * stride - pad, top = int(pixel / q % p) * stride - pad;
        REAL sum = bias[to];
        for (int i = max(0, -top); i < k && top + i < h; i++)
            for (int j = max(0, -left); j < l && left + j < w; j++) {
                const REAL* from = x + ((image * h + top + i) * w + left + j) * c;
                const REAL* tap = weight + index_t(i * l + j) * c * d + to;
                for (int m = 0; m < c; m++) sum += from[m] * tap[index_t(m) * d];
            }
        out[t] = sum;
    }
}

// The pixel (y, x) receives the gradient of output row p through the filter row k = y + pad - stride*p.
extern "C" __global__ void conv2d_input_gradient(const REAL* __restrict__ gradient, const REAL* __restrict__ weight,
                                                 int stride, int pad, REAL* __restrict__ out,
                                                 int n, int p, int q, int d, int k, int l, int c, int h, int w) {
    const index_t size = index_t(n) * h * w * c;
    for (index_t t = index_t(blockIdx.x) * blockDim.x + threadIdx.x; t < size; t += index_t(gridDim.x) * blockDim.x) {
        const int to = int(t % c);
        const index_t pixel = t / c, image = pixel / w / h;
        const int right = int(pixel % w) + pad, below = int(pixel / w % h) + pad;
        REAL sum = REAL(0);
        for (int i = below % stride; i < k && i <= below; i += stride) {
            const int row = (below - i) / stride;
            if (row >= p) continue;
            for (int j = right % stride; j < l && j <= right; j += stride) {
                const int column = (right - j) / stride;
                if (column >= q) continue;
                const REAL* from = gradient + ((image * p + row) * q + column) * d;
                const REAL* tap = weight + (index_t(i * l + j) * c + to) * d;
                for (int m = 0; m < d; m++) sum += from[m] * tap[m];
            }
        }
        out[t] = sum;
    }
}

// One block per (tap, input channel) and 32 output channels, a lane each; its warps share the pixels, and their sums are
// added in a fixed order: the same bits at every run.  The block after the last tap is the bias, with 1 for the pixel.
extern "C" __global__ void conv2d_weight_gradient(const REAL* __restrict__ x, const REAL* __restrict__ gradient,
                                                  int stride, int pad, REAL* __restrict__ weight,
                                                  REAL* __restrict__ bias,
                                                  int n, int h, int w, int c, int p, int q, int d, int k, int l) {
    __shared__ REAL sums[32][33];  // [warp][lane]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int tiles = (d + 31) / 32, taps = k * l * c;
    const index_t pixels = index_t(n) * p * q;
    for (index_t block = blockIdx.x; block < index_t(taps + 1) * tiles; block += gridDim.x) {
        const int tap = int(block / tiles), to = int(block % tiles) * 32 + lane;
        const int from = tap % c, top = tap / c / l - pad, left = tap / c % l - pad;
        REAL sum = REAL(0);
        if (to < d)
            for (index_t pixel = warp; pixel < pixels; pixel += warps) {
                const REAL g = gradient[pixel * d + to];
                const int row = int(pixel / q % p) * stride + top, column = int(pixel % q) * stride + left;
                if (tap == taps) sum += g;
                else if (row >= 0 && row < h && column >= 0 && column < w)
                    sum += g * x[((pixel / q / p * h + row) * w + column) * c + from];
            }
        sums[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && to < d) {
            for (int i = 1; i < warps; i++) sum += sums[i][lane];
            if (tap == taps) bias[to] = sum;
            else weight[index_t(tap) * d + to] = sum;
        }
        __syncthreads();
    }
}
