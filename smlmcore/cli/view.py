"""`smlmcore view`: a report in the web browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    p = commands.add_parser("view", help="open a report", description="Open the report of a run in the web browser.")
    p.add_argument("folder", type=Path, metavar="DIR", help="folder of results, or the report.html in it")
    p.set_defaults(run=run)


def run(folder: Path) -> None:
    import webbrowser

    from .. import data

    if not folder.exists():
        raise data.DataError(f"{folder}: no such folder; give that of a smlmcore localize run")
    page = folder / "report.html" if folder.is_dir() else folder
    if not page.is_file() or page.suffix.lower() not in (".html", ".htm"):
        what = "holds no report.html" if folder.is_dir() else "is no report"
        raise data.DataError(f"{folder}: {what}; give the folder of a smlmcore localize run")
    if not webbrowser.open(page.resolve().as_uri()):
        sys.stdout.write(f"no web browser found; open {page.resolve()}\n")
