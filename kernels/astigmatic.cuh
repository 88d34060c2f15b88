// The width of an astigmatic PSF along one axis as a function of z.

struct Width {
    REAL sigma, d_z;
};

// calibration: sigma0, gamma, depth, a, b of one axis (smlmcore/psf/astigmatic.py).
__device__ inline Width astigmatic_width(REAL z, const REAL* calibration) {
    const REAL a = calibration[3], b = calibration[4], u = (z - calibration[1]) / calibration[2];
    const REAL sigma = calibration[0] * sqrt(REAL(1) + u * u * (REAL(1) + u * (a + u * b)));
    const REAL slope = u * (REAL(2) + u * (REAL(3) * a + REAL(4) * b * u));
    return {sigma, REAL(0.5) * calibration[0] * calibration[0] / sigma * slope / calibration[2]};
}
