// A 2-D Gaussian rotated against the pixels, integrated over a pixel by 3 x 3 Gauss-Legendre points.

struct Rotated {
    REAL x, y, ux, uy, vx, vy, density;  // centre; u = ux dx + uy dy and v likewise, in units of the sigmas
};

// Moments of the density over a pixel: of 1, u, v, u*u, v*v, u*v.  All derivatives are linear in them.
struct Moments {
    REAL one, u, v, uu, vv, uv;
};

__device__ inline Rotated rotated_gaussian(REAL x, REAL y, REAL sigma_x, REAL sigma_y, REAL angle) {
    const REAL c = cos(angle), s = sin(angle);
    return {x, y, c / sigma_x, s / sigma_x, -s / sigma_y, c / sigma_y, REAL(0.15915494309189535) / (sigma_x * sigma_y)};
}

__device__ inline Moments rotated_moments(int row, int column, const Rotated& r) {
    const REAL far = REAL(0.3872983346207417);  // points at -far, 0, far of weights 5/18, 8/18, 5/18
    Moments m = {0, 0, 0, 0, 0, 0};
#pragma unroll 1  // nine exponentials side by side would take more registers than there are
    for (int j = -1; j <= 1; j++) {
        const REAL dy = REAL(row) + REAL(j) * far - r.y, weight = (j ? REAL(5) : REAL(8)) / REAL(18) * r.density;
#pragma unroll
        for (int i = -1; i <= 1; i++) {
            const REAL dx = REAL(column) + REAL(i) * far - r.x;
            const REAL u = r.ux * dx + r.uy * dy, v = r.vx * dx + r.vy * dy;
            const REAL f = weight * (i ? REAL(5) : REAL(8)) / REAL(18) * exp(REAL(-0.5) * (u * u + v * v));
            m.one += f;
            m.u += f * u;
            m.v += f * v;
            m.uu += f * u * u;
            m.vv += f * v * v;
            m.uv += f * u * v;
        }
    }
    return m;
}

struct RotatedPartials {
    REAL x, y, sigma_x, sigma_y, angle;  // per photon
};

__device__ inline RotatedPartials rotated_partials(const Moments& m, const Rotated& r, REAL sigma_x, REAL sigma_y) {
    return {r.ux * m.u + r.vx * m.v, r.uy * m.u + r.vy * m.v, (m.uu - m.one) / sigma_x, (m.vv - m.one) / sigma_y,
            (sigma_x / sigma_y - sigma_y / sigma_x) * m.uv};
}
