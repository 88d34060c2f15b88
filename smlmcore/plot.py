"""Figures, on matplotlib's object interface: nothing is shown, no global state is touched."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .pictures import limits

INK, ACCENT, SECOND, FAINT = "#1f2933", "#0b7285", "#e8590c", "#adb5bd"


def report(
    report: Mapping[str, Any],
    reconstruction: np.ndarray,
    images: np.ndarray,
    prediction: np.ndarray,
    history: Mapping[str, list[float]],
    errors: Mapping[str, np.ndarray],
) -> Figure:
    """The picture of one run: sample spots with prediction and residual, loss, errors, and the reconstruction.

    `reconstruction`: image of the localizations; `images`, `prediction` (m, h, w): sample spots in photoelectrons;
    `errors`: position errors in units of the CRLB by stage, or, where the truth is unknown,
    {"uncertainty": lateral uncertainty in pixels}.
    """
    figure = Figure(figsize=(13, 8.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.0, 1.15])
    movie = report["movie"]
    figure.suptitle(
        f"{movie['file']}: {report['localizations']:,} localizations in {movie['frames']:,} frames",
        color=INK,
        fontsize=14,
    )
    _samples(top, images, prediction, residuals(images, prediction, report["camera"]["read_noise"] ** 2))
    loss, histogram, picture = bottom.subplots(1, 3, width_ratios=[1, 1, 1.1])
    _loss(loss, history, report["loss"])
    _errors(histogram, errors)
    bright = reconstruction[reconstruction > 0]
    picture.imshow(reconstruction, cmap="inferno", vmax=np.percentile(bright, 98) if len(bright) else 1)
    picture.set_title("reconstruction", color=INK)
    picture.set_axis_off()
    return figure


def pupil(psf: Any, shape: tuple[int, int] = (31, 31), planes: int = 5) -> Figure:
    """What a `psf.Pupil` looks like: magnitude and phase, its Zernike coefficients, xy at `planes` z, and xz.

    >>> from smlmcore import psf
    >>> len(pupil(psf.Pupil(1.2, 0.6, 1.33, 1.33, 0.1, zernike={(2, 2): 0.5}), (15, 15)).axes) > 5
    True
    """
    from .psf import zernike

    psf, (low, high) = psf.detach(), psf.z_range
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1)
    magnitude, phase, bars = top.subplots(1, 3, width_ratios=[1, 1, 1.6])
    outside = ~psf.inside
    shown = {
        "magnitude": np.ones(outside.shape) if psf.magnitude is None else psf.magnitude,
        "phase (rad)": psf.aberration(),
    }
    for axis, (title, values) in zip((magnitude, phase), shown.items(), strict=True):
        most = np.abs(values[~outside]).max() or 1
        limits = {"cmap": "viridis", "vmin": 0} if title == "magnitude" else {"cmap": "RdBu_r", "vmin": -most}
        image = axis.imshow(np.ma.masked_where(outside, values), vmax=most, extent=(-1, 1, 1, -1), **limits)
        figure.colorbar(image, ax=axis, shrink=0.8)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_title(title, color=INK)
    names = zernike.label(psf.modes)
    bars.barh(range(len(names)), psf.zernike, color=np.where(psf.zernike < 0, SECOND, ACCENT))
    bars.set(yticks=range(len(names)), yticklabels=names, xlabel="coefficient (rad RMS)")
    bars.invert_yaxis()
    bars.axvline(0, color=FAINT, lw=0.8)
    bars.set_title("Zernike coefficients", color=INK)
    bars.spines[["top", "right"]].set_visible(False)

    axes = bottom.subplots(1, planes + 1, width_ratios=[1] * planes + [1.3])
    z = np.linspace(low, high, 41)
    volume = psf.volume(z, shape)
    for axis, i in zip(axes, np.linspace(0, len(z) - 1, planes).round().astype(int), strict=False):
        axis.imshow(volume[i], cmap="inferno", vmin=0)
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"z = {z[i]:+.2f} µm", color=INK)
    half = (shape[1] - 1) / 2 * psf.pixel_size
    axes[-1].imshow(
        volume[:, shape[0] // 2],
        cmap="inferno",
        vmin=0,
        origin="lower",
        extent=(-half, half, low, high),
        aspect="equal",
    )
    axes[-1].set(xlabel="x (µm)", ylabel="z (µm)")
    return figure


def history(numbers: Mapping[str, Any]) -> Figure:
    """Numbers of a training over its steps, one panel for each group: the `history` of a `Trainer` or a `Board`.

    Names of a Board's numbers are "group/name", each with its steps and values.  Groups that are positive and span
    more than a decade have a logarithmic axis.

    >>> len(history({"loss/train": ([1, 2], [0.5, 0.4]), "step/rate": ([1], [1e-3])}).axes)
    2
    """
    if "step" in numbers:
        shown = {"train": "loss", "validation": "loss", "rate": "learning rate", "images_per_second": "speed"}
        columns = {f"{group}/{name}": (numbers["step"], numbers[name]) for name, group in shown.items()}
    else:
        columns = dict(numbers)
    groups = list(dict.fromkeys(name.partition("/")[0] for name in columns))
    across = min(3, max(len(groups), 1))
    figure = Figure(figsize=(4.4 * across, 3.2 * max(-(-len(groups) // across), 1)), layout="constrained")
    axes = figure.subplots(-(-len(groups) // across) or 1, across, squeeze=False).ravel()
    for axis, group in zip(axes, groups, strict=False):
        own = {name.partition("/")[2]: pair for name, pair in columns.items() if name.partition("/")[0] == group}
        for name, (steps, values) in own.items():
            axis.plot(steps, values, lw=1.5, marker="." if len(steps) < 30 else "", label=name)
        values = np.concatenate([np.asarray(v, float) for _, v in own.values()])
        values = values[np.isfinite(values)]
        if values.size and values.min() > 0 and values.max() > 10 * values.min():
            axis.set_yscale("log")
        axis.set(xlabel="step")
        axis.set_title(group, color=INK)
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(groups) :]:
        axis.remove()
    return figure


def check(
    images: np.ndarray,
    prediction: np.ndarray,
    residual: np.ndarray,
    pictures: Mapping[str, Any],
    renders: np.ndarray,
) -> Figure:
    """Data, prediction and residual / σ (n, h, w) in three rows, the `pictures` of the parts, and random `renders`."""
    n, lines = len(images), -(-len(pictures) // 6)
    figure = Figure(figsize=(2 * max(n, 3), 1.9 * 4 + 2.4 * lines), layout="constrained")
    heights = [3 * 1.9, *([2.4 * lines] if lines else []), 1.9]
    top, *between, bottom = figure.subfigures(len(heights), 1, height_ratios=heights)
    _samples(top, images, prediction, residual)
    for panel in between:
        shown = panel.subplots(lines, min(len(pictures), 6), squeeze=False).ravel()
        for axis, (name, values) in zip(shown, pictures.items(), strict=False):
            supplementary(axis, name, values)
        for axis in shown[len(pictures) :]:
            axis.set_axis_off()
    for axis, image in zip(bottom.subplots(1, n, squeeze=False)[0], renders, strict=True):
        show(axis, image, "viridis", *limits(image))
    bottom.axes[0].set_ylabel("random", color=INK)
    return figure


def supplementary(axis: Any, name: str, values: Any) -> None:
    """Draw a picture of a part (`smlmcore.pictures`): an image with its scale, or bars."""
    if isinstance(values, Mapping):
        numbers = np.array(list(values.values()), float)
        axis.barh(range(len(values)), numbers, color=np.where(numbers < 0, SECOND, ACCENT))
        axis.set_yticks(range(len(values)), list(values), fontsize=6)
        axis.invert_yaxis()
        axis.axvline(0, color=FAINT, lw=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    else:
        low, high = limits(values)
        most = max(-low, high)
        image = show(axis, values, *(("RdBu_r", -most, most) if low < 0 else ("viridis", low, high)))
        axis.figure.colorbar(image, ax=axis, shrink=0.8)
    axis.set_title(name, color=INK, fontsize=9)


def show(axis: Any, image: np.ndarray, colors: str, low: float, high: float) -> Any:
    """Draw `image` without a frame."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return axis.imshow(image, cmap=colors, vmin=low, vmax=high)


