"""A training from a mapping, as it stands in a YAML file.

images: spots.tif               # any movie that data.open_movie reads, one small image in each frame
camera: {offset: 100, gain: 0.5, read_noise: 1.5}    # or a file that Camera.save wrote; else the movie's metadata, else
                                                     # the images are in photoelectrons
model: {preset: gaussian2d, sigma: 1.3}              # or pupil3d, with psf: {class: Pupil, na: 1.2, ...}; or its parts:
# model:
#   encoder: {class: Conv, width: 16}
#   mapper: {class: Direct, solve: [photons, background], parameters: {x: {activation: tanh, offset: 5, scale: 3}, ...}}
#   renderer: {class: PSF, psf: {class: Gaussian2D}}
#   loss: {class: PoissonGaussian, exact: false}     # the default
training: {epochs: 50, batch: 256, save_every: 100}  # arguments of training.Trainer

A part is its class, with the arguments of its constructor; `shape` is that of the images and `outputs` of the encoder
the number of features that the mapper needs, unless they are given.  Instead of its arguments a PSF may have a `file`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .. import fit
from ..fit.model import PARTS, FitModel

KEYS = ("images", "camera", "model", "training")
ROOMS = {"encoder": "encoder", "mapper": "mapper", "renderer": "renderer", "loss": "loss", "psf": "psf"}
PRESETS = {"gaussian2d": fit.gaussian2d, "pupil3d": fit.pupil3d}


def check(settings: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names the first of `settings` that is unknown or missing, before any work.

    >>> check({"images": "a.tif", "model": {"preset": "gaussian2d"}, "training": {"epoch": 9}})
    Traceback (most recent call last):
    ValueError: training got the setting 'epoch'; expected some of epochs, batch, ..., save_every
    """
    from .trainer import Trainer

    for name in ("images", "model"):
        if name not in settings:
            raise ValueError(f"the setting {name!r} is missing; expected {', '.join(KEYS)}")
    _known("the file", settings, KEYS)
    for name in ("model", "training"):
        if not isinstance(settings.get(name, {}), Mapping):
            raise ValueError(f"{name} is {settings[name]!r}; expected names and values")
    rest = ("self", "model", "images", "variance", "folder", "resume", "progress", "callbacks")
    _known(
        "training", settings.get("training", {}), [k for k in inspect.signature(Trainer).parameters if k not in rest]
    )


def model_from(settings: Mapping[str, Any], shape: tuple[int, ...]) -> FitModel:
    """The model that `settings` describe (see the module's text), for images of `shape`.

    Raises `ValueError` that names what is wrong.

    >>> model_from({"preset": "gaussian2d", "sigma": 1.3}, (11, 11)).renderer.shape
    (11, 11)
    """
    settings = dict(settings)
    if "preset" in settings:
        name = settings.pop("preset")
        if name not in PRESETS:
            raise ValueError(f"model got preset {name!r}; expected one of {', '.join(PRESETS)}")
        if isinstance(settings.get("psf"), Mapping):
            settings["psf"] = _part("psf", settings["psf"], {})
        return _made(f"preset {name}", PRESETS[name], {"shape": shape, **settings})
    _known("model", settings, PARTS)
    if missing := [name for name in PARTS[:3] if name not in settings]:
        raise ValueError(f"model lacks {' and '.join(missing)}; expected a preset, or encoder, mapper and renderer")
    mapper = _part("mapper", settings["mapper"], {})
    encoder = _part("encoder", settings["encoder"], {"shape": shape, "outputs": getattr(mapper, "features", None)})
    renderer = _part("renderer", settings["renderer"], {"shape": shape})
    loss = _part("loss", settings["loss"], {}) if "loss" in settings else None
    return FitModel(encoder, mapper, renderer, loss)


def _part(kind: str, settings: Any, usual: Mapping[str, Any]) -> Any:
    """The part of `kind`, with the values of `usual` that it takes and that are not given."""
    if not isinstance(settings, Mapping) or "class" not in settings:
        raise ValueError(f"{kind} is {settings!r}; expected a mapping with a class and its arguments")
    settings = dict(settings)
    name = settings.pop("class")
    room = import_module(f"..{ROOMS[kind]}", __package__)
    found = getattr(room, str(name), None)
    if not inspect.isclass(found):
        classes = sorted(k for k in dir(room) if inspect.isclass(getattr(room, k)) and not k.startswith("_"))
        raise ValueError(f"{kind} got class {name!r}; expected one of {', '.join(classes)}")
    if "file" in settings and hasattr(found, "load"):
        return _made(name, found.load, {"path": settings.pop("file"), **settings})
    for inner in ROOMS.keys() & settings.keys():
        if isinstance(settings[inner], Mapping):
            settings[inner] = _part(inner, settings[inner], usual)
    if kind == "mapper" and isinstance(settings.get("parameters"), Mapping):
        parameter = import_module("..mapper", __package__).Parameter
        settings["parameters"] = {k: _made(k, parameter, v or {}) for k, v in settings["parameters"].items()}
    taken = inspect.signature(found).parameters
    return _made(name, found, {**{k: v for k, v in usual.items() if k in taken}, **settings})


def _made(name: str, make: Any, settings: Mapping[str, Any]) -> Any:
    try:
        return make(**settings)
    except TypeError as error:
        raise ValueError(f"{name} got settings that do not fit: {' '.join(str(error).split())}") from None


def _known(where: str, settings: Mapping[str, Any], names: Any) -> None:
    for name in settings:
        if name not in names:
            raise ValueError(f"{where} got the setting {name!r}; expected some of {', '.join(names)}")
