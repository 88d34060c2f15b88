"""The command `smlmcore`, one file for each of its commands: `add` makes its parser, `run` gets what was given.

Exit status: 0 success, 2 a mistake in the input or no room for the output (one line on stderr says which), 3 a training
that lost its way, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from . import calibrate, config, deconvolve, denoise, fit, info, localize, predict, simulate, train, view

COMMANDS = simulate, info, fit, calibrate, localize, train, predict, denoise, deconvolve, view, config


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def command() -> NoReturn:
    """The program `smlmcore`: `main`, and out.  To take apart what ends with the process takes 40 ms."""
    status = main()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads them any more
        status = status or 1
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit status.

    >>> main(["info", "surely_not_here.tif"])
    2
    """
    options = vars(parser().parse_args(argv))
    run = options.pop("run")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
        signal.signal(signal.SIGINT, _interrupt)
    before, sys.unraisablehook = sys.unraisablehook, _redeliver
    try:
        run(**options)
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "interrupted; nothing half-written is left", 130)
    except FloatingPointError as error:
        return _fail(str(error), 3)
    except MemoryError as error:
        return _fail(f"out of memory ({error}); use fewer or smaller frames" if str(error) else "out of memory", 2)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}", 2)
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        return _fail(str(error), 2)
    finally:
        if not _stopping.is_set():
            sys.unraisablehook = before
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of `smlmcore` with all its commands.

    >>> parser().parse_args(["info", "movie.tif"]).movie.name
    'movie.tif'
    """
    top = _Parser(prog="smlmcore", description="Single-molecule localization microscopy, learned without labels.")
    top.add_argument("--version", action="version", version=f"smlmcore {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


_stopping = threading.Event()  # a signal has come


def _interrupt(*_: object) -> NoReturn:
    _stopping.set()
    raise KeyboardInterrupt


def _terminate(*_: object) -> NoReturn:
    """Leave as on Ctrl-C when a scheduler ends the job, so that temporary files are removed."""
    _stopping.set()
    raise SystemExit(128 + signal.SIGTERM)


def _redeliver(lost: Any) -> None:
    """Send a signal again whose exception was lost, as it is when it comes while C code, LLVM say, calls Python.

    Objects that it left half made complain when they are deleted: once a signal has come, nobody needs to know.
    """
    if issubclass(lost.exc_type, KeyboardInterrupt | SystemExit):
        number = signal.SIGINT if issubclass(lost.exc_type, KeyboardInterrupt) else signal.SIGTERM
        threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, number)).start()
    elif not _stopping.is_set():
        sys.__unraisablehook__(lost)


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"smlmcore: error: {' '.join(message.split())}\n")
    return status
