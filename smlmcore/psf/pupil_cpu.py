"""The numba bodies of the pupil kernels: real matrix products over one quadrant of the pupil and of the image.

exp(i v y) exp(i u x) is split into cosines and sines.  With the four quadrants of Q folded into parts that are even or
odd in v and in u, each k x k, k = m / 2,

    E(+-y, +-x) = EE +- i OE +- i EO -+ OO,     EE = cos(y v) Qee cos(u x),  OE = sin(y v) Qoe cos(u x),  ...

these are real products of quarter size: a quarter of the multiplications of E = A Q A^T.  An emitter off the centre
turns the phase of Q, so that the tables of cosines are the same for all images.  The same goes backwards.

How the loops become vectors: numbers of one kind lie `LANES` by `LANES` beside those of the other kinds (real,
imaginary, quadrant), at distances known to the compiler; inner loops run over the lanes of such blocks alone.  The
products are BLAS's, one thread each (`_dot`): numba's threads have an image each.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from ..layers.compiled import copy

LANES = 16
BLOCK = 8 * LANES  # four quadrants, or four parities, of complex numbers
PARTS = 32  # images are dealt out in so many parts
SERIAL = 1 << 18  # multiplications up to which OpenBLAS stays on one thread
FAST = {"reassoc", "contract", "arcp", "nsz"}

# ---------------------------------------------------------------- how things lie in memory


def quadrants(a: np.ndarray) -> np.ndarray:
    """(c, 2, m, m) as blocks (c, k, blocks, 4, 2, LANES): quadrants ++, +-, -+, -- of (v, u) from the centre outwards.

    The middle samples of an odd m belong to both sides by half.
    """
    c, _, m, _ = a.shape
    k = (m + 1) // 2
    blocks = -(-k // LANES)
    half = np.ones(k, a.dtype)
    half[0] = 0.5 if m % 2 else 1.0
    found = np.zeros((c, 2, 2, 2, k, blocks * LANES), a.dtype)
    for i, rows in enumerate((a[..., m - k :, :], a[..., k - 1 :: -1, :])):
        for j, quadrant in enumerate((rows[..., m - k :], rows[..., k - 1 :: -1])):
            found[:, i, j, :, :, :k] = quadrant * half * half[:, None]
    return np.ascontiguousarray(found.reshape(c, 4, 2, k, blocks, LANES).transpose(0, 3, 4, 1, 2, 5))


def from_quadrants(found: np.ndarray, out: np.ndarray) -> None:
    """The adjoint of `quadrants`: add up into out (c, 2, m, m)."""
    c, _, m, _ = out.shape
    k = (m + 1) // 2
    half = np.ones(k, out.dtype)
    half[0] = 0.5 if m % 2 else 1.0
    planes = found.transpose(0, 3, 4, 1, 2, 5).reshape(c, 2, 2, 2, k, -1)[..., :k] * half * half[:, None]
    out[...] = 0
    for i, rows in enumerate((out[..., m - k :, :], out[..., k - 1 :: -1, :])):
        for j, quadrant in enumerate((rows[..., m - k :], rows[..., k - 1 :: -1])):
            quadrant += planes[:, i, j]


# ---------------------------------------------------------------- pieces


@numba.njit(cache=True, error_model="numpy", fastmath={"contract", "nsz"})  # reassoc would undo the exact reduction
def _cos_sin(angle, cosine, sine):
    """Fill both from the angles in radians, in a form that LLVM turns into vectors; full precision below 1e4."""
    real = angle.dtype.type
    high, low = real(np.float32(math.pi / 2)), real(math.pi / 2 - np.float64(np.float32(math.pi / 2)))
    for i in range(angle.size):
        n = math.floor(angle[i] * real(2 / math.pi) + real(0.5))
        r = (angle[i] - n * high) - n * low
        q = r * r
        s = real(-1 / 39916800) + q * (real(1 / 6227020800) - q * real(1 / 1307674368000))
        s = real(-1 / 6) + q * (real(1 / 120) + q * (real(-1 / 5040) + q * (real(1 / 362880) + q * s)))
        s = r + r * q * s
        c = real(-1 / 3628800) + q * (real(1 / 479001600) - q * (real(1 / 87178291200) - q * real(1 / 20922789888000)))
        c = real(0.5) - q * (real(1 / 24) + q * (real(-1 / 720) + q * (real(1 / 40320) + q * c)))
        c = real(1) - q * c
        turn = np.int32(n) & 3
        a, b = (s, c) if turn & 1 else (c, s)
        cosine[i] = -a if (turn + 1) & 2 else a
        sine[i] = -b if turn & 2 else b


@numba.njit(cache=True, error_model="numpy")
def _dot(a, b, out):
    """out = a @ b, in pieces of rows that OpenBLAS does not share out among threads of its own."""
    step = max(1, SERIAL // (a.shape[1] * b.shape[1]))
    for i in range(0, len(a), step):
        np.dot(a[i : i + step], b, out[i : i + step])


@numba.njit(cache=True, error_model="numpy")
def _table(step, samples, pixels, j_count, p_count, weighted, dtype):
    """cos and sin of step * pixel * sample (2, p_count, j_count), and transposed; `weighted`: times the sample.

    Samples and pixels are those from the centre on; numbers of what is beyond the last are 0.
    """
    table, across = np.zeros((2, p_count, j_count), dtype), np.zeros((2, j_count, p_count), dtype)
    real = table.dtype.type
    k, half = (samples + 1) // 2, (pixels + 1) // 2
    first_j, first_p = real(0.5 - 0.5 * (samples % 2)), real(0.5 - 0.5 * (pixels % 2))
    angle = np.empty(k, dtype)
    for p in range(half):
        for j in range(k):
            angle[j] = step * (real(p) + first_p) * (real(j) + first_j)
        _cos_sin(angle, table[0, p, :k], table[1, p, :k])
        for j in range(k):
            for i in range(2):
                table[i, p, j] *= real(j) + first_j if weighted else real(1)
                across[i, j, p] = table[i, p, j]
    return table, across


@numba.njit(cache=True, error_model="numpy")
def _get(a, plane, i):
    return complex(a[2 * plane * LANES + i], a[(2 * plane + 1) * LANES + i])


@numba.njit(cache=True, error_model="numpy")
def _put(a, plane, i, value):
    a[2 * plane * LANES + i], a[(2 * plane + 1) * LANES + i] = value.real, value.imag


@numba.njit(cache=True, error_model="numpy")
def _turn(z):
    """i z."""
    return complex(-z.imag, z.real)


@numba.njit(cache=True, error_model="numpy", fastmath=FAST)
def _phases(axial, optics, m, x, y, z, factor):
    """factor (k, blocks, BLOCK) = exp(i k' z - k'' max(z, floor)) exp(-i step (u x + v y)) in each quadrant."""
    k, width = axial.shape[1:]
    real = factor.dtype.type
    step, above, first = optics[0], max(z, optics[1]), real(0.5 - 0.5 * (m % 2))
    angle, tables = np.empty(width, factor.dtype), np.empty((6, width + k), factor.dtype)
    for u in range(width):
        angle[u] = -step * x * (real(u) + first)
    _cos_sin(angle, tables[0, :width], tables[1, :width])
    angle_v = np.empty(k, factor.dtype)
    for v in range(k):
        angle_v[v] = -step * y * (real(v) + first)
    _cos_sin(angle_v, tables[2, :k], tables[3, :k])
    for v in range(k):
        along, decay, c, s = axial[0, v], axial[1, v], tables[4, :width], tables[5, :width]
        for u in range(width):
            angle[u] = along[u] * z
        _cos_sin(angle, c, s)
        for u in range(width):
            if decay[u] != 0:
                fall = math.exp(-decay[u] * above)
                c[u] *= fall
                s[u] *= fall
        up = complex(tables[2, v], tables[3, v])
        for block in range(width // LANES):
            out, start = factor[v, block], block * LANES
            c, s = tables[4, start : start + LANES], tables[5, start : start + LANES]
            cu, su = tables[0, start : start + LANES], tables[1, start : start + LANES]
            for i in range(LANES):
                axially, right = complex(c[i], s[i]), complex(cu[i], su[i])
                plus, minus = axially * up, axially * up.conjugate()
                _put(out, 0, i, plus * right)
                _put(out, 1, i, plus * right.conjugate())
                _put(out, 2, i, minus * right)
                _put(out, 3, i, minus * right.conjugate())


@numba.njit(cache=True, error_model="numpy", fastmath=FAST)
def _fold(pupil, factor, out):
    """Fields times phases of one block, folded into their even and odd parts in v and u: ee, eo, oe, oo."""
    for i in range(LANES):
        a, b = _get(pupil, 0, i) * _get(factor, 0, i), _get(pupil, 1, i) * _get(factor, 1, i)
        c, d = _get(pupil, 2, i) * _get(factor, 2, i), _get(pupil, 3, i) * _get(factor, 3, i)
        _put(out, 0, i, a + b + (c + d))
        _put(out, 1, i, a - b + (c - d))
        _put(out, 2, i, a + b - (c + d))
        _put(out, 3, i, a - b - (c - d))


@numba.njit(cache=True, error_model="numpy", fastmath=FAST)
def _scale(block, along, decay, out):
    """out = (k' + i k'') times each of the four parts."""
    for i in range(LANES):
        k = complex(along[i], decay[i])
        for part in range(4):
            _put(out, part, i, _get(block, part, i) * k)


@numba.njit(cache=True, error_model="numpy")
def _scatter(block, parts, row, start):
    """Write the parts of a block to parts (4, rows, 2, width), LANES numbers from `start` on."""
    for part in range(4):
        for plane in range(2):
            copy(block, (2 * part + plane) * LANES, parts[part, row, plane], start, LANES)


@numba.njit(cache=True, error_model="numpy")
def _gather(parts, row, start, block):
    """The inverse of `_scatter`."""
    for part in range(4):
        for plane in range(2):
            copy(parts[part, row, plane], start, block, (2 * part + plane) * LANES, LANES)


@numba.njit(cache=True, error_model="numpy")
def _signs(block, i):
    """E at (+y, +x), (+y, -x), (-y, +x), (-y, -x) from its parts."""
    ee, eo, oe, oo = _get(block, 0, i), _get(block, 1, i), _get(block, 2, i), _get(block, 3, i)
    same, across = _turn(oe + eo), _turn(oe - eo)
    return ee - oo + same, ee + oo + across, ee + oo - across, ee - oo - same


@numba.njit(cache=True, error_model="numpy")
def _square(z):
    return z.real * z.real + z.imag * z.imag


@numba.njit(cache=True, error_model="numpy")
def _area(a, b):
    """Im(a* b)."""
    return a.real * b.imag - a.imag * b.real


# ---------------------------------------------------------------- one image


@numba.njit(cache=True, error_model="numpy")
def _folded(pupil, factor, width, parts):
    """Q of one image as parts (4, k * c, 2, width), from the fields and phases in blocks."""
    c, k, blocks = pupil.shape[:3]
    block = np.empty(BLOCK, pupil.dtype)
    for v in range(k):
        for b in range(blocks):
            for i in range(c):
                _fold(pupil[i, v, b], factor[v, b], block)
                _scatter(block, parts, v * c + i, b * LANES)


@numba.njit(cache=True, error_model="numpy")
def _to_rows(table, parts, swap, out):
    """First product: out (4, rows, c 2 width) = table (2, rows, k) parts (4, k, c 2 width), for cosines and sines."""
    for part in range(4):
        _dot(table[part // 2], parts[(part + 2) % 4 if swap else part], out[part])


@numba.njit(cache=True, error_model="numpy")
def _to_columns(parts, table, swap, out):
    """Second product: out (4, rows c 2, columns) = parts (4, rows c 2, width) table (2, width, columns)."""
    for part in range(4):
        _dot(parts[part + 1 - 2 * (part % 2) if swap else part], table[part % 2], out[part])


@numba.njit(cache=True, error_model="numpy")
def _place(sums, y, x, factor, offset, image):
    """image = factor * sums + offset at the four mirrored places of one block of pixels."""
    h, w = image.shape
    rows, columns = (h + 1) // 2, (w + 1) // 2
    for sign in range(4):
        r = h - rows + y if sign < 2 else rows - 1 - y
        for i in range(min(LANES, columns - x)):
            c = w - columns + x + i if sign % 2 == 0 else columns - 1 - x - i
            image[r, c] = factor * sums[sign * LANES + i] + offset


@numba.njit(cache=True, error_model="numpy")
def _pick(image, y, x, sums):
    """The inverse of `_place`; pixels that are their own mirror image count once, those beyond are 0."""
    h, w = image.shape
    rows, columns = (h + 1) // 2, (w + 1) // 2
    for sign in range(4):
        r = h - rows + y if sign < 2 else rows - 1 - y
        for i in range(LANES):
            c = w - columns + x + i if sign % 2 == 0 else columns - 1 - x - i
            own = (sign >= 2 and h % 2 and y == 0) or (sign % 2 and w % 2 and x + i == 0)
            sums[sign * LANES + i] = image[r, c] if x + i < columns and not own else 0


@numba.njit(cache=True, error_model="numpy", fastmath=FAST)
def _add_squares(block, sums):
    for i in range(LANES):
        a, b, c, d = _signs(block, i)
        sums[i] += _square(a)
        sums[LANES + i] += _square(b)
        sums[2 * LANES + i] += _square(c)
        sums[3 * LANES + i] += _square(d)


@numba.njit(cache=True, error_model="numpy", fastmath=FAST)
def _add_areas(block, moved, sums):
    """Add Im(E* E'), half the derivative of |E|^2 up to a factor, to `sums`."""
    for i in range(LANES):
        a, b, c, d = _signs(block, i)
        p, q, r, s = _signs(moved, i)
        sums[i] += _area(a, p)
        sums[LANES + i] += _area(b, q)
        sums[2 * LANES + i] += _area(c, r)
        sums[3 * LANES + i] += _area(d, s)


@numba.njit(cache=True, error_model="numpy", fastmath=FAST)
def _weigh(block, gradient):
    """The parts of E in place replaced by those of dL/dE = gradient * E."""
    for i in range(LANES):
        a, b, c, d = _signs(block, i)
        a, b = a * gradient[i], b * gradient[LANES + i]
        c, d = c * gradient[2 * LANES + i], d * gradient[3 * LANES + i]
        _put(block, 0, i, a + b + (c + d))
        _put(block, 1, i, -_turn(a - b + (c - d)))
        _put(block, 2, i, -_turn(a + b - (c + d)))
        _put(block, 3, i, b - a + (c - d))


@numba.njit(cache=True, error_model="numpy", fastmath=FAST)
def _unfold(block, pupil, factor, gradient, sums):
    """Add dL/dpupil of one block to `gradient`, and Q* dL/dQ to sums: imaginary of the quadrants, then real of all."""
    for i in range(LANES):
        ee, eo, oe, oo = _get(block, 0, i), _get(block, 1, i), _get(block, 2, i), _get(block, 3, i)
        total = sums[4 * LANES + i]
        for quadrant in range(4):
            even, odd = (ee + oe, eo + oo) if quadrant < 2 else (ee - oe, eo - oo)
            g = (even - odd if quadrant % 2 else even + odd) * _get(factor, quadrant, i).conjugate()
            _put(gradient, quadrant, i, _get(gradient, quadrant, i) + g)
            product = g.conjugate() * _get(pupil, quadrant, i)
            sums[quadrant * LANES + i] += product.imag
            total += product.real
        sums[4 * LANES + i] = total


@numba.njit(cache=True, error_model="numpy")
def _sizes(m, c, h, w):
    """k, width of the padded quadrant, rows and padded columns of a quadrant of the image."""
    return (m + 1) // 2, -(-((m + 1) // 2) // LANES) * LANES, (h + 1) // 2, -(-((w + 1) // 2) // LANES) * LANES


@numba.njit(cache=True, error_model="numpy")
def _spot(x, y, z, photons, background, pupil, axial, optics, m, value, partials):
    """Image (h, w) and derivatives (5, h, w) of one emitter."""
    c, (h, w), dtype = len(pupil), value.shape, value.dtype
    k, width, rows, columns = _sizes(m, c, h, w)
    real = value.dtype.type
    step = optics[0]
    factor, q = np.empty((k, width // LANES, BLOCK), dtype), np.empty((2, 4, k * c, 2, width), dtype)
    t, e = np.empty((4, rows, c * 2 * width), dtype), np.empty((4, 4, rows * c, 2, columns), dtype)
    block, scaled, sums = np.empty((4, BLOCK), dtype), np.empty(BLOCK, dtype), np.empty((4, 4 * LANES), dtype)
    half_x, half_y = real(0.5) * real(w - 1), real(0.5) * real(h - 1)
    _phases(axial, optics, m, x - half_x, y - half_y, z, factor)
    rising = real(1) if z > optics[1] else real(0)
    decay = np.empty(LANES, dtype)
    for v in range(k):
        for b in range(width // LANES):
            start = b * LANES
            for i in range(LANES):
                decay[i] = axial[1, v, start + i] * rising
            for i in range(c):
                _fold(pupil[i, v, b], factor[v, b], scaled)
                _scatter(scaled, q[0], v * c + i, start)
                _scale(scaled, axial[0, v, start : start + LANES], decay, block[0])
                _scatter(block[0], q[1], v * c + i, start)
    flat_q, flat_t = q.reshape(2, 4, k, c * 2 * width), t.reshape(4, rows * c * 2, width)
    flat_e = e.reshape(4, 4, rows * c * 2, columns)
    along_y, moved_y = _table(step, m, h, k, rows, False, dtype)[0], _table(step, m, h, k, rows, True, dtype)[0]
    along_x, moved_x = (
        _table(step, m, w, width, columns, False, dtype)[1],
        _table(step, m, w, width, columns, True, dtype)[1],
    )
    _to_rows(along_y, flat_q[0], False, t)
    _to_columns(flat_t, along_x, False, flat_e[0])
    _to_columns(flat_t, moved_x, True, flat_e[1])
    _to_rows(moved_y, flat_q[0], True, t)
    _to_columns(flat_t, along_x, False, flat_e[2])
    _to_rows(along_y, flat_q[1], False, t)
    _to_columns(flat_t, along_x, False, flat_e[3])
    for r in range(rows):
        for start in range(0, columns, LANES):
            sums[:] = 0
            for i in range(c):
                for kind in range(4):
                    _gather(e[kind], r * c + i, start, block[kind])
                _add_squares(block[0], sums[0])
                for kind in range(1, 4):
                    _add_areas(block[0], block[kind], sums[kind])
            _place(sums[0], r, start, photons, background, value)
            _place(sums[1], r, start, real(2) * step * photons, real(0), partials[0])
            _place(sums[2], r, start, real(2) * step * photons, real(0), partials[1])
            _place(sums[3], r, start, real(-2) * photons, real(0), partials[2])
            _place(sums[0], r, start, real(1), real(0), partials[3])
            _place(sums[0], r, start, real(0), real(1), partials[4])


# ---------------------------------------------------------------- the kernels


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _render(pupil, axial, optics, m, x, y, z, photons, background, image):
    n, h, w = image.shape
    c, dtype = len(pupil), image.dtype
    k, width, rows, columns = _sizes(m, c, h, w)
    half_x, half_y = image.dtype.type(0.5 * (w - 1)), image.dtype.type(0.5 * (h - 1))
    along_y = _table(optics[0], m, h, k, rows, False, dtype)[0]
    along_x = _table(optics[0], m, w, width, columns, False, dtype)[1]
    parts = min(n, PARTS)
    for part in numba.prange(parts):
        factor, q = np.empty((k, width // LANES, BLOCK), dtype), np.empty((4, k * c, 2, width), dtype)
        t, e = np.empty((4, rows, c * 2 * width), dtype), np.empty((4, rows * c, 2, columns), dtype)
        block, sums = np.empty(BLOCK, dtype), np.empty(4 * LANES, dtype)
        for n_ in range(n * part // parts, n * (part + 1) // parts):
            _phases(axial, optics, m, x[n_] - half_x, y[n_] - half_y, z[n_], factor)
            _folded(pupil, factor, width, q)
            _to_rows(along_y, q.reshape(4, k, c * 2 * width), False, t)
            _to_columns(t.reshape(4, rows * c * 2, width), along_x, False, e.reshape(4, rows * c * 2, columns))
            for r in range(rows):
                for start in range(0, columns, LANES):
                    sums[:] = 0
                    for i in range(c):
                        _gather(e, r * c + i, start, block)
                        _add_squares(block, sums)
                    _place(sums, r, start, photons[n_], background[n_], image[n_])


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _render_vjp(pupil, axial, optics, m, x, y, z, photons, gradient, gpupil, gx, gy, gz, gphotons, gbackground):
    n, h, w = gradient.shape
    c, dtype = len(pupil), gradient.dtype
    k, width, rows, columns = _sizes(m, c, h, w)
    real = gradient.dtype.type
    half_x, half_y = real(0.5 * (w - 1)), real(0.5 * (h - 1))
    first, step = real(0.5 - 0.5 * (m % 2)), optics[0]
    rows_of, rows_back = _table(step, m, h, k, rows, False, dtype)
    columns_back, columns_of = _table(step, m, w, width, columns, False, dtype)
    parts = len(gpupil)
    for part in numba.prange(parts):
        factor, q = np.empty((k, width // LANES, BLOCK), dtype), np.empty((4, k * c, 2, width), dtype)
        t, e = np.empty((4, rows, c * 2 * width), dtype), np.empty((4, rows * c, 2, columns), dtype)
        flat_q, flat_t = q.reshape(4, k, c * 2 * width), t.reshape(4, rows * c * 2, width)
        flat_e = e.reshape(4, rows * c * 2, columns)
        block, sums, g = np.empty(BLOCK, dtype), np.empty(5 * LANES, dtype), np.empty(4 * LANES, dtype)
        gpupil[part] = 0
        for n_ in range(n * part // parts, n * (part + 1) // parts):
            _phases(axial, optics, m, x[n_] - half_x, y[n_] - half_y, z[n_], factor)
            _folded(pupil, factor, width, q)
            _to_rows(rows_of, flat_q, False, t)
            _to_columns(flat_t, columns_of, False, flat_e)
            brightness, total = 0.0, 0.0
            for r in range(rows):
                for start in range(0, columns, LANES):
                    _pick(gradient[n_], r, start, g)
                    sums[:] = 0
                    for i in range(c):
                        _gather(e, r * c + i, start, block)
                        _add_squares(block, sums)
                    for i in range(4 * LANES):
                        brightness += np.float64(g[i]) * np.float64(sums[i])
                        total += np.float64(g[i])
                        g[i] *= real(2) * photons[n_]
                    for i in range(c):
                        _gather(e, r * c + i, start, block)
                        _weigh(block, g)
                        _scatter(block, e, r * c + i, start)
            gphotons[n_], gbackground[n_] = brightness, total
            _to_columns(flat_e, columns_back, False, flat_t)
            _to_rows(rows_back, t, False, flat_q)
            sum_x, sum_y, sum_z = 0.0, 0.0, 0.0
            rising = real(1) if z[n_] > optics[1] else real(0)
            for v in range(k):
                for b in range(width // LANES):
                    sums[:] = 0
                    for i in range(c):
                        _gather(q, v * c + i, b * LANES, block)
                        _unfold(block, pupil[i, v, b], factor[v, b], gpupil[part, i, v, b], sums)
                    for i in range(LANES):
                        u = b * LANES + i
                        right, left = sums[i] + sums[2 * LANES + i], sums[LANES + i] + sums[3 * LANES + i]
                        up = sums[i] + sums[LANES + i]
                        sum_x += np.float64((right - left) * (real(u) + first))
                        sum_y += np.float64((up + up - right - left) * (real(v) + first))
                        sum_z -= np.float64(
                            axial[0, v, u] * (right + left) + rising * axial[1, v, u] * sums[4 * LANES + i]
                        )
            gx[n_], gy[n_], gz[n_] = step * sum_x, step * sum_y, sum_z


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _partials(parameters, pupil, axial, optics, m, value, partials):
    for i in numba.prange(len(parameters)):
        x, y, z, photons, background = parameters[i]
        _spot(x, y, z, photons, background, pupil, axial, optics, m, value[i], partials[i])


def padded(axial: np.ndarray) -> np.ndarray:
    """axial (2, k, k) with its columns filled up to whole blocks."""
    return np.pad(axial, ((0, 0), (0, 0), (0, -axial.shape[2] % LANES)))


def _blocks(pupil: np.ndarray) -> np.ndarray:
    found = quadrants(pupil)
    return found.reshape(*found.shape[:3], BLOCK)


def render(pupil, axial, optics, x, y, z, photons, background, image):
    _render(_blocks(pupil), padded(axial), optics, pupil.shape[-1], x, y, z, photons, background, image)


def render_vjp(pupil, axial, optics, x, y, z, photons, gradient, gpupil, *others):
    blocks, m = _blocks(pupil), pupil.shape[-1]
    parts = np.empty((len(gpupil), *blocks.shape), pupil.dtype)
    _render_vjp(blocks, padded(axial), optics, m, x, y, z, photons, gradient, parts, *others)
    for found, out in zip(parts, gpupil, strict=True):
        from_quadrants(found.reshape(*blocks.shape[:3], 4, 2, LANES), out)


def partials(parameters, pupil, axial, optics, value, derivatives):
    _partials(parameters, _blocks(pupil), padded(axial), optics, pupil.shape[-1], value, derivatives)


# ---------------------------------------------------------------- for the fitter: a PSF as one array of constants

HEADER = 10


def pack(pupil, axial, optics, energy, decay, taps, fine) -> np.ndarray:
    """What `numba_partials` reads: a header, then blocks of fields, axial, taps, energies and decays; flat."""
    blocks, axial, m = _blocks(pupil), padded(axial), pupil.shape[-1]
    header = [m, *blocks.shape[:3], len(decay), len(taps), fine, *optics, energy[0]]
    return np.concatenate([header, blocks.ravel(), axial.ravel(), taps, energy[1:], decay])


@numba.njit(cache=True, error_model="numpy")
def _blur(points, taps, fine, out):
    """out (h, w) = taps along y and x on points of 1/fine pixel."""
    h, w = out.shape
    lines = np.zeros((points.shape[0], w), out.dtype)
    for r in range(len(lines)):
        for c in range(w):
            for i in range(taps.size):
                lines[r, c] += taps[i] * points[r, c * fine + i]
    out[:] = 0
    for r in range(h):
        for i in range(taps.size):
            for c in range(w):
                out[r, c] += taps[i] * lines[r * fine + i, c]


@numba.njit(cache=True, error_model="numpy")
def numba_partials(theta, constants, value, partials, scratch):
    """Image and derivatives as `psf.base` wants them, with the energy of evanescent waves and the blur."""
    m, c, k, blocks = int(constants[0]), int(constants[1]), int(constants[2]), int(constants[3])
    evanescent, width, fine = int(constants[4]), int(constants[5]), int(constants[6])
    real = value.dtype.type
    end = HEADER + c * k * blocks * BLOCK
    pupil = constants[HEADER:end].reshape(c, k, blocks, BLOCK)
    axial = constants[end : end + 2 * k * blocks * LANES].reshape(2, k, blocks * LANES)
    end += axial.size
    taps, others = constants[end : end + width], constants[end + width : end + width + evanescent]
    decay = constants[end + width + evanescent : end + width + 2 * evanescent]
    x, y, z, photons, background = theta[0], theta[1], theta[2], theta[3], theta[4]
    energy, slope = constants[9], real(0)
    for i in range(evanescent):
        flow = others[i] * math.exp(real(-2) * decay[i] * max(z, constants[8]))
        energy += flow
        slope -= real(2) * decay[i] * flow if z > constants[8] else real(0)
    optics = constants[7:9]
    if width == 1 and fine == 1:
        _spot(x, y, z, photons / energy, real(0), pupil, axial, optics, m, value, partials)
    else:
        h, w = (value.shape[0] - 1) * fine + width, (value.shape[1] - 1) * fine + width
        points, moved = np.empty((h, w), value.dtype), np.empty((5, h, w), value.dtype)
        scale, reach = real(fine), real(width // 2)
        _spot(
            scale * x + reach, scale * y + reach, z, photons / energy, real(0), pupil, axial, optics, m, points, moved
        )
        _blur(points, taps, fine, value)
        for i in range(4):
            _blur(moved[i], taps, fine, partials[i])
        for r in range(value.shape[0]):
            for c_ in range(value.shape[1]):
                partials[0, r, c_] *= scale
                partials[1, r, c_] *= scale
                partials[4, r, c_] = real(1)
    for r in range(value.shape[0]):
        for c_ in range(value.shape[1]):
            partials[2, r, c_] -= value[r, c_] * slope / energy
            partials[3, r, c_] /= energy
            value[r, c_] += background
