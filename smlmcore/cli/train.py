"""`smlmcore train`: a model from images, as a file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .options import output_arguments, show

SETTINGS = "settings.yaml"
RESULTS = "last.npz", "best.npz", "history.json", "camera.npz", SETTINGS


def add(commands: Any) -> None:
    p = commands.add_parser(
        "train",
        help="learn a model from images, as a file says",
        description="Train the model that CONFIG describes (see docs/training.md) and write it to a folder: best.npz, "
        "the model; last.npz, all that it takes to go on; history.json; camera.npz.  A training that was interrupted "
        "goes on when it is started again.",
    )
    p.add_argument("config", type=Path, metavar="CONFIG.yaml", help="images, camera, model and training")
    p.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="folder for the results (default: CONFIG.train)")
    p.add_argument(
        "--log", type=Path, nargs="?", const=Path(), metavar="FOLDER",
        help="write a log for TensorBoard (default: a new folder in LOG_PATH.run of smlmcore config)",
    )  # fmt: skip
    p.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where to compute (default: cpu)")
    output_arguments(p)
    p.set_defaults(run=run)


def run(config: Path, out: Path | None, log: Path | None, device: str, overwrite: bool, quiet: bool) -> None:
    import yaml

    from .. import backend, data
    from ..training import Board, Trainer
    from ..training.config import check, model_from
    from .images import read_images

    if not config.is_file():
        raise data.DataError(f"{config}: no such file; check the name and the folder")
    settings = data.read_yaml(config)
    out = config.with_suffix(".train") if out is None else out
    try:
        check(settings)
        stored = not overwrite and _stored(out, settings)
        camera = settings.get("camera", {})
        given = {"file": config.parent / camera} if isinstance(camera, str) else dict(camera)
        images, camera = read_images(config.parent / settings["images"], given)
        if given:
            raise ValueError(f"camera got the setting {next(iter(given))!r}; expected offset, gain, read_noise, ...")
        model = model_from(settings["model"], images.shape[1:])
        arguments = {"folder": out, "resume": stored, "progress": not quiet, **settings.get("training", {})}
        variance = camera.variance
        if device == "gpu":
            images, variance = backend.to_gpu(images), backend.to_gpu(np.asarray(variance))
            model.init(np.random.default_rng(arguments.get("seed", 0))).to_gpu()
        if log is not None:
            arguments["callbacks"] = [Board(log if log.parts else None)]
        if overwrite:
            for name in RESULTS:
                (out / name).unlink(missing_ok=True)
        trainer = Trainer(model, images, variance, **arguments)
    except (ValueError, TypeError) as error:
        raise data.DataError(f"{config}: {error}" if str(config) not in str(error) else str(error)) from None
    camera.save(out / "camera.npz")
    with data.atomic(out / SETTINGS) as temporary:
        temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    try:
        history = trainer.run()
    except KeyboardInterrupt:
        message = f"interrupted after {trainer.step} steps, which are saved; the same command goes on with them"
        raise KeyboardInterrupt(message) from None
    with data.atomic(out / "history.json") as temporary:
        plain = {name: [None if np.isnan(v) else v for v in values] for name, values in history.items()}
        temporary.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    if not quiet:
        loss = np.array(history["validation"])
        first, best = int(np.flatnonzero(~np.isnan(loss))[0]), int(np.nanargmin(loss))
        show(
            {
                "model": out / "best.npz",
                "images": f"{len(trainer.trained)} trained on, {len(trainer.held_out)} held out",
                "epochs": f"{len(loss)}, the best is {best + 1}",
                "loss": f"{loss[best]:.5f} nats per pixel, {loss[first]:.5f} after epoch {first + 1}",
                "seconds": f"{history['seconds'][-1]:.1f}",
                **({"stopped": trainer.stopped} if trainer.stopped else {}),
            }
        )


def _stored(out: Path, settings: dict[str, Any]) -> bool:
    """Whether a training with these settings lies in `out`; `DataError` if it is another one."""
    from .. import data

    if not (out / SETTINGS).exists() or not (out / "last.npz").exists():
        return False
    if _comparable(data.read_yaml(out / SETTINGS)) != _comparable(settings):
        raise data.DataError(f"{out}: holds a training with other settings; name another folder, or --overwrite")
    return True


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings but for the number of epochs, which may grow."""
    training = {k: v for k, v in settings.get("training", {}).items() if k != "epochs"}
    return {**settings, "training": training}
