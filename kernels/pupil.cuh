// Waves behind a pupil and their transforms; smlmcore/psf/pupil_kernels.py holds the formulas.
// H, W: compile-time size of the image, M: samples across the pupil.

struct Complex {
    REAL re, im;
};

__device__ inline Complex operator*(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
__device__ inline Complex operator*(REAL a, Complex b) { return {a * b.re, a * b.im}; }
__device__ inline Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
__device__ inline Complex conj(Complex a) { return {a.re, -a.im}; }
__device__ inline REAL area(Complex a, Complex b) { return a.re * b.im - a.im * b.re; }  // Im(a* b)

__device__ inline Complex unit(REAL angle) {
    Complex z;
    sincos(angle, &z.im, &z.re);
    return z;
}

// exp(i angle j) for j = 0, 1, ... by multiplication, from a fresh value every 8 steps: errors stay at rounding.
struct Turn {
    REAL angle, first;
    Complex now, step;
    __device__ Turn(REAL angle, REAL first) : angle(angle), first(first), now(unit(angle * first)), step(unit(angle)) {}
    __device__ Complex at(int j) {
        if (j % 8 == 0) now = unit(angle * (first + REAL(j)));
        const Complex value = now;
        now = now * step;
        return value;
    }
};

constexpr int K = (M + 1) / 2;
constexpr int ROWS = 4;  // of the pupil, that are in shared memory together
constexpr int THREADS = 128;

// Columns of an image that a block does together, so that `fields` numbers for each row of the pupil fit beside the rest.
__device__ constexpr int columns_for(int fields) {
    return (fields * M + H) * 8 * 2 * (int)sizeof(REAL) <= (24 << 10) ? 8
           : (fields * M + H) * 4 * 2 * (int)sizeof(REAL) <= (24 << 10) ? 4 : 2;
}

__device__ inline REAL sample(int j) { return REAL(j) - REAL(0.5) * REAL(M - 1); }
__device__ inline REAL pixel(int i, int size) { return REAL(i) - REAL(0.5) * REAL(size - 1); }

// One emitter, its place counted from the image's centre.
struct Emitter {
    REAL x, y, z, step, floor;
    const REAL* axial;
    __device__ Emitter(REAL x, REAL y, REAL z, const REAL* optics, const REAL* axial)
        : x(x - REAL(0.5) * REAL(W - 1)), y(y - REAL(0.5) * REAL(H - 1)), z(z), step(optics[0]), floor(optics[1]),
          axial(axial) {}
    __device__ int outwards(int v, int u) const { return abs(2 * v - M + 1) / 2 * K + abs(2 * u - M + 1) / 2; }
    __device__ Complex phase(int v, int u) const {
        const int at = outwards(v, u);
        const REAL decay = axial[K * K + at], fall = decay != 0 ? exp(-decay * max(z, floor)) : REAL(1);
        return fall * unit(axial[at] * z - step * (sample(u) * x + sample(v) * y));
    }
    // d/dz of the exponent is i times this
    __device__ Complex slope(int v, int u) const {
        const int at = outwards(v, u);
        return {axial[at], z > floor ? axial[K * K + at] : REAL(0)};
    }
};

// t[v][column] = sum_u Q(v, u) exp(i step u x) for the columns from `first` on, Q = field times phase of one component;
// with DERIVATIVES also of u Q (t[1]) and of slope Q (t[2]).  All threads of the block take part and meet at the end.
template <int COLUMNS, bool DERIVATIVES>
__device__ void along_rows(const REAL* pupil, const Emitter& e, int first, Complex (*q)[M], Complex (*t)[M][COLUMNS]) {
    constexpr int SHARE = THREADS / (ROWS * COLUMNS), LENGTH = (M + SHARE - 1) / SHARE;  // threads for one sum
    const int part = threadIdx.x % SHARE, column = threadIdx.x / SHARE % COLUMNS, row = threadIdx.x / (SHARE * COLUMNS);
    const int begin = part * LENGTH, end = min(M, begin + LENGTH);
    for (int v0 = 0; v0 < M; v0 += ROWS) {
        for (int i = threadIdx.x; i < ROWS * M; i += THREADS) {
            const int v = v0 + i / M, u = i % M;
            q[i / M][i % M] = v < M ? Complex{pupil[v * M + u], pupil[M * M + v * M + u]} * e.phase(v, u) : Complex{0, 0};
        }
        __syncthreads();
        const int v = v0 + row;
        Complex sum = {0, 0}, moved = {0, 0}, deeper = {0, 0};
        Turn turn(e.step * pixel(first + column, W), sample(begin));
        for (int u = begin; u < end; u++) {
            const Complex term = q[row][u] * turn.at(u - begin);
            sum = sum + term;
            if (DERIVATIVES) {
                moved = moved + sample(u) * term;
                deeper = deeper + e.slope(min(v, M - 1), u) * term;
            }
        }
        REAL sums[6] = {sum.re, sum.im, moved.re, moved.im, deeper.re, deeper.im};
#pragma unroll
        for (int k = 0; k < (DERIVATIVES ? 6 : 2); k++)
            for (int step = SHARE / 2; step > 0; step /= 2) sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], step);
        if (part == 0 && v < M) {
            t[0][v][column] = {sums[0], sums[1]};
            if (DERIVATIVES) t[1][v][column] = {sums[2], sums[3]}, t[2][v][column] = {sums[4], sums[5]};
        }
        __syncthreads();
    }
}

// Field at row y of the image, from a column of t.
template <int COLUMNS> __device__ inline Complex along_column(const Complex (*t)[COLUMNS], int column, int y, REAL step) {
    Complex sum = {0, 0};
    Turn turn(step * pixel(y, H), sample(0));
    for (int v = 0; v < M; v++) sum = sum + t[v][column] * turn.at(v);
    return sum;
}
