"""The report of a run as one HTML file that needs nothing else: no script, no network.

The charts are written as SVG here; a plotting library would take longer to load than the run itself.
"""

from __future__ import annotations

import base64
import html as markup
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from ..data import take
from ..psf.base import PSF
from ..simulate.movie import light
from .render import scale_bar

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 380, 230, 52, 34, 20
INK, ACCENT, SECOND, FAINT = "#1f2933", "#0b7285", "#e8590c", "#adb5bd"
SAMPLES = 8
SAMPLE = 50_000  # values that tell from where to where a histogram goes
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the browser sees to it
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:1240px;margin:2em auto;padding:0 1em;background:#fff}
h1{font-size:1.5em;margin:0}
h2{font-size:1.1em;margin:1.6em 0 .4em}
figure{margin:0;display:inline-block;vertical-align:top}
figcaption{font-size:.9em;font-weight:600}
table{border-collapse:collapse;font-size:.9em}
td{padding:.15em .9em .15em 0;text-align:left;vertical-align:top}
svg text{font:11px system-ui,sans-serif;fill:#1f2933;paint-order:stroke;stroke:#fff;stroke-width:3px}
.facts{display:flex;flex-wrap:wrap;gap:.4em 2.4em;margin:1em 0}
.facts b{display:block;font-size:1.35em;font-weight:600}
.facts span{font-size:.85em;color:#52606d}
.picture{max-width:100%;background:#000}
.sample{image-rendering:pixelated;width:84px;height:84px;margin:1px}
.warning{background:#fff3bf;padding:.4em .8em;margin:.4em 0}
.row{display:flex;flex-wrap:wrap;gap:12px}
"""


def html(
    report: Mapping[str, Any],
    found: Any,
    charts: Sequence[tuple[str, str]],
    picture: bytes,
    samples: Sequence[np.ndarray],
    pixel_size: float | None,
) -> str:
    """The page: numbers, image, drift, the `charts` of the table, sample spots with residuals, resolution."""
    movie, nm = report["movie"], 1000 * (pixel_size or 1)
    title = ", ".join(movie["files"])
    parts = [f"<h1>{markup.escape(title)}</h1>"]
    each = (f"<div><b>{markup.escape(v)}</b><span>{markup.escape(n)}</span></div>" for n, v in facts(report, nm))
    parts.append(f'<div class="facts">{"".join(each)}</div>')
    parts += [f'<p class="warning">{markup.escape(w)}</p>' for w in report["warnings"]]
    bar = scale_bar(found.image.shape[1] * (pixel_size or 1) / report["settings"]["zoom"])
    parts.append(f"<h2>Image</h2><p>Scale bar: {bar:g} µm</p>")
    parts.append(f'<img class="picture" alt="reconstruction" src="{_uri(picture)}">')
    if near := report["model"].get("near_emitters"):
        rest = report["model"]["elsewhere"]["chi2_per_pixel"]
        parts.append(
            f"<p>Frames against their reconstruction: χ² per pixel {near['chi2_per_pixel']:.3f} near the molecules, "
            f"where {near['expected']:.3f} ± {near['error']:.3f} is expected, and {rest:.3f} elsewhere.</p>"
        )
    charts = [*charts]
    path, check, _ = found.moved
    if path is not None:
        frames = np.arange(len(path.x))
        lines = [("x", frames, path.x * nm, ACCENT), ("y", frames, path.y * nm, SECOND)]
        lines += [("", frames, v * nm, FAINT) for v in (check.x, check.y)]
        charts.insert(0, ("Drift (grey: cross-correlation)", lines_chart(lines, "frame", "nm")))
    if len(found.events):
        charts.append(("Events by their number of frames", histogram(found.events["length"], "frames")))
    if found.curve is not None:
        curve, q = found.curve.curve, found.curve.frequency / nm
        keep = slice(1, None, max(1, len(q) // 300))
        seventh = np.full(len(q[keep]), 1 / 7)
        lines = [("FRC", q[keep], curve[keep], ACCENT), ("1/7", q[keep], seventh, FAINT)]
        charts.append(("Fourier ring correlation", lines_chart(lines, "1 / nm", "")))
    parts.append('<h2>Measures</h2><div class="row">')
    parts += [f"<figure><figcaption>{markup.escape(t)}</figcaption>{c}</figure>" for t, c in charts]
    parts.append("</div>")
    if len(samples):
        parts.append("<h2>Sample spots: data, model, residual over its standard deviation (−4 blue, 4 red)</h2>")
        for row in zip(*samples, strict=True):
            parts.append('<div class="row" style="gap:2px">' + "".join(row) + "</div>")
    parts.append('<h2>Numbers</h2><div class="row" style="gap:0 3em">')
    for name, values in _sections(finite(report)):
        parts.append(f"<figure><figcaption>{markup.escape(name)}</figcaption><table>")
        parts += [f"<tr><td>{markup.escape(n)}</td><td>{markup.escape(v)}</td></tr>" for n, v in values]
        parts.append("</table></figure>")
    parts.append("</div>")
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head += f'<link rel="icon" href="data:,"><title>{markup.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def charts(table: np.ndarray, frames: int, box: int, pixel_size: float | None) -> list[tuple[str, str]]:
    """Captions and charts of the `table` of so many `frames`, whose spots were fitted in images of side `box`."""
    out, nm = [], 1000 * (pixel_size or 1)
    alone = take(table, table["crowded"] == 0)
    free = alone[np.isfinite(alone["sigma_error"])] if "sigma_error" in alone.dtype.names else alone
    for name, rows, label, unit, factor in (
        ("photons", table, "Photons", "photons", 1), ("background", table, "Background", "photons per pixel", 1),
        ("lpx", table, "Uncertainty in x", "nm", nm), ("sigma_x", free, "Width of isolated spots", "nm", nm),
        ("z", table, "Depth", "nm", 1000),
    ):  # fmt: skip
        if name in table.dtype.names and len(rows) and np.ptp(rows[name]) > 0:
            out.append((label, histogram(rows[name] * factor, unit)))
    if len(alone):
        pixels = box**2 - 5
        out.append((f"χ² of isolated spots (expected: {pixels})", histogram(alone["chi2"], "χ²", mark=pixels)))
    if len(table):
        per = np.bincount(table["frame"], minlength=frames)
        block = max(1, len(per) // 200)
        mean = np.add.reduceat(per, np.arange(0, len(per), block)) / np.diff(
            np.append(np.arange(0, len(per), block), len(per))
        )
        out.append(
            ("Localizations per frame", lines_chart([("", np.arange(len(mean)) * block, mean, ACCENT)], "frame", ""))
        )
    return out


def facts(report: Mapping[str, Any], nm: float) -> list[tuple[str, str]]:
    """What one looks for first: (name, value)."""
    numbers = (report["movie"]["frames"], report["localizations"], report["events"]["number"])
    out = [(name, f"{n:,}") for name, n in zip(("frames", "localizations", "events"), numbers, strict=True)]
    if median := report.get("median"):
        out.append(("photons, median", f"{median['photons']:.0f}"))
        out.append(("uncertainty in x, median", f"{median['lpx'] * nm:.1f} nm"))
    if (resolution := report.get("resolution")) and math.isfinite(resolution["frc_nm"]):
        out.append(("resolution (FRC)", f"{resolution['frc_nm']:.0f} nm"))
    if drifted := report.get("drift"):
        out.append(("drift in x and y", " × ".join(f"{v:.0f}" for v in drifted["range_nm"]) + " nm"))
    if scores := report.get("score"):
        best = scores["whole_field"]["250"]
        out.append(("Jaccard at 250 nm against the truth", f"{best['jaccard']:.3f}"))
    return out


def samples(source: Any, table: np.ndarray, psf: PSF) -> list[list[str]]:
    """Image elements of up to SAMPLES spots, from faint to bright: data, model, residual of each."""
    if not len(table):
        return []
    photons, frames = (np.ascontiguousarray(table[name]) for name in ("photons", "frame"))
    ranks = (np.linspace(0.01, 0.99, SAMPLES) * len(table)).astype(int)
    rows = [int((photons == some).argmax()) for some in np.unique(np.partition(photons, ranks)[ranks])]
    out, half = [], 6
    h, w = source.shape[1:]
    read = np.broadcast_to(np.asarray(source.camera.variance, float), (h, w))
    for row in table[rows]:
        frame, x, y = (
            int(row["frame"]),
            int(np.clip(round(float(row["x"])), 0, w - 1)),
            int(np.clip(round(float(row["y"])), 0, h - 1)),
        )
        y0, y1, x0, x1 = max(0, y - half), min(h, y + half + 1), max(0, x - half), min(w, x + half + 1)
        image = source.read(frame, frame + 1)[0][0, y0:y1, x0:x1]
        near = table[slice(*np.searchsorted(frames, np.array([frame, frame + 1], frames.dtype)))]
        near = near[(abs(near["x"] - x) < 2 * half) & (abs(near["y"] - y) < 2 * half)]
        values = {n: near[{"sigma": "sigma_x"}.get(n, n)] for n in psf.names if n != "background"}
        values |= {"x": values["x"] - x0, "y": values["y"] - y0}
        model = light(psf, values, np.zeros(len(near), np.int64), (1, *image.shape))[0] + row["background"]
        residual = (image - model) / np.sqrt(np.maximum(model + read[y0:y1, x0:x1], 0.1))
        low, high = np.nanmin(image), max(np.nanmax(image), np.nanmin(image) + 1)
        grey = [
            np.repeat((np.clip((np.nan_to_num(v) - low) / (high - low), 0, 1) * 255)[..., None], 3, 2)
            for v in (image, model)
        ]
        t = np.clip(np.nan_to_num(residual) / 4, -1, 1)[..., None]
        white, red, blue = (np.array(c, float) for c in ((255, 255, 255), (201, 42, 42), (25, 113, 194)))
        colour = white + abs(t) * (np.where(t > 0, red, blue) - white)
        out.append([_image(v, f"{float(row['photons']):.0f} photons, frame {frame}") for v in (*grey, colour)])
    return out


def histogram(values: np.ndarray, unit: str, mark: float | None = None) -> str:
    """SVG of the counts of `values`, but for a few per mille far out; `mark`: where a line is drawn."""
    values = values[np.isfinite(values)]
    if not len(values):
        return lines_chart([], unit, "")
    sample = values[:: max(1, len(values) // SAMPLE)].astype(float)
    low, left, middle, right, high = np.quantile(sample, (0.001, 0.16, 0.5, 0.84, 0.995))
    if right > left:  # what is many times as far out as most would leave no room for the rest
        low, high = max(low, middle - 8 * (middle - left)), min(high, middle + 8 * (right - middle))
    whole = high - low < 60 and np.all(values == np.rint(values))
    if whole:
        bins = np.arange(math.floor(low) - 0.5, math.ceil(high) + 1)
    else:
        bins = np.linspace(low, high if high > low else low + 1, 61)
    count, edges = np.histogram(values, bins)
    x = np.repeat(edges, 2)
    y = np.concatenate([[0], np.repeat(count, 2), [0]])
    extra = [] if mark is None else [("", np.array([mark, mark]), np.array([0, count.max()]), SECOND)]
    return lines_chart([("", x, y, ACCENT), *extra], unit, "", fill=True)


def lines_chart(
    lines: Sequence[tuple[str, np.ndarray, np.ndarray, str]], x_label: str, y_label: str, fill: bool = False
) -> str:
    """SVG of some lines (label, x, y, colour), with axes; the first may be filled."""
    x_ticks, y_ticks = (_ticks(np.concatenate([np.asarray(line[k], float) for line in lines] or [[]])) for k in (1, 2))
    (x0, x1), (y0, y1) = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])
    wide, high = WIDTH - LEFT - 20, HEIGHT - BOTTOM - TOP

    def px(x):
        return LEFT + (np.asarray(x, float) - x0) / (x1 - x0) * wide

    def py(y):
        return TOP + (1 - (np.asarray(y, float) - y0) / (y1 - y0)) * high

    out = [f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for t in y_ticks:
        out.append(f'<path d="M{LEFT} {py(t):.1f}H{WIDTH - 20}" stroke="#f1f3f5"/>')
        out.append(f'<text x="{LEFT - 5}" y="{py(t) + 4:.1f}" text-anchor="end">{t:.6g}</text>')
    for t in x_ticks:
        out.append(f'<text x="{px(t):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{t:.6g}</text>')
    for k, (label, x, y, colour) in reversed(list(enumerate(lines))):
        step = max(1, len(x) // 1500)
        points = " ".join(
            f"{a:.1f},{b:.1f}" for a, b in zip(px(x[::step]), py(y[::step]), strict=True) if math.isfinite(a + b)
        )
        inner = f"{colour}44" if fill and k == 0 else "none"
        out.append(f'<polyline points="{points}" fill="{inner}" stroke="{colour}" stroke-width="1.3"/>')
        if label:
            out.append(
                f'<text x="{WIDTH - 24 - 30 * k}" y="{TOP - 9}" text-anchor="end" style="fill:{colour}">{label}</text>'
            )
    out.append(f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - 20}" fill="none" stroke="{INK}"/>')
    out.append(f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 4}" text-anchor="middle">{x_label}</text>')
    if y_label:
        out.append(f'<text x="{LEFT - 5}" y="{TOP - 9}" text-anchor="end">{y_label}</text>')
    return "".join(out) + "</svg>"


def _ticks(values: np.ndarray) -> np.ndarray:
    """Round numbers that enclose all finite `values`."""
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    high = high if high > low else low + 1
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = min((n * power for n in (1, 2, 5, 10) if n * power >= (high - low) / 5), default=10 * power)
    return np.arange(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1) * step


def finite(value: Any) -> Any:
    """`value` with NaN and infinity as None, and NumPy's numbers as Python's: what JSON has words for."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sections(report: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The report's numbers as tables with a name; what is not there is left out."""
    single = {k: v for k, v in report.items() if not isinstance(v, Mapping) and k != "warnings"}
    groups = {"run": single, **{k: v for k, v in report.items() if isinstance(v, Mapping)}}
    found = ((name.replace("_", " "), _flat(values)) for name, values in groups.items())
    return [(name, rows) for name, rows in found if rows]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    out = []
    for name, value in values.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            out += _flat(value, f"{label} · ")
        elif value is not None and value != []:
            items = value if isinstance(value, list) else [value]
            out.append((label, ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in items)))
    return out


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _image(rgb: np.ndarray, title: str) -> str:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).save(buffer, "png")
    return f'<img class="sample" title="{title}" alt="{title}" src="{_uri(buffer.getvalue())}">'
