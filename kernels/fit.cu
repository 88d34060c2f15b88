// Direct fits, one image for each warp: fit.cuh has the algorithm and says why.  H, W: compile-time size of an image.
#include "fit.cuh"
#include "gaussian2d.cuh"

struct Gaussian2D {  // x, y, photons, background, sigma
    static constexpr int P = 5;
    struct Tables {
        Axis x[W], y[H];
    };
    static __device__ void prepare(const REAL* theta, Tables& t, int lane) {
        for (int i = lane; i < W + H; i += 32)
            if (i < W) t.x[i] = gaussian_axis(i, theta[0], theta[4]);
            else t.y[i - W] = gaussian_axis(i - W, theta[1], theta[4]);
    }
    static __device__ REAL pixel(const REAL* theta, const Tables& t, int p, REAL* d) {
        const Axis a = t.x[p % W], b = t.y[p / W];
        const REAL photons = theta[2];
        d[0] = photons * b.value * a.d_centre;
        d[1] = photons * b.d_centre * a.value;
        d[2] = b.value * a.value;
        d[3] = REAL(1);
        d[4] = photons * (b.d_sigma * a.value + b.value * a.d_sigma);
        return theta[3] + photons * d[2];
    }
};

constexpr int WARPS = 4;
constexpr int BLOCKS = sizeof(REAL) == 4 ? 4 : 2;  // at once on a multiprocessor: leaves registers for all sums

// variance: none (m = 0), one map (m = 1) or one for each image (m = n); limits: lower, upper, step, factor.
template <class PSF>
__device__ void fit_images(const REAL* spots, const REAL* variance, const REAL* initial, const REAL* limits,
                           const int* fixed, const REAL* tolerance, int max_iterations, REAL* parameters, REAL* errors,
                           REAL* log_likelihood, REAL* chi2, int* status, int* iterations, int n, int m) {
    constexpr int P = PSF::P;
    __shared__ typename PSF::Tables tables[WARPS];
    __shared__ REAL exchange[WARPS][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Limits<P> given = {limits, limits + P, limits + 2 * P, limits + 3 * P, fixed};
    for (int i = blockIdx.x * WARPS + warp; i < n; i += gridDim.x * WARPS) {
        const REAL* map = m ? variance + (size_t)(m == 1 ? 0 : i) * H * W : nullptr;
        fit_image<PSF>(spots + (size_t)i * H * W, map, initial + (size_t)i * P, given, max_iterations, tolerance[0],
                       tables[warp], exchange[warp], lane, parameters + (size_t)i * P, errors + (size_t)i * P,
                       log_likelihood + i, chi2 + i, status + i, iterations + i);
        __syncwarp();
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
    fit_gaussian2d(const REAL* __restrict__ spots, const REAL* __restrict__ variance,
                   const REAL* __restrict__ initial, const REAL* __restrict__ limits, const int* __restrict__ fixed,
                   const REAL* __restrict__ tolerance, int max_iterations, REAL* __restrict__ parameters,
                   REAL* __restrict__ errors, REAL* __restrict__ log_likelihood, REAL* __restrict__ chi2,
                   int* __restrict__ status, int* __restrict__ iterations, int n, int m) {
    fit_images<Gaussian2D>(spots, variance, initial, limits, fixed, tolerance, max_iterations, parameters, errors,
                           log_likelihood, chi2, status, iterations, n, m);
}
