"""`smlmcore predict`: numbers for each image, from a model that has been trained."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .options import image_arguments, output_arguments, show


def add(commands: Any) -> None:
    p = commands.add_parser(
        "predict",
        help="let a trained model look at images",
        description="Write what a model finds in each image to a table (.csv) or to arrays by name (.npz).",
    )
    p.add_argument("model", type=Path, metavar="MODEL", help="best.npz, or the folder that smlmcore train wrote")
    p.add_argument("images", type=Path, metavar="IMAGES", help="one small image in each frame")
    p.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="table to write, .csv or .npz")
    p.add_argument("--refine", action="store_true", help="go on to the maximum of the likelihood, with errors")
    p.add_argument("--rendered", type=Path, metavar="FILE.tif", help="also write the images that the model expects")
    image_arguments(p)
    output_arguments(p)
    p.set_defaults(run=run)


def run(
    model: Path,
    images: Path,
    out: Path,
    refine: bool,
    rendered: Path | None,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    from tqdm import tqdm

    from .. import data
    from ..camera import Camera
    from ..fit import FitModel
    from ..layers.chain import part
    from .images import check_tiff, read_images, write_images

    if out.suffix.lower() not in (".csv", ".npz"):
        raise data.DataError(f"{out}: is written as a table or as arrays; end its name in .csv or .npz")
    data.refuse_existing(out, overwrite=overwrite)
    if rendered is not None:
        check_tiff(rendered, overwrite)
    file = model / "best.npz" if model.is_dir() else model
    if not file.is_file():
        raise data.DataError(f"{file}: no such file; give a model that smlmcore train or FitModel.save wrote")
    try:
        learned = FitModel.load(file)
    except zipfile.BadZipFile:
        raise data.DataError(f"{file}: is no model of this library, or damaged; write it again") from None
    usual = Camera.load(file.with_name("camera.npz")) if file.with_name("camera.npz").exists() else None
    pixels, camera = read_images(images, options, usual)
    values, more = learned.predict(pixels, camera.variance), {}
    if refine:
        with tqdm(total=len(pixels), desc="refining", unit="image", disable=True if quiet else None) as bar:
            result = learned.refine(pixels, camera.variance, values, progress=bar.update)
        values = {**values, **{name: getattr(result, name) for name in result.names}}
        more = {f"{name}_error": result.errors[:, i] for i, name in enumerate(result.names)}
        more |= {name: getattr(result, name) for name in ("status", "iterations", "log_likelihood", "chi2")}
    write_table(out, {**values, **more}, len(pixels))
    if rendered is not None:
        write_images(rendered, learned.renderer(part(learned.parameters, "renderer"), values), camera)
    if not quiet:
        medians = {k: f"median {np.nanmedian(v):.5g}" for k, v in values.items() if v.ndim == 1 and v.size}
        show({"table": out, "images": len(pixels), **medians})


def write_table(path: Path, values: dict[str, np.ndarray], count: int) -> None:
    """Arrays by name, or one row for each image, or for each emitter where there are several in an image."""
    from .. import data

    with data.atomic(path) as temporary, open(temporary, "wb") as file:
        if path.suffix.lower() == ".npz":
            np.savez(file, **values)
            return
        wide = {name: v.shape[1:] for name, v in values.items() if v.ndim > 1}
        if any(len(shape) > 1 for shape in wide.values()) or len(set(wide.values())) > 1:
            raise data.DataError(f"{path}: the model finds {', '.join(wide)} as images; write them as .npz")
        several = next(iter(wide.values()), (1,))[0]
        columns = {"image": np.repeat(np.arange(count), several)}
        columns |= {name: v.ravel() if v.ndim > 1 else np.repeat(v, several) for name, v in values.items()}
        table = np.stack([np.asarray(v, float) for v in columns.values()], 1)
        np.savetxt(file, table, "%.9g", ",", header=",".join(columns), comments="")
