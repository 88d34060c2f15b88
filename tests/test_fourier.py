"""Trigonometric interpolation against the FFT, functions that it must reproduce, and differences."""

import numpy as np
import pytest

from smlmcore import testing
from smlmcore.interpolate import fourier


def by_fft(a, move):
    """The shift by FFT, axis by axis, with the Nyquist term cos(pi s)."""
    for axis, s in enumerate(move):
        n = a.shape[axis]
        k = np.fft.fftfreq(n) * n
        ramp = np.exp(-2j * np.pi * k * s / n)
        if n % 2 == 0:
            ramp[n // 2] = np.cos(np.pi * s)
        spectrum = np.fft.fft(a, axis=axis) * ramp.reshape(-1, *(1,) * (a.ndim - 1 - axis))
        a = np.fft.ifft(spectrum, axis=axis)
    return a


@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (8,), (5, 8), (32, 32), (4, 5, 6)])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_shift_is_that_of_the_fft(shape, kind):
    rng = np.random.default_rng(len(shape))
    a = rng.normal(size=shape) + (1j * rng.normal(size=shape) if kind == "complex" else 0)
    move = rng.uniform(-20, 20, len(shape))
    got, want = fourier.shift(a, move), by_fft(a, move)
    assert got.dtype == a.dtype
    np.testing.assert_allclose(got, want if kind == "complex" else want.real, atol=1e-12)
    if kind == "real":
        np.testing.assert_allclose(want.imag, 0, atol=1e-12)  # which a complex ramp at the Nyquist term is not
    single = fourier.shift(a.astype(np.complex64 if kind == "complex" else np.float32), move.astype(np.float32))
    assert single.itemsize == a.itemsize // 2
    np.testing.assert_allclose(single, got, atol=3e-5)  # the shift itself is rounded: 20 * 6e-8 * slope of the noise


def test_whole_shifts_roll_and_shifts_add_up():
    a = np.random.default_rng(0).normal(size=(7, 9))
    np.testing.assert_allclose(fourier.shift(a, [2.0, -3.0]), np.roll(a, (2, -3), (0, 1)), atol=1e-12)
    np.testing.assert_allclose(
        fourier.shift(fourier.shift(a, [0.3, 1.1]), [1.7, -0.1]), np.roll(a, (2, 1), (0, 1)), atol=1e-12
    )


def test_zoom_reproduces_a_band_limited_function():
    def wave(y, x):
        return 1 + np.cos(2 * np.pi * (2 * y / 16 - x / 11)) + np.sin(2 * np.pi * 3 * x / 11)

    a = wave(*np.mgrid[:16, :11])
    y, x = (np.arange(9) - 4) / 5 + 6.2, (np.arange(8) - 3.5) / 3 + 4.9
    got = fourier.zoom(a, (5, 3), shape=(9, 8), centre=[6.2, 4.9])
    np.testing.assert_allclose(got, wave(y[:, None], x), atol=1e-12)
    np.testing.assert_allclose(fourier.zoom(a, 1), a, atol=1e-12)
    assert fourier.zoom(a, 2).shape == (32, 22)
    np.testing.assert_allclose(fourier.zoom(a * 1j, (5, 3), (9, 8), [6.2, 4.9]), 1j * got, atol=1e-12)


def test_batches_and_gradients():
    rng = np.random.default_rng(1)
    a, moves = rng.normal(size=(3, 6, 5)), rng.uniform(-2, 2, (3, 2))
    one_by_one = np.stack([fourier.shift(x, s) for x, s in zip(a, moves, strict=True)])
    np.testing.assert_allclose(fourier.shift(a, moves), one_by_one, atol=1e-12)
    np.testing.assert_allclose(fourier.shift(a[0], moves)[1], fourier.shift(a[0], moves[1]), atol=1e-12)
    np.testing.assert_allclose(fourier.shift(a, moves[0])[1], fourier.shift(a[1], moves[0]), atol=1e-12)
    np.testing.assert_allclose(
        fourier.shift(a[:, 0], moves[:, :1])[1], fourier.shift(a[1, 0], moves[1, :1]), atol=1e-12
    )
    assert fourier.shift(a[:0], moves[:0]).shape == (0, 6, 5)
    testing.check_gradient(fourier.shift, a, moves)
    testing.check_gradient(fourier.shift, a + 1j * a[::-1], moves)
    testing.check_gradient(fourier.shift, rng.normal(size=(2, 4, 3, 5)), rng.normal(size=(2, 3)))
    testing.check_gradient(fourier.shift, a[:, 0], moves[:, :1])
    testing.check_gradient(lambda a, c: fourier.zoom(a, (2, 3), (4, 7), c), a, moves)


@pytest.mark.parametrize("kind", [np.float32, np.complex64])
def test_a_single_precision_image_at_double_precision_points(kind):
    rng = np.random.default_rng(5)
    a = (
        (rng.normal(size=(6, 7)) + 1j * rng.normal(size=(6, 7))).astype(kind)
        if kind == np.complex64
        else (rng.normal(size=(6, 7)).astype(kind))
    )
    points = [rng.uniform(0, 6, 4), rng.uniform(0, 7, 5)]
    wide = a.astype(np.complex128 if kind == np.complex64 else np.float64)
    np.testing.assert_allclose(fourier.at(a, points), fourier.at(wide, points), rtol=1e-5, atol=1e-5)


def test_errors():
    a = np.ones((4, 5))
    for call, text in [
        (lambda: fourier.shift(a, 1.0), r"shift got an array of shape \(4, 5\) and 0 coordinates"),
        (lambda: fourier.shift(a, [1.0, 2.0, 3.0]), "3 coordinates"),
        (lambda: fourier.shift(np.ones((0, 4)), [1.0, 1.0]), "none of them empty"),
        (lambda: fourier.zoom(a, -1), "factor=-1"),
        (lambda: fourier.zoom(a, 2, centre=[1.0]), r"centre of shape \(1,\); expected \(\.\.\., 2\)"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