def scores(scores: Mapping[str, Any], images: np.ndarray, prediction: np.ndarray, variance: Any = 0.0) -> Figure:
    """Fits that are as good as `scores`, a `fit.Score` by stage, with the first eight of `images` (m, h, w).

    Above data, prediction and residual of these images, below the errors of each parameter over the bound by stage.

    >>> from smlmcore import fit, psf
    >>> images, truth = fit.simulate_spots(psf.Gaussian2D(1.3), 20, (9, 9), np.random.default_rng(0))
    >>> found = fit.score(psf.Gaussian2D(1.3), truth, truth, (9, 9))
    >>> len(scores({"exact": found}, images[:4], images[:4]).axes)
    16
    """
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.25, 1.0])
    images, prediction = np.asarray(images)[:8], np.asarray(prediction)[:8]
    _samples(top, images, prediction, residuals(images, prediction, variance))
    names = next(iter(scores.values())).names
    for k, (axis, name) in enumerate(zip(bottom.subplots(1, len(names), sharey=True), names, strict=True)):
        deviations = {f"{stage} {s.ratio[k]:.3f}": s.deviation[:, k] for stage, s in scores.items()}
        _over_bound(axis, deviations)
        axis.set(xlabel=f"error of {name} / CRLB", ylabel="" if k else "density")
        axis.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def residuals(images: np.ndarray, prediction: np.ndarray, variance: Any) -> np.ndarray:
    """Data minus prediction in units of the noise's standard deviation: sqrt(prediction + variance)."""
    return (images - prediction) / np.sqrt(np.maximum(prediction, 0) + variance)


