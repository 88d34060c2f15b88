// Pixel-integrated Gaussian along one axis.

struct Axis {
    REAL value, d_centre, d_sigma;
};

// Integral over pixel i of a normal density at `centre` with standard deviation `sigma`, and its two derivatives.
__device__ inline Axis gaussian_axis(int i, REAL centre, REAL sigma) {
    const REAL q = REAL(1) / sigma;
    const REAL u = (REAL(i) - REAL(0.5) - centre) * q, v = (REAL(i) + REAL(0.5) - centre) * q;
    const REAL pu = REAL(0.3989422804014327) * exp(REAL(-0.5) * u * u);
    const REAL pv = REAL(0.3989422804014327) * exp(REAL(-0.5) * v * v);
    const REAL half_sqrt = REAL(0.7071067811865476);
    return {REAL(0.5) * (erf(v * half_sqrt) - erf(u * half_sqrt)), (pu - pv) * q, (u * pu - v * pv) * q};
}

// Tables of both axes in shared memory; all threads of the block take part and meet at the end.
template <int HEIGHT, int WIDTH>
__device__ inline void gaussian_tables(REAL x, REAL y, REAL sigma_x, REAL sigma_y, Axis* along_x, Axis* along_y) {
    for (int i = threadIdx.x; i < WIDTH + HEIGHT; i += blockDim.x)
        if (i < WIDTH) along_x[i] = gaussian_axis(i, x, sigma_x);
        else along_y[i - WIDTH] = gaussian_axis(i - WIDTH, y, sigma_y);
    __syncthreads();
}

// One pixel of a separable Gaussian: value, derivatives to x, y, photons and background.
__device__ inline void separable_pixel(Axis a, Axis b, REAL photons, REAL background, REAL* value, REAL* d_x, REAL* d_y,
                                       REAL* d_photons, REAL* d_background) {
    *value = background + photons * b.value * a.value;
    *d_x = photons * b.value * a.d_centre;
    *d_y = photons * b.d_centre * a.value;
    *d_photons = b.value * a.value;
    *d_background = REAL(1);
}
