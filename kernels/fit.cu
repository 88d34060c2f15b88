// Direct fits, one image for each warp: fit.cuh has the algorithm and says why.  H, W: compile-time size of an image.
// A PSF joins with a functor (fit.cuh says what it must have), a kernel at the end of this file, and a line in smlmcore/fit/cuda.py.
#include "fit.cuh"
#include "astigmatic.cuh"
#include "elliptic2d.cuh"
#include "gaussian2d.cuh"
#include "spline.cuh"

// What all separable Gaussians share: tables of both axes, the value, and four derivatives.
struct Separable {
    struct Tables {
        Axis x[W], y[H];
    };
    static __device__ void fill(REAL x, REAL y, REAL sigma_x, REAL sigma_y, Tables& t, int lane) {
        for (int i = lane; i < W + H; i += 32)
            if (i < W) t.x[i] = gaussian_axis(i, x, sigma_x);
            else t.y[i - W] = gaussian_axis(i - W, y, sigma_y);
    }
};

struct Gaussian2D : Separable {  // x, y, photons, background, sigma
    static constexpr int P = 5;
    static __device__ void prepare(const REAL* theta, const REAL*, Tables& t, int lane) {
        fill(theta[0], theta[1], theta[4], theta[4], t, lane);
    }
    static __device__ REAL pixel(const REAL* theta, const REAL*, const Tables& t, int p, REAL* d) {
        const Axis a = t.x[p % W], b = t.y[p / W];
        REAL value;
        separable_pixel(a, b, theta[2], theta[3], &value, d, d + 1, d + 2, d + 3);
        d[4] = theta[2] * (b.d_sigma * a.value + b.value * a.d_sigma);
        return value;
    }
};

struct Elliptic2D : Separable {  // x, y, photons, background, sigma_x, sigma_y
    static constexpr int P = 6;
    static __device__ void prepare(const REAL* theta, const REAL*, Tables& t, int lane) {
        fill(theta[0], theta[1], theta[4], theta[5], t, lane);
    }
    static __device__ REAL pixel(const REAL* theta, const REAL*, const Tables& t, int p, REAL* d) {
        const Axis a = t.x[p % W], b = t.y[p / W];
        REAL value;
        separable_pixel(a, b, theta[2], theta[3], &value, d, d + 1, d + 2, d + 3);
        d[4] = theta[2] * b.value * a.d_sigma;
        d[5] = theta[2] * b.d_sigma * a.value;
        return value;
    }
};

struct Astigmatic : Separable {  // x, y, z, photons, background; constants: calibration of x, then of y
    static constexpr int P = 5;
    static __device__ void prepare(const REAL* theta, const REAL* calibration, Tables& t, int lane) {
        const Width x = astigmatic_width(theta[2], calibration), y = astigmatic_width(theta[2], calibration + 5);
        fill(theta[0], theta[1], x.sigma, y.sigma, t, lane);
        // with the slopes of the widths, the tables have derivatives to z
        for (int i = lane; i < W; i += 32) t.x[i].d_sigma *= x.d_z;
        for (int i = (lane + 32 - W % 32) % 32; i < H; i += 32) t.y[i].d_sigma *= y.d_z;
    }
    static __device__ REAL pixel(const REAL* theta, const REAL*, const Tables& t, int p, REAL* d) {
        const Axis a = t.x[p % W], b = t.y[p / W];
        REAL value;
        separable_pixel(a, b, theta[3], theta[4], &value, d, d + 1, d + 3, d + 4);
        d[2] = theta[3] * (b.d_sigma * a.value + b.value * a.d_sigma);
        return value;
    }
};

struct Rotated2D {  // x, y, photons, background, sigma_x, sigma_y, angle
    static constexpr int P = 7;
    struct Tables {
        Rotated gaussian;
    };
    static __device__ void prepare(const REAL* theta, const REAL*, Tables& t, int lane) {
        if (lane == 0) t.gaussian = rotated_gaussian(theta[0], theta[1], theta[4], theta[5], theta[6]);
    }
    static __device__ REAL pixel(const REAL* theta, const REAL*, const Tables& t, int p, REAL* d) {
        const Moments m = rotated_moments(p / W, p % W, t.gaussian);
        const RotatedPartials along = rotated_partials(m, t.gaussian, theta[4], theta[5]);
        d[0] = theta[2] * along.x;
        d[1] = theta[2] * along.y;
        d[2] = m.one;
        d[3] = REAL(1);
        d[4] = theta[2] * along.sigma_x;
        d[5] = theta[2] * along.sigma_y;
        d[6] = theta[2] * along.angle;
        return theta[3] + theta[2] * m.one;
    }
};

