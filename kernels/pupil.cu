// The PSF behind a pupil: smlmcore/psf/pupil_kernels.py holds the formulas and the reference.
//
// A block does a strip of a few columns of one image, all rows of it: the sums along u, the longer ones, are taken once
// for the strip and lie in shared memory.  H, W: compile-time size of the image, M: samples across the pupil.
#include "pupil.cuh"
#include "reduce.cuh"

extern "C" __global__ void pupil_render(const REAL* __restrict__ pupil, const REAL* __restrict__ axial,
                                        const REAL* __restrict__ optics, const REAL* __restrict__ x,
                                        const REAL* __restrict__ y, const REAL* __restrict__ z,
                                        const REAL* __restrict__ photons, const REAL* __restrict__ background,
                                        REAL* __restrict__ image, int components, int, int n) {
    constexpr int COLUMNS = columns_for(1), STRIPS = (W + COLUMNS - 1) / COLUMNS;
    __shared__ Complex q[ROWS][M], t[1][M][COLUMNS];
    for (int strip = blockIdx.x; strip < n * STRIPS; strip += gridDim.x) {
        const int i = strip / STRIPS, first = strip % STRIPS * COLUMNS;
        const Emitter emitter(x[i], y[i], z[i], optics, axial);
        for (int c = 0; c < components; c++) {
            along_rows<COLUMNS, false>(pupil + (size_t)c * 2 * M * M, emitter, first, q, t);
            for (int p = threadIdx.x; p < H * COLUMNS; p += THREADS) {
                const int row = p / COLUMNS, column = p % COLUMNS;
                if (first + column >= W) continue;
                const Complex e = along_column<COLUMNS>(t[0], column, row, emitter.step);
                REAL* out = image + ((size_t)i * H + row) * W + first + column;
                *out = (c ? *out : background[i]) + photons[i] * (e.re * e.re + e.im * e.im);
            }
            __syncthreads();
        }
    }
}

extern "C" __global__ void pupil_partials(const REAL* __restrict__ parameters, const REAL* __restrict__ pupil,
                                          const REAL* __restrict__ axial, const REAL* __restrict__ optics,
                                          REAL* __restrict__ value, REAL* __restrict__ partials, int n, int components,
                                          int) {
    constexpr int COLUMNS = columns_for(3), STRIPS = (W + COLUMNS - 1) / COLUMNS;
    __shared__ Complex q[ROWS][M], t[3][M][COLUMNS];
    for (int strip = blockIdx.x; strip < n * STRIPS; strip += gridDim.x) {
        const int i = strip / STRIPS, first = strip % STRIPS * COLUMNS;
        const REAL* theta = parameters + 5 * (size_t)i;
        const Emitter emitter(theta[0], theta[1], theta[2], optics, axial);
        const REAL photons = theta[3];
        for (int c = 0; c < components; c++) {
            along_rows<COLUMNS, true>(pupil + (size_t)c * 2 * M * M, emitter, first, q, t);
            for (int p = threadIdx.x; p < H * COLUMNS; p += THREADS) {
                const int row = p / COLUMNS, column = p % COLUMNS;
                if (first + column >= W) continue;
                Complex e = {0, 0}, e_x = {0, 0}, e_y = {0, 0}, e_z = {0, 0};
                Turn turn(emitter.step * pixel(row, H), sample(0));
                for (int v = 0; v < M; v++) {
                    const Complex a = turn.at(v), field = t[0][v][column] * a;
                    e = e + field;
                    e_x = e_x + t[1][v][column] * a;
                    e_y = e_y + sample(v) * field;
                    e_z = e_z + t[2][v][column] * a;
                }
                const int at = row * W + first + column;
                REAL* out = value + (size_t)i * H * W + at;
                REAL* d = partials + (size_t)i * 5 * H * W + at;
                const REAL square = e.re * e.re + e.im * e.im, lateral = 2 * emitter.step * photons;
                *out = (c ? *out : theta[4]) + photons * square;
                d[0] = (c ? d[0] : REAL(0)) + lateral * area(e, e_x);
                d[H * W] = (c ? d[H * W] : REAL(0)) + lateral * area(e, e_y);
                d[2 * H * W] = (c ? d[2 * H * W] : REAL(0)) - 2 * photons * area(e, e_z);
                d[3 * H * W] = (c ? d[3 * H * W] : REAL(0)) + square;
                d[4 * H * W] = 1;
            }
            __syncthreads();
        }
    }
}

