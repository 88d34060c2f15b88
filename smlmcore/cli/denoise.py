"""`smlmcore denoise`: images without their noise, learned from themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .options import image_arguments, number, output_arguments, show


def add(commands: Any) -> None:
    p = commands.add_parser(
        "denoise",
        help="remove the noise of images, learned from them alone",
        description="Learn from noisy images how to denoise them, without clean ones, and write the result in "
        "photoelectrons.  With --camera every pixel has its own read noise (sCMOS).",
    )
    p.add_argument("images", type=Path, metavar="IMAGES", help="noisy images, one in each frame")
    p.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.tif", help="denoised images to write")
    p.add_argument("--psf", type=Path, metavar="FILE.tif", help="the result is an object blurred by this kernel")
    number(p, "--steps", int, "training steps (default: those of smlmcore.denoising.denoise)")
    number(p, "--seed", int, "seed of all random numbers", 0)
    image_arguments(p)
    output_arguments(p)
    p.set_defaults(run=run)


def run(
    images: Path,
    out: Path,
    psf: Path | None,
    steps: int | None,
    seed: int,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    from .. import data
    from ..denoising import denoise
    from .images import check_tiff, read_images, write_images

    check_tiff(out, overwrite)
    noisy, camera = read_images(images, options)
    given = {} if steps is None else {"steps": steps}
    if psf is not None:
        with data.open_movie(psf) as movie:
            given["psf"] = movie.read()[0].astype(np.float32)
    found = denoise(noisy, camera.variance, seed=seed, progress=not quiet, **given)
    write_images(out, found.images, camera)
    if not quiet:
        with np.errstate(invalid="ignore"):
            removed = float(np.nanstd(noisy - found.images))
        show({"denoised": out, "images": len(noisy), "removed noise": f"{removed:.4g} e, standard deviation"})
