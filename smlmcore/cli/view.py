"""`smlmcore view`: a report in the web browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    p = commands.add_parser("view", help="open a report", description="Open the report of a run in the web browser.")
    p.add_argument("folder", type=Path, metavar="DIR", help="folder of results")
    p.set_defaults(run=run)


def run(folder: Path) -> None:
    import webbrowser

    from .. import data

    page = folder / "report.html" if folder.is_dir() else folder
    if not page.is_file():
        raise data.DataError(f"{folder}: holds no report.html; give the folder of a smlmcore localize run")
    if not webbrowser.open(page.resolve().as_uri()):
        sys.stdout.write(f"no web browser found; open {page.resolve()}\n")
