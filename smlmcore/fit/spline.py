"""The fast path of spline PSFs: one image after another, a row of pixels in a vector.

The image and its derivatives come from `psf/rows.py`.  From them one pass over the pixels makes all the sums that a
step of Fisher scoring needs, 5 of the gradient and 15 of the information, held in registers; so an iteration is some
thousand vector operations.  The start is the template (x, y, z on a coarse grid) with the highest correlation.

Up to `PLAIN` steps are taken without looking at the likelihood, with the stopping rule of `lanes`.  An image that is
not done then is left to the caller, for `generic`, which damps.  Every image is fitted by itself from its own pixels
alone, so that no bit of a result depends on threads, order or neighbours.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..interpolate.simd import Rows
from ..psf import rows
from ..psf.axis import FAST
from ..psf.rows import LANES
from ..psf.spline import Spline, Templates
from ..threads import share
from .numbers import locked, poisson_term
from .problem import Limits
from .result import Status

CONVERGED, AT_BOUND, INVALID = int(Status.converged), int(Status.at_bound), int(Status.invalid_input)
LEFT = -1  # status of an image that `generic` has to fit
PLAIN = 8  # steps without damping
RATE = 0.01  # at best, a step's decrement is this part of the one before
CHUNK = 4096  # images that a thread takes at a time
GROUP = Templates.GROUP
TOGETHER = 4  # images whose first guess is made at once
LARGE = 1e9  # photoelectrons; a pixel with more counts as a gap in the first guess
U = np.uint64

# ---------------------------------------------------------------- sums over pixels in vector IR

_INT = ir.IntType(64)


def _sums_of(b, vectors):
    """The sums of the lanes of LANES vectors, in the lanes of one: two become one, each in half as many lanes."""
    width = LANES // 2
    while len(vectors) > 1:
        half = len(vectors) // 2
        first = [lane for lane in range(LANES) if not lane & width]
        # lanes of the first vector, then those of the second, for each run of 2 `width` lanes
        picks = [
            [o + lane for at in range(0, LANES // 2, width) for o in (0, LANES) for lane in part[at : at + width]]
            for part in (first, [lane + width for lane in first])
        ]
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), LANES), pick) for pick in picks]
        vectors = [
            b.fadd(*(b.shuffle_vector(u, v, mask) for mask in masks))
            for u, v in zip(vectors[:half], vectors[half:], strict=True)
        ]
        width //= 2
    return vectors[0]


@intrinsic
def _sums(typing, scratch, at, h, blocks, pixels, photons, background, out):
    """Gradient (5) and lower triangle of the Fisher information (15) of x, y, z, photons, background, into out (32,).

    Without the factor `photons` of the first three.  `scratch` holds f and its derivatives from `at` on, `pixels` the
    counts, the read noise and 1 or 0 for a pixel that counts, one after another, in rows as far apart as in scratch.
    """

    def codegen(context, b, signature, args):
        scratch, at, h, blocks, pixels, photons, background, out = args
        number = lambda v: ir.Constant(_INT, v)  # noqa: E731
        r = Rows(context, b, signature.args[0], scratch, at, LANES)
        given = Rows(context, b, signature.args[4], pixels, number(0), LANES)
        stride = b.add(b.mul(blocks, number(LANES)), number(LANES))
        image = b.mul(stride, h)
        one = ir.Constant(r.vector, [1.0] * LANES)
        sums = [cgutils.alloca_once_value(b, r.zero) for _ in range(20)]
        n, level = r.spread(photons), r.spread(background)

        def accumulate(index, x, y):
            b.store(r.fma(x, y, b.load(sums[index])), sums[index])

        with cgutils.for_range(b, h) as row, cgutils.for_range(b, blocks) as block:
            here = b.add(b.mul(row.index, stride), b.mul(block.index, number(LANES)))
            f, d_x, d_y, d_z = (r.load((image, i), (here, 1)) for i in range(4))
            count, noise, on = (given.load((image, i), (here, 1)) for i in range(3))
            weight = b.fdiv(on, b.fadd(r.fma(n, f, level), noise))
            residual = b.fsub(b.fmul(count, weight), on)
            derivatives = [d_x, d_y, d_z, f, one]
            index = 5
            for a, d in enumerate(derivatives):
                accumulate(a, residual, d)
                weighted = b.fmul(weight, d)
                for other in derivatives[: a + 1]:
                    accumulate(index, weighted, other)
                    index += 1
        totals = Rows(context, b, signature.args[7], out, number(0), LANES)
        for start in range(0, len(sums), LANES):
            vectors = [b.load(s) for s in sums[start : start + LANES]]
            vectors += [r.zero] * (LANES - len(vectors))
            b.store(_sums_of(b, vectors), totals.pointer((number(start), 1)), align=r.size)
        return context.get_dummy_value()

    integer, real = types.int64, scratch.dtype
    return types.void(scratch, integer, integer, integer, pixels, real, real, out), codegen


@intrinsic
def _correlate(typing, data, size, images, first, columns, scores):
    """scores[i columns + first + k] = sum over p < size of data[i size + p] images[p columns + first + k].

    For i < TOGETHER and k < GROUP: as many sums as registers hold, so that the templates are read once for all i.
    """

    def codegen(context, b, signature, args):
        data, size, images, first, columns, scores = args
        source = Rows(context, b, signature.args[0], data, ir.Constant(_INT, 0), LANES)
        table = Rows(context, b, signature.args[2], images, first, LANES)
        target = Rows(context, b, signature.args[5], scores, first, LANES)
        width = ir.Constant(_INT, LANES)
        places = [(i, k) for i in range(TOGETHER) for k in range(GROUP // LANES)]
        sums = {place: cgutils.alloca_once_value(b, table.zero) for place in places}
        with cgutils.for_range(b, size) as pixel:
            row = b.mul(pixel.index, columns)
            vectors = [table.load((row, 1), (width, k)) for k in range(GROUP // LANES)]
            for i in range(TOGETHER):
                at = b.add(b.mul(size, ir.Constant(_INT, i)), pixel.index)
                value = table.spread(b.load(b.gep(source.start, [at])))
                for k, vector in enumerate(vectors):
                    b.store(table.fma(value, vector, b.load(sums[i, k])), sums[i, k])
        for (i, k), s in sums.items():
            b.store(b.load(s), target.pointer((columns, i), (width, k)), align=target.size)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(data, integer, images, integer, integer, scores), codegen


@intrinsic
def _widen(typing, spots, start, variance, v_start, h, w, blocks, pixels, totals):
    """An image of `spots` and its variance, rows of w numbers, into the rows of `pixels`.

    pixels: counts max(d + v, 0), noise v, whether it counts, d; totals (2,): how many count, how many are infinite.
    """

    def codegen(context, b, signature, args):
        spots, start, variance, v_start, h, w, blocks, pixels, totals = args
        number = lambda v: ir.Constant(_INT, v)  # noqa: E731
        data = Rows(context, b, signature.args[0], spots, start, LANES)
        noise = Rows(context, b, signature.args[2], variance, v_start, LANES)
        target = Rows(context, b, signature.args[7], pixels, number(0), LANES)
        stride = b.add(b.mul(blocks, number(LANES)), number(LANES))
        image = b.mul(stride, h)
        zero, one = data.zero, ir.Constant(data.vector, [1.0] * LANES)
        infinity = ir.Constant(data.vector, [float("inf")] * LANES)
        negative = ir.Constant(data.vector, [float("-inf")] * LANES)
        counts = [cgutils.alloca_once_value(b, zero) for _ in range(2)]
        lanes = ir.Constant(ir.VectorType(_INT, LANES), list(range(LANES)))
        with cgutils.for_range(b, h) as row, cgutils.for_range(b, blocks) as block:
            column = b.mul(block.index, number(LANES))
            at = b.add(b.mul(row.index, w), column)
            here = b.add(b.mul(row.index, stride), column)
            left = b.insert_element(
                ir.Constant(lanes.type, ir.Undefined), b.sub(w, column), ir.Constant(ir.IntType(32), 0)
            )
            left = b.shuffle_vector(left, left, ir.Constant(ir.VectorType(ir.IntType(32), LANES), None))
            inside = b.icmp_signed("<", lanes, left)
            d, v = data.load_where(inside, (at, 1)), noise.load_where(inside, (at, 1))
            infinite = b.or_(b.fcmp_ordered("==", d, infinity), b.fcmp_ordered("==", d, negative))
            good = b.and_(inside, b.and_(b.fcmp_ordered("==", d, d), b.fcmp_ordered("<", v, infinity)))
            d, v, on = (b.select(good, x, zero) for x in (d, v, one))
            count = b.fadd(d, v)
            count = b.select(b.fcmp_ordered(">", count, zero), count, zero)
            bad = b.select(b.and_(inside, infinite), one, zero)
            for s, x in zip(counts, (on, bad), strict=True):
                b.store(b.fadd(b.load(s), x), s)
            for i, x in enumerate((count, v, on, d)):
                b.store(x, target.pointer((image, i), (here, 1)), align=target.size)
        sums = _sums_of(b, [*map(b.load, counts), *[zero] * (LANES - len(counts))])
        out = Rows(context, b, signature.args[8], totals, number(0), LANES)
        b.store(sums, out.pointer(), align=out.size)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(spots, integer, variance, integer, integer, integer, integer, pixels, totals), codegen


@intrinsic
def _solve(typing, sums, photons, held, least, out):
    """The step of Fisher scoring into out[:5], the squared errors into out[5:10]; returns the decrement.

    That is the square of the step in standard errors; infinite if the information is singular, which it is when a
    pivot falls to `least` of its parameter's information.  `sums` is what `_sums` found; parameters held (5,) are left
    out.  L D L^T of the information, M = L^-1: the step is M^T D^-1 M g, the errors the diagonal of M^T D^-1 M.
    """

    def codegen(context, b, signature, args):
        sums, photons, held, least, out = args
        double = ir.DoubleType()
        zero, one = ir.Constant(double, 0.0), ir.Constant(double, 1.0)
        place = lambda i, a: context.make_array(signature.args[i])(context, b, value=a).data  # noqa: E731
        source, bits, target = place(0, sums), place(2, held), place(4, out)
        at = lambda p, i: b.gep(p, [ir.Constant(_INT, i)])  # noqa: E731
        times = lambda x, y: b.fmul(x, y, flags=("contract",))  # noqa: E731

        def number(i):
            v = b.load(at(source, i))
            return v if v.type == double else b.fpext(v, double)

        def total(terms, start=None, sign=b.fadd):
            for x, y in terms:
                start = times(x, y) if start is None else sign(start, times(x, y), flags=("contract",))
            return start

        off = [b.icmp_unsigned("!=", b.load(at(bits, a)), ir.Constant(ir.IntType(8), 0)) for a in range(5)]
        g = [b.select(off[a], zero, number(a)) for a in range(5)]
        lower, inverse, z, weight = [[None] * 5 for _ in range(5)], [[None] * 5 for _ in range(5)], [None] * 5, []
        sound = ir.Constant(ir.IntType(1), 1)
        for a in range(5):
            before = [None] * a  # the row of L D
            for c in range(a):
                s = b.select(b.or_(off[a], off[c]), zero, number(5 + a * (a + 1) // 2 + c))
                before[c] = total(zip(before[:c], lower[c][:c], strict=True), s, b.fsub)
                lower[a][c] = times(before[c], weight[c])
            own = b.select(off[a], one, number(5 + a * (a + 1) // 2 + a))
            pivot = total(zip(before, lower[a][:a], strict=True), own, b.fsub)
            sound = b.and_(sound, b.fcmp_ordered(">", pivot, times(least, own)))
            weight.append(b.fdiv(one, pivot))
            z[a] = total(zip(lower[a][:a], z[:a], strict=True), g[a], b.fsub)
            inverse[a][a] = one
            for c in range(a):
                terms = [(lower[a][k], inverse[k][c]) for k in range(c + 1, a)]
                inverse[a][c] = total(terms, b.fsub(zero, lower[a][c]), b.fsub)
        decrement = total([(times(x, x), d) for x, d in zip(z, weight, strict=True)])
        unit = b.fdiv(one, photons)
        for c in range(5):
            column = [(times(inverse[a][c], weight[a]), a) for a in range(c, 5)]
            step = total([(v, z[a]) for v, a in column])
            square = total([(v, inverse[a][c]) for v, a in column])
            if c < 3:  # whose sums lack the factor `photons`
                step, square = times(step, unit), times(square, times(unit, unit))
            b.store(step, at(target, c))
            b.store(square, at(target, 5 + c))
        return b.select(sound, decrement, ir.Constant(double, float("inf")))

    double = types.float64
    return double(sums, double, held, double, out), codegen


# ---------------------------------------------------------------- the likelihood


@numba.njit(cache=True, error_model="numpy", fastmath=FAST)
def _judge(scratch, pixels, size, photons, background):
    """Log likelihood and chi square, from the image in scratch."""
    likelihood = squares = scratch.dtype.type(0)
    for i in range(size):
        x, noise, on = pixels[U(i)], pixels[U(size) + U(i)], pixels[U(2 * size) + U(i)]
        m = photons * scratch[U(i)] + background + noise
        data = pixels[U(3 * size) + U(i)] - (m - noise)
        likelihood += on * poisson_term(x, m)
        squares += on * data * data / m
    return likelihood, squares


# ---------------------------------------------------------------- one fit


@numba.njit(cache=True, error_model="numpy", fastmath=FAST)
def _guess(spots, begin, count, images, norm, total, known, flat, scores, first, index, guesses):
    """For up to TOGETHER images the template with the highest correlation, with its photons and background."""
    size, columns = len(flat) // TOGETHER, len(norm)
    large = flat.dtype.type(LARGE)
    zero = flat.dtype.type(0)
    for i in range(count):
        start = (begin + i) * size
        near = spots[start]
        flat[i * size] = near if abs(near) < large else zero
        for p in range(1, size):
            d, near = spots[U(start) + U(p)], spots[U(start) + U(p - 1)]
            near = near if abs(near) < large else zero
            flat[U(i * size) + U(p)] = d if abs(d) < large else near
    for group in range(0, columns, GROUP):
        _correlate(flat, size, images, group, columns, scores)
    for i in range(count):
        level = zero
        for p in range(size):
            level += flat[U(i * size) + U(p)]
        for k in range(LANES):  # the best of each lane, then of all
            first[U(k)], index[U(k)] = scores[U(i * columns) + U(k)], 0
        for group in range(LANES, columns, LANES):
            for k in range(LANES):
                score = scores[U(i * columns + group) + U(k)]
                better = score > first[U(k)]
                first[U(k)] = score if better else first[U(k)]
                index[U(k)] = group if better else index[U(k)]
        best = 0
        for k in range(1, LANES):
            if first[k] > first[best]:
                best = k
        score, best = first[best], index[best] + best
        least = math.sqrt(max(level / size, 0.1)) / norm[best]
        photons = max(score / norm[best], least)
        for a in range(3):
            guesses[i, a] = known[best, a]
        guesses[i, 3], guesses[i, 4] = photons, (level - photons * total[best]) / size


@numba.njit(cache=True, error_model="numpy")
def _fit_one(
    h, w, table, size, geometry, pixels, theta, lower, upper, step, factor, fixed, most, square, scratch, sums, found,
    held, errors,
):  # fmt: skip
    """Fisher scoring from `theta`, which is moved; whether it converged, at a bound, and after how many steps."""
    blocks = rows.blocks_of(w)
    real = table.dtype.type
    previous = np.inf
    least = 1e-6 if table.itemsize == 4 else 1e-12
    for done in range(1, most + 1):
        rows.evaluate(real(theta[0]), real(theta[1]), real(theta[2]), table, size, geometry, h, w, True, scratch)
        _sums(scratch, 0, h, blocks, pixels, real(theta[3]), real(theta[4]), sums)
        at_bound = False
        for a in range(5):
            low, high = theta[a] <= lower[a] and sums[a] <= 0, theta[a] >= upper[a] and sums[a] >= 0
            held[a] = fixed[a] or low or high
            at_bound |= (low or high) and not fixed[a]
        decrement = _solve(sums, theta[3], held, least, found)
        if not decrement < np.inf:
            return False, False, done
        landed = False
        for a in range(5):
            if held[a]:
                errors[a] = np.nan
                continue
            errors[a] = math.sqrt(found[5 + a])
            limit = step[a] + factor[a] * abs(theta[a])
            to = theta[a] + min(max(found[a], -limit), limit)
            theta[a] = min(max(to, lower[a]), upper[a])
            landed |= to != theta[a]
        # the rule of `lanes`: what the step leaves is foretold by the ratio of the last two
        foretold = decrement * max(decrement / previous, RATE)
        previous = max(decrement, 1e-30)
        if not landed and (decrement < square or (decrement < 0.1 and foretold < 0.25 * square)):
            return True, at_bound, done
    return False, False, most


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _work(
    begin, end, h, w, table, size, geometry, images, norm, total, known, spots, variance, initial, lower, upper, step,
    factor, fixed, most, square, parameters, errors, status, iterations,
):  # fmt: skip
    """Fit spots begin ... end; the status of those that need damping is LEFT."""
    real = spots.dtype
    stride = rows.stride_of(w)
    scratch, pixels = np.zeros(rows.scratch_size(h, w), real), np.zeros(4 * h * stride, real)
    flat, scores = np.zeros(TOGETHER * h * w, real), np.zeros(TOGETHER * len(norm), real)
    first, index, guesses = np.empty(LANES, real), np.empty(LANES, np.int32), np.empty((TOGETHER, 5))
    sums, theta, step_errors, found = np.empty(2 * LANES, real), np.empty(5), np.empty(5), np.empty(10)
    held = np.empty(5, np.bool_)
    free = 5
    for a in range(5):
        free -= fixed[a]
    for i in range(begin, end):
        v_at = i * h * w if len(variance) > h * w else 0
        _widen(spots, i * h * w, variance, v_at, h, w, rows.blocks_of(w), pixels, sums)
        good = sums[0] > free and sums[1] == 0
        if len(initial) == 0 and (i - begin) % TOGETHER == 0:
            count = min(TOGETHER, end - i)
            _guess(spots, i, count, images, norm, total, known, flat, scores, first, index, guesses)
        for a in range(5):
            theta[a] = initial[i, a] if len(initial) else guesses[(i - begin) % TOGETHER, a]
            good &= math.isfinite(theta[a])
        for a in range(5):
            if not fixed[a]:
                theta[a] = min(max(theta[a], lower[a]), upper[a])
        converged, at_bound, done = False, False, 0
        if good:
            converged, at_bound, done = _fit_one(
                h, w, table, size, geometry, pixels, theta, lower, upper, step, factor, fixed, most, square, scratch,
                sums, found, held, step_errors,
            )  # fmt: skip
        status[i] = INVALID if not good else LEFT if not converged else AT_BOUND if at_bound else CONVERGED
        iterations[i] = done
        for a in range(5):
            parameters[i, a] = theta[a] if converged else np.nan
            errors[i, a] = step_errors[a] if converged else np.nan


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _measure(begin, end, h, w, table, size, geometry, spots, variance, parameters, log_likelihood, chi2):
    """Log likelihood and chi square of spots begin ... end; NaN where the parameters are."""
    real = spots.dtype
    stride = rows.stride_of(w)
    scratch, pixels = np.zeros(rows.scratch_size(h, w), real), np.zeros(4 * h * stride, real)
    totals = np.empty(LANES, real)
    for i in range(begin, end):
        x, y, z, photons, background = parameters[i]
        log_likelihood[i] = chi2[i] = np.nan
        if math.isfinite(x + y + z + photons + background):
            v_at = i * h * w if len(variance) > h * w else 0
            _widen(spots, i * h * w, variance, v_at, h, w, rows.blocks_of(w), pixels, totals)
            rows.evaluate(x, y, z, table, size, geometry, h, w, False, scratch)
            log_likelihood[i], chi2[i] = _judge(scratch, pixels, h * stride, photons, background)


def fit(
    psf: Spline, spots: np.ndarray, variance: np.ndarray | None, initial: np.ndarray | None, limits: Limits,
    max_iterations: int, tolerance: float, out: tuple[Any, ...],
) -> np.ndarray:  # fmt: skip
    """Fit `spots` (n, h, w) of float32 or float64 and write `out`; the indices of the images that need `generic.fit`.

    `variance`: None, (h, w) or (n, h, w) of the same dtype; `initial` (n, 5), or None for the best template.
    `out`: parameters (n, 5), errors (n, 5), status (n,) int8, iterations (n,) int32.
    """
    shape, real = spots.shape[1:], spots.dtype
    table, geometry = psf.table(spots)
    known = psf.templates(shape)
    square = max(tolerance, 2e-4 if real == np.float32 else 1e-9) ** 2
    arguments = (
        *shape, table.reshape(-1), table.shape, geometry,
        *(np.ascontiguousarray(a, real).reshape(-1) for a in (known.images.T, known.norm, known.total)),
        np.ascontiguousarray(known.parameters, real), spots.reshape(-1), _noise(spots, variance),
        np.empty((0, 5)) if initial is None else np.ascontiguousarray(initial, np.float64),
        *(np.ascontiguousarray(column, np.float64) for column in limits[:4]), np.asarray(limits.fixed, bool),
        min(PLAIN, max_iterations), square,
    )  # fmt: skip
    _share(_work, len(spots), arguments, out)
    return np.flatnonzero(out[2] == LEFT)


def measure(
    psf: Spline, spots: np.ndarray, variance: np.ndarray | None, parameters: np.ndarray,
    log_likelihood: np.ndarray, chi2: np.ndarray,
) -> None:  # fmt: skip
    """Write the log likelihood and chi square (n,) of `parameters` (n, 5); all else as for `fit`."""
    table, geometry = psf.table(spots)
    arguments = (
        *spots.shape[1:], table.reshape(-1), table.shape, geometry, spots.reshape(-1), _noise(spots, variance),
        np.ascontiguousarray(parameters),
    )  # fmt: skip
    _share(_measure, len(spots), arguments, (log_likelihood, chi2))


def _noise(spots: np.ndarray, variance: np.ndarray | None) -> np.ndarray:
    return np.zeros(spots.shape[1] * spots.shape[2], spots.dtype) if variance is None else variance.reshape(-1)


def _share(work: Any, n: int, arguments: tuple[Any, ...], out: tuple[Any, ...]) -> None:
    """Run work(begin, end, *arguments, *out) for all of n, a chunk at a time on each thread."""
    arguments = [locked(a) if isinstance(a, np.ndarray) else a for a in arguments]
    chunk = max(64, min(CHUNK, -(-n // numba.get_num_threads())))
    share(lambda first, end: work(first, end, *arguments, *out), n, chunk)
