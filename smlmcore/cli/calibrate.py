"""`smlmcore calibrate`: a PSF from beads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .options import camera_arguments, number, output_arguments, show


def add(commands: Any) -> None:
    p = commands.add_parser(
        "calibrate",
        help="learn a PSF from z-stacks of beads",
        description="Find the beads in z-stacks and write the PSF behind them (psf.npz) with a report: a spline "
        "through their registered average, or the pupil that is likeliest to have made them.  Camera settings come "
        "from the files' metadata where they are not given here.",
    )
    p.add_argument("stacks", type=Path, nargs="+", metavar="STACK", help="z-stack of beads, TIFF or Picasso .raw")
    p.add_argument("--psf", choices=("spline", "pupil"), default="spline", help="kind of PSF (default: spline)")
    p.add_argument("--z-step", type=float, required=True, metavar="N", help="distance of the slices, µm")
    p.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="folder for the results (default: STACK.psf)")
    number(p, "--box", int, "odd side of the beads' images, pixels", 25)
    number(p, "--sigma", float, "usual width of a bead's image, pixels", 1.5)
    number(p, "--threshold", float, "least height of a bead in the summed stack, standard deviations of noise", 20.0)
    number(p, "--smooth", float, "of a spline: width of the filter along z, µm", 0.1)
    pupil = p.add_argument_group("a pupil's optics")
    number(pupil, "--na", float, "numerical aperture")
    number(pupil, "--wavelength", float, "of the light, µm")
    number(pupil, "--n-immersion", float, "refractive index of the immersion medium", 1.518)
    number(pupil, "--n-medium", float, "refractive index around the beads (default: that of the immersion)")
    number(pupil, "--zernike", int, "modes of the phase, in Noll's order", 36)
    number(pupil, "--magnitude", int, "modes of the magnitude", 0)
    number(pupil, "--bead", float, "diameter of the beads, µm", 0.0)
    number(pupil, "--blur", float, "blur of the images, standard deviation in pixels", 0.0)
    pupil.add_argument("--free", nargs="+", default=(), metavar="NAME", help="optics to fit: na wavelength blur ...")
    pupil.add_argument("--scalar", action="store_true", help="scalar model (default: vectorial)")
    pupil.add_argument("--drift", action="store_true", help="each slice has its own x and y")
    camera_arguments(p)
    output_arguments(p)
    p.set_defaults(run=run)


def run(
    stacks: Sequence[Path], z_step: float, out: Path | None, quiet: bool, scalar: bool, free: Sequence[str], **rest: Any
) -> None:
    from .. import calibrate

    camera = {k: rest.pop(k) for k in ("offset", "gain", "read_noise", "pixel_size")}
    optics = {k: rest.pop(k) for k in ("na", "wavelength", "n_immersion", "n_medium", "bead", "blur")}
    optics["n_medium"] = optics["n_medium"] or optics["n_immersion"]
    optics |= {k: rest.pop(k) for k in ("zernike", "magnitude", "drift")} | {"optics": free, "vectorial": not scalar}
    if rest["psf"] == "pupil":
        rest["optics"] = optics
        if missing := [f"--{k}" for k in ("na", "wavelength") if optics[k] is None]:
            raise ValueError(f"a pupil needs {' and '.join(missing)}")
    out = stacks[0].with_suffix(".psf") if out is None else out
    report = calibrate.calibrate(stacks, out, z_step, camera=camera, quiet=quiet, **rest)
    if not quiet:
        error = report["rms_z_error"]
        low, high = report["z_range"]
        show(
            {
                "psf": out / "psf.npz",
                "beads": f"{report['used']} used of {report['found']} found",
                "z": f"{low:g} to {high:g} µm",
                "z error": "no slice could be fitted" if error is None else f"{1000 * error:.1f} nm rms, of the slices",
                **{k: f"{v['value']:.4g} ± {v['error']:.2g}" for k, v in report.get("fitted_optics", {}).items()},
                **({"residual": f"{report['residual']:.4g} (noise alone: 1)"} if "residual" in report else {}),
            }
        )
