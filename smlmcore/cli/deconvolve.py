"""`smlmcore deconvolve`: images or a volume without their blur."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .options import image_arguments, number, output_arguments, show


def add(commands: Any) -> None:
    p = commands.add_parser(
        "deconvolve",
        help="remove a known or roughly known blur",
        description="Find the object that, blurred by KERNEL, explains IMAGES, and write it in photoelectrons.  A "
        "kernel of several planes blurs IMAGES as one volume, a kernel of a single plane each of them alone.",
    )
    p.add_argument("images", type=Path, metavar="IMAGES", help="blurred images or volume")
    p.add_argument("kernel", type=Path, metavar="KERNEL", help="image or volume of the blur")
    p.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.tif", help="object to write")
    number(p, "--iterations", int, "steps of Richardson and Lucy", 200)
    number(p, "--refine", int, "the kernel is only a start, and follows after so many iterations")
    number(p, "--every", int, "with --refine: iterations from one step of the kernel to the next", 5)
    p.add_argument("--symmetric", action="store_true", help="with --refine: the kernel stays symmetric")
    p.add_argument("--kernel-out", type=Path, metavar="FILE.tif", help="with --refine: write the kernel that was found")
    p.add_argument("--mode", choices=("periodic", "same", "valid"), default="same", help="what is beyond the border")
    number(p, "--deviance", float, "end earlier, when the mean deviance of a pixel is down to this (noise alone: 1)")
    number(p, "--background", float, "photoelectrons per pixel that no kernel has blurred", 0.0)
    image_arguments(p)
    output_arguments(p)
    p.set_defaults(run=run)


def run(
    images: Path,
    kernel: Path,
    out: Path,
    iterations: int,
    refine: int | None,
    every: int,
    symmetric: bool,
    kernel_out: Path | None,
    mode: str,
    deviance: float | None,
    background: float,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    from .. import data
    from ..deconvolution import deconvolve
    from .images import check_tiff, read_images, write_images

    for path in (out, *([] if kernel_out is None else [kernel_out])):
        check_tiff(path, overwrite)
    with data.open_movie(kernel) as movie:
        blur = movie.read().astype(np.float32)
    blurred, camera = read_images(images, options)
    settings = {"refine": refine, "every": every, "symmetric": symmetric, "mode": mode, "deviance": deviance}
    settings |= {"background": background, "variance": camera.variance, "progress": not quiet}
    if len(blur) > 1:
        found = [deconvolve(blurred, blur, iterations, **settings)]
        objects, kernels = found[0].object, found[0].kernel
    else:
        found = [deconvolve(image, blur[0], iterations, **settings) for image in blurred]
        objects, kernels = np.stack([f.object for f in found]), np.stack([f.kernel for f in found])
    write_images(out, objects, camera)
    if kernel_out is not None:
        write_images(kernel_out, kernels, camera)
    if not quiet:
        losses = [f.loss for f in found if f.loss]
        first, last = (np.mean([loss[i] for loss in losses]) for i in (0, -1)) if losses else (np.nan, np.nan)
        change = f"{first:.5f} to {last:.5f} nats per pixel, up to a constant"
        show({"object": out, "size": " x ".join(map(str, objects.shape)), "loss": change})
