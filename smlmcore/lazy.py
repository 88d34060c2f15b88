"""Packages that import a module of theirs when a name of it is first asked for: a process loads what it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazily(package: str, **names: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of `package`: of each of its modules the `names`, apart by spaces.

    A name may not be that of a module, which takes its place once anybody has imported it.

    >>> __getattr__, __dir__ = lazily("smlmcore.psf", gaussian="Gaussian2D", pupil="Pupil")
    >>> __getattr__("Gaussian2D")
    <class 'smlmcore.psf.gaussian.Gaussian2D'>
    """
    home = {name: module for module, these in names.items() for name in these.split()}

    def find(name: str) -> Any:
        if name in names:
            return import_module(f"{package}.{name}")
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, found)
        return found

    return find, lambda: sorted({*vars(sys.modules[package]), *home, *names})
