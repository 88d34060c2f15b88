"""`smlmcore config`: the user's settings."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from .options import show


def add(commands: Any) -> None:
    p = commands.add_parser(
        "config",
        help="show or set the user's settings",
        description="Show all settings, set one (which writes the file), or say where the file is.",
    )
    p.add_argument("action", choices=("show", "set", "path"), help="what to do")
    p.add_argument("setting", nargs="?", metavar="SECTION.KEY", help="with set: such as LOG_PATH.run")
    p.add_argument("value", nargs="?", help="with set: its new value")
    p.set_defaults(run=run)


def run(action: str, setting: str | None, value: str | None) -> None:
    from .. import config

    if action == "path":
        sys.stdout.write(f"{config.path()}\n")
    elif action == "show":
        show({f"{s}.{k}": v or "-" for s, values in config.load().items() for k, v in values.items()}, literal=True)
    else:
        section, _, key = (setting or "").partition(".")
        if not (section and key and value is not None):
            raise ValueError("config set expects SECTION.KEY and a value, such as: config set LOG_PATH.run /data/runs")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config.put(section, key, value)
        sys.stderr.writelines(f"smlmcore: warning: {w.message}\n" for w in caught)