// A block sums the pupil's gradient over the images of one part, in order: no atomics, the same bits at every run.
extern "C" __global__ void pupil_render_vjp(
    const REAL* __restrict__ pupil, const REAL* __restrict__ axial, const REAL* __restrict__ optics,
    const REAL* __restrict__ x, const REAL* __restrict__ y, const REAL* __restrict__ z,
    const REAL* __restrict__ photons, const REAL* __restrict__ gradient, REAL* __restrict__ gpupil,
    REAL* __restrict__ gx, REAL* __restrict__ gy, REAL* __restrict__ gz, REAL* __restrict__ gphotons,
    REAL* __restrict__ gbackground, int components, int, int n, int parts) {
    constexpr int COLUMNS = columns_for(1);
    __shared__ Complex q[ROWS][M], t[1][M][COLUMNS], g[H][COLUMNS];
    __shared__ REAL scratch[32];
    for (int part = blockIdx.x; part < parts; part += gridDim.x) {
        REAL* own = gpupil + (size_t)part * components * 2 * M * M;
        for (int c = 0; c < components; c++)
            for (int p = threadIdx.x; p < M * M; p += THREADS) own[c * 2 * M * M + p] = own[(c * 2 + 1) * M * M + p] = 0;
        const int last = int((long long)n * (part + 1) / parts);
        for (int i = int((long long)n * part / parts); i < last; i++) {
            const Emitter emitter(x[i], y[i], z[i], optics, axial);
            const REAL* down = gradient + (size_t)i * H * W;
            REAL sum_x = 0, sum_y = 0, sum_z = 0, brightness = 0, total = 0;
            for (int p = threadIdx.x; p < H * W; p += THREADS) total += down[p];
            for (int first = 0; first < W; first += COLUMNS) {
                for (int c = 0; c < components; c++) {
                    const REAL* fields = pupil + (size_t)c * 2 * M * M;
                    along_rows<COLUMNS, false>(fields, emitter, first, q, t);
                    for (int p = threadIdx.x; p < H * COLUMNS; p += THREADS) {  // dL/dE
                        const int row = p / COLUMNS, column = p % COLUMNS;
                        const REAL w = first + column < W ? down[row * W + first + column] : REAL(0);
                        const Complex e = along_column<COLUMNS>(t[0], column, row, emitter.step);
                        brightness += w * (e.re * e.re + e.im * e.im);
                        g[row][column] = 2 * photons[i] * w * e;
                    }
                    __syncthreads();
                    for (int p = threadIdx.x; p < M * COLUMNS; p += THREADS) {  // back along the columns, into t
                        const int v = p / COLUMNS, column = p % COLUMNS;
                        Complex sum = {0, 0};
                        Turn turn(-emitter.step * sample(v), pixel(0, H));
                        for (int row = 0; row < H; row++) sum = sum + g[row][column] * turn.at(row);
                        t[0][v][column] = sum;
                    }
                    __syncthreads();
                    for (int p = threadIdx.x; p < M * M; p += THREADS) {  // and along the rows
                        const int v = p / M, u = p % M;
                        Complex sum = {0, 0};
                        Turn turn(-emitter.step * sample(u), pixel(first, W));
                        for (int column = 0; column < COLUMNS; column++) sum = sum + t[0][v][column] * turn.at(column);
                        const Complex found = sum * conj(emitter.phase(v, u)), field = {fields[p], fields[M * M + p]};
                        own[c * 2 * M * M + p] += found.re;
                        own[(c * 2 + 1) * M * M + p] += found.im;
                        const Complex product = conj(found) * field, slope = emitter.slope(v, u);
                        sum_x += sample(u) * product.im;
                        sum_y += sample(v) * product.im;
                        sum_z -= slope.re * product.im + slope.im * product.re;
                    }
                    __syncthreads();
                }
            }
            sum_x = block_sum(sum_x, scratch);
            sum_y = block_sum(sum_y, scratch);
            sum_z = block_sum(sum_z, scratch);
            brightness = block_sum(brightness, scratch);
            total = block_sum(total, scratch);
            if (threadIdx.x == 0) {
                gx[i] = emitter.step * sum_x;
                gy[i] = emitter.step * sum_y;
                gz[i] = sum_z;
                gphotons[i] = brightness;
                gbackground[i] = total;
            }
        }
    }
}
