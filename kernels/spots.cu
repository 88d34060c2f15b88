// Matched filter and its peaks: one block for each frame; smlmcore/localize/finder.py has the formulas.

// Sum over the rows and columns around pixel (y, x) of a(distance in y) a(distance in x) f(pixel); nothing outside.
template <class F>
__device__ inline REAL around(int y, int x, int h, int w, const REAL* a, int k, F f) {
    REAL sum = 0;
    for (int i = max(0, y - k + 1); i < min(h, y + k); i++) {
        REAL row = 0;
        for (int j = max(0, x - k + 1); j < min(w, x + k); j++) row += a[j < x ? x - j : j - x] * f(i * w + j);
        sum += a[i < y ? y - i : i - y] * row;
    }
    return sum;
}

extern "C" __global__ void spot_scale(const REAL* __restrict__ variance, const REAL* __restrict__ weights,
                                      REAL* __restrict__ scale, int m, int h, int w, int k) {
    for (int map = blockIdx.x; map < m; map += gridDim.x) {
        const REAL* v = variance + size_t(map) * h * w;
        for (int p = threadIdx.x; p < h * w; p += blockDim.x) {
            REAL sum = 0;
            const int y = p / w, x = p % w;
            for (int i = max(0, y - k + 1); i < min(h, y + k); i++) {
                const REAL a = weights[i < y ? y - i : i - y];
                for (int j = max(0, x - k + 1); j < min(w, x + k); j++) {
                    const REAL b = a * weights[j < x ? x - j : j - x];
                    sum += b * b / v[i * w + j];
                }
            }
            scale[size_t(map) * h * w + p] = 1 / sqrt(sum);
        }
    }
}

extern "C" __global__ void spot_filter(const REAL* __restrict__ frames, const REAL* __restrict__ expected,
                                       const REAL* __restrict__ variance, const REAL* __restrict__ scale,
                                       const REAL* __restrict__ weights, REAL* __restrict__ snr, int n, int h, int w,
                                       int m, int k) {
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const size_t map = size_t((long long)i * m / n) * h * w;
        const REAL *d = frames + size_t(i) * h * w, *e = expected + map, *v = variance + map;
        for (int p = threadIdx.x; p < h * w; p += blockDim.x) {
            const REAL sum = around(p / w, p % w, h, w, weights, k, [&](int q) {
                const REAL rest = (d[q] - e[q]) / v[q];
                return isfinite(rest) ? rest : REAL(0);
            });
            snr[size_t(i) * h * w + p] = sum * scale[map + p];
        }
    }
}

extern "C" __global__ void spot_peaks(const REAL* __restrict__ snr, const REAL* __restrict__ threshold,
                                      int* __restrict__ count, int* __restrict__ at, int n, int h, int w, int most) {
    __shared__ int flags[128];
    for (int i = blockIdx.x; i < n; i += gridDim.x) {
        const REAL* s = snr + size_t(i) * h * w;
        int found = 0;  // the same in all threads
        for (int start = 0; start < h * w; start += blockDim.x) {
            const int p = start + threadIdx.x;
            int peak = p < h * w && s[p] > threshold[0];
            if (peak) {
                const int y = p / w, x = p % w;
                for (int dy = -1; dy <= 1; dy++)
                    for (int dx = -1; dx <= 1; dx++) {
                        if ((dy == 0 && dx == 0) || y + dy < 0 || y + dy >= h || x + dx < 0 || x + dx >= w) continue;
                        const REAL other = s[p + dy * w + dx];
                        const bool first = dy < 0 || (dy == 0 && dx < 0);
                        if (other > s[p] || (first && other == s[p])) peak = 0;
                    }
            }
            flags[threadIdx.x] = peak;
            __syncthreads();
            int before = 0, total = 0;
            for (int t = 0; t < blockDim.x; t++) {
                if (t < threadIdx.x) before += flags[t];
                total += flags[t];
            }
            if (peak && found + before < most) at[size_t(i) * most + found + before] = p;
            found += total;
            __syncthreads();
        }
        for (int t = min(found, most) + threadIdx.x; t < most; t += blockDim.x) at[size_t(i) * most + t] = -1;
        if (threadIdx.x == 0) count[i] = found;
    }
}
