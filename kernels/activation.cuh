// Activations by number (see layers/activation.py): value and derivative.

__device__ __forceinline__ void activate(int activation, REAL v, REAL& y, REAL& slope) {
    if (activation == 0) y = v, slope = REAL(1);
    else if (activation == 1) y = v <= REAL(0) ? REAL(0) : v, slope = v > REAL(0) ? REAL(1) : REAL(0);
    else if (activation == 2) {  // Phi through erfc: exact in the left tail
        const REAL below = REAL(0.5) * erfc(REAL(-0.7071067811865476) * v);
        y = v * below, slope = below + v * REAL(0.3989422804014327) * exp(REAL(-0.5) * v * v);
    } else if (activation == 3) {
        const REAL s = REAL(1) / (REAL(1) + exp(-v));
        y = v * s, slope = s + v * s * (REAL(1) - s);
    } else if (activation == 4) y = v > REAL(0) ? v : REAL(0.01) * v, slope = v > REAL(0) ? REAL(1) : REAL(0.01);
    else y = v > REAL(0) ? v : expm1(v), slope = v > REAL(0) ? REAL(1) : exp(v);
}