struct Spline {  // x, y, z, photons, background; constants: size (3) and geometry (4) of the table, its coefficients
    static constexpr int P = 5;
    using Tables = SplineColumns;
    static __device__ void prepare(const REAL* theta, const REAL* constants, Tables& t, int lane) {
        const SplineTable table = {constants + 7, constants + 3, int(constants[0]), int(constants[1]), int(constants[2])};
        spline_columns(table, theta[0], theta[1], theta[2], t, lane, 32);
    }
    static __device__ REAL pixel(const REAL* theta, const REAL*, const Tables& t, int p, REAL* d) {
        const SplinePixel s = spline_pixel(t, p);
        d[0] = theta[3] * s.d_x;
        d[1] = theta[3] * s.d_y;
        d[2] = theta[3] * s.d_z;
        d[3] = s.f;
        d[4] = REAL(1);
        return theta[4] + theta[3] * s.f;
    }
};

constexpr int WARPS = 4, PAIR = 2;  // of a block; two where the tables of a large image fill the shared memory
// At once on a multiprocessor: leaves registers for all sums of five parameters, and of more.
constexpr int BLOCKS = sizeof(REAL) == 4 ? 4 : 2, FEWER = sizeof(REAL) == 4 ? 3 : 2;

// variance: none (m = 0), one map (m = 1) or one for each image (m = n); limits: lower, upper, step, factor.
template <class PSF, int COUNT = WARPS>
__device__ void fit_images(const REAL* spots, const REAL* variance, const REAL* initial, const REAL* limits,
                           const REAL* constants, const int* fixed, const REAL* tolerance, int max_iterations,
                           REAL* parameters, REAL* errors, REAL* log_likelihood, REAL* chi2, int* status,
                           int* iterations, int n, int m) {
    constexpr int P = PSF::P;
    __shared__ Shared<PSF> shared[COUNT];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Limits<P> given = {limits, limits + P, limits + 2 * P, limits + 3 * P, fixed};
    for (int i = blockIdx.x * COUNT + warp; i < n; i += gridDim.x * COUNT) {
        const REAL* map = m ? variance + (size_t)(m == 1 ? 0 : i) * H * W : nullptr;
        fit_image<PSF>(spots + (size_t)i * H * W, map, initial + (size_t)i * P, constants, given, max_iterations,
                       tolerance[0], shared[warp], lane, parameters + (size_t)i * P, errors + (size_t)i * P,
                       log_likelihood + i, chi2 + i, status + i, iterations + i);
        __syncwarp();
    }
}

// What every kernel is called with, and passes on.
#define FIT_ARGUMENTS                                                                                                   \
    const REAL *__restrict__ spots, const REAL *__restrict__ variance, const REAL *__restrict__ initial,               \
        const REAL *__restrict__ limits, const REAL *__restrict__ constants, const int *__restrict__ fixed,            \
        const REAL *__restrict__ tolerance, int max_iterations, REAL *__restrict__ parameters,                         \
        REAL *__restrict__ errors, REAL *__restrict__ log_likelihood, REAL *__restrict__ chi2,                         \
        int *__restrict__ status, int *__restrict__ iterations, int n, int m, int k
#define FIT_NAMES                                                                                                       \
    spots, variance, initial, limits, constants, fixed, tolerance, max_iterations, parameters, errors, log_likelihood, \
        chi2, status, iterations, n, m

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) fit_gaussian2d(FIT_ARGUMENTS) {
    fit_images<Gaussian2D>(FIT_NAMES);
}
extern "C" __global__ void __launch_bounds__(32 * WARPS, FEWER) fit_elliptic2d(FIT_ARGUMENTS) {
    fit_images<Elliptic2D>(FIT_NAMES);
}
extern "C" __global__ void __launch_bounds__(32 * WARPS, FEWER) fit_astigmatic(FIT_ARGUMENTS) {
    fit_images<Astigmatic>(FIT_NAMES);
}
extern "C" __global__ void __launch_bounds__(32 * WARPS, FEWER) fit_rotated2d(FIT_ARGUMENTS) {
    fit_images<Rotated2D>(FIT_NAMES);
}
extern "C" __global__ void __launch_bounds__(32 * PAIR, 2 * FEWER) fit_spline(FIT_ARGUMENTS) {
    fit_images<Spline, PAIR>(FIT_NAMES);
}