def _samples(figure: Any, images: np.ndarray, prediction: np.ndarray, residual: np.ndarray) -> None:
    """Three rows: data, prediction, and residual in units of its standard deviation."""
    axes = figure.subplots(3, max(len(images), 1), squeeze=False)
    for column, (data, found, spread) in enumerate(zip(images, prediction, residual, strict=True)):
        low, high = limits(data)
        show(axes[0, column], data, "viridis", low, high)
        show(axes[1, column], found, "viridis", low, high)
        show(axes[2, column], spread, "RdBu_r", -4, 4)
    for axis, label in zip(axes[:, 0], ("data", "prediction", "residual / σ"), strict=True):
        axis.set_ylabel(label, color=INK)


def calibration(psf: Any, depth: np.ndarray, bound: np.ndarray, z: np.ndarray, error: np.ndarray) -> Figure:
    """A PSF at seven depths, its bound at 1000 photons over `depth` (um), and the `error` in `z` of its own beads."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.0, 1.3])
    side, shown = 21, np.linspace(*psf.z_range, 9)[1:-1]
    middle = (side - 1) / 2
    images = psf.render({"x": middle, "y": middle, "z": shown, "photons": 1.0, "background": 0.0}, (side, side))
    for axis, image, at in zip(top.subplots(1, len(shown)), images, shown, strict=True):
        axis.imshow(image, cmap="viridis")
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"z = {at:.2f} µm", color=INK, fontsize=9)
    left, right = bottom.subplots(1, 2)
    for column, (name, color) in enumerate(zip(("x (pixels)", "y (pixels)"), (FAINT, SECOND), strict=True)):
        left.semilogy(depth, bound[:, column], color=color, lw=1.8, label=name)
    left.semilogy(depth, bound[:, 2], color=ACCENT, lw=1.8, label="z (µm)")
    left.set(xlabel="z (µm)", ylabel="Cramér–Rao bound")
    left.set_title("1000 photons, background 5 per pixel", color=INK)
    left.legend(frameon=False)
    right.plot(z, 1000 * error, ".", ms=3, color=ACCENT)
    right.axhline(0, color=SECOND, ls="--", lw=1)
    right.set(xlabel="z of the stage (µm)", ylabel="z fitted − z of the stage (nm)")
    right.set_title("slices of the beads, fitted with the PSF", color=INK)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _loss(axis: Any, history: Mapping[str, list[float]], loss: Mapping[str, Any]) -> None:
    """The loss on unseen spots above that of the best fit to each of them, and where the true parameters are."""
    excess = np.maximum(np.array(history["validation"]) - loss["refined"], 1e-5)
    axis.semilogy(history["epoch"], excess, color=ACCENT, lw=1.8, label="encoder")
    above = loss["noise_floor"] - loss["refined"]
    axis.axhline(max(above, 1e-5), color=SECOND, ls="--", label=f"noise floor ({loss['noise_floor_from']})")
    axis.set(xlabel="epoch", ylabel="loss above the best fit (nats per pixel)")
    axis.set_title("learning without labels, unseen spots", color=INK)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _errors(axis: Any, errors: Mapping[str, np.ndarray]) -> None:
    """Histogram of position errors over the bound, with the normal density, or of the uncertainties."""
    if set(errors) == {"uncertainty"}:
        values = errors["uncertainty"]
        axis.hist(values, bins=60, range=(0, max(np.percentile(values, 99), 1e-3) if len(values) else 1), color=ACCENT)
        axis.set(xlabel="lateral uncertainty (pixels)", ylabel="localizations")
        axis.set_title("uncertainty (Cramér–Rao)", color=INK)
    else:
        _over_bound(axis, errors)
        axis.set(xlabel="error of x, y / CRLB", ylabel="density")
        axis.set_title("error on unseen spots", color=INK)
        axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _over_bound(axis: Any, deviations: Mapping[str, np.ndarray]) -> None:
    """Density of error / CRLB by stage, and the normal density that it has at the bound."""
    bins = np.linspace(-5, 5, 81)
    for (name, values), color in zip(deviations.items(), cycle((FAINT, ACCENT, INK)), strict=False):
        density, _ = np.histogram(values, bins=bins)
        density = density / max(np.isfinite(values).sum(), 1) / (bins[1] - bins[0])
        axis.stairs(density, bins, lw=1.8, color=color, label=name)
    centre = (bins[1:] + bins[:-1]) / 2
    axis.plot(centre, np.exp(-(centre**2) / 2) / np.sqrt(2 * np.pi), color=SECOND, ls="--", label="the bound")
    axis.spines[["top", "right"]].set_visible(False)


def retrieval(report: Any) -> Figure:
    """The picture of a retrieved pupil, from `psf.retrieval.Report`: slices, pupil, coefficients, residual by slice.

    The first bead is shown; residuals are in units of the noise, from -4 to 4.
    """
    psf, bead = report.pupil, 0
    figure = Figure(figsize=(13, 9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.25, 1.0])
    figure.suptitle(
        f"pupil from {len(report.data)} bead{'s' if len(report.data) > 1 else ''}: residual {report.residual:.3f} "
        f"(noise alone: 1.000 ± {report.residual_error:.3f})",
        color=INK,
        fontsize=14,
    )
    shown = np.unique(np.linspace(0, len(report.z_planes) - 1, min(9, len(report.z_planes))).round().astype(int))
    _slices(top, report, bead, shown)
    phase, magnitude, bars, by_slice = bottom.subplots(1, 4, width_ratios=[1, 1, 1.5, 1.2])
    inside = np.where(psf.inside, 1.0, np.nan)
    aberration = psf.aberration() * inside
    most = max(float(np.nanmax(np.abs(aberration))), 1e-3)
    amplitude = np.ones_like(inside) if psf.magnitude is None else np.asarray(psf.magnitude)
    for axis, image, title, scale in (
        (phase, aberration, "phase (rad)", {"cmap": "RdBu_r", "vmin": -most, "vmax": most}),
        (magnitude, amplitude * inside, "magnitude", {"cmap": "viridis", "vmin": 0}),
    ):
        figure.colorbar(axis.imshow(image, **scale), ax=axis, shrink=0.7)
        axis.set_title(title, color=INK)
        axis.set_axis_off()
    places = np.arange(len(psf.modes))
    bars.bar(places, psf.zernike, yerr=report.errors, color=ACCENT, ecolor=SECOND)
    bars.set_xticks(places, [f"{n},{m}" for n, m in psf.modes], rotation=90, fontsize=7)
    bars.set(xlabel="mode n, m", ylabel="radians")
    bars.set_title(f"Zernike coefficients, {np.sqrt((psf.zernike**2).sum()):.2f} rad RMS", color=INK)
    residual = (report.data - report.model) ** 2 / (report.model + report.noise)
    for values in np.nanmean(residual, (2, 3)):
        by_slice.plot(report.z_planes, values, color=ACCENT, lw=1.5, marker=".")
    by_slice.axhline(1, color=SECOND, ls="--", label="noise alone")
    by_slice.set(xlabel="z (µm)", ylabel="squared residual / noise", ylim=(0, None))
    by_slice.set_title("residual by slice", color=INK)
    by_slice.legend(frameon=False)
    for axis in (bars, by_slice):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _slices(figure: Any, report: Any, bead: int, shown: np.ndarray) -> None:
    """Three rows over the slices: data, model (each slice with its own scale, as its square root), residual."""
    data, model = report.data[bead], report.model[bead]
    residual = (data - model) / np.sqrt(model + report.noise[bead])
    axes = figure.subplots(3, len(shown), squeeze=False)
    for column, i in enumerate(shown):
        limits = {"vmin": 0, "vmax": float(np.sqrt(max(np.nanmax(data[i]), 1)))}
        axes[0, column].imshow(np.sqrt(np.maximum(data[i], 0)), cmap="inferno", **limits)
        axes[1, column].imshow(np.sqrt(np.maximum(model[i], 0)), cmap="inferno", **limits)
        axes[2, column].imshow(residual[i], cmap="RdBu_r", vmin=-4, vmax=4)
        axes[0, column].set_title(f"{report.z_planes[i]:+.2f} µm", color=INK, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, label in zip(axes[:, 0], ("√data", "√model", "residual / σ"), strict=True):
        axis.set_ylabel(label, color=INK)


def dataset(images: Any, count: int = 8) -> Figure:
    """The first `count` images of a `data.ImageSet` with their targets; volumes by their middle plane."""
    rows = [images.images] if images.targets is None else [images.images, images.targets]
    n = min(count, len(images))
    figure = Figure(figsize=(1.7 * max(n, 1), 1.9 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), max(n, 1), squeeze=False)
    for line, stack in zip(axes, rows, strict=True):
        for k, axis in enumerate(line[:n]):
            picture = stack[k] if stack.ndim == 3 else stack[k][len(stack[k]) // 2]
            axis.imshow(picture, cmap="viridis")
            if stack.ndim == 3 and {"x", "y"} <= set(images.labels):
                axis.plot(images.labels["x"][k], images.labels["y"][k], "+", color=SECOND, ms=9)
            axis.set_title(str(k), color=INK, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, text in zip(axes[:, 0], ("images", "targets"), strict=False):
        axis.set_ylabel(text, color=INK)
    return figure
