"""`smlmcore view`: which page the browser gets, and what is said where there is none."""

import os
import subprocess
import sys
import webbrowser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import smlmcore
from smlmcore.cli import main

PAGE = "<!doctype html><title>a report</title>"


@pytest.fixture
def folder(tmp_path):
    """Results in a folder whose name is no plain part of an address."""
    out = tmp_path / "50 % of #1, ü"
    out.mkdir()
    (out / "report.html").write_text(PAGE)
    return out


def opened(monkeypatch, found=True):
    """The addresses that a browser gets, if one is found."""
    got = []
    monkeypatch.setattr(webbrowser, "open", lambda url: got.append(url) or found)
    return got


def target(url):
    """The file that a browser shows at an address: what follows # or ? is no part of the name."""
    assert url.startswith("file:///")
    return Path(unquote(urlsplit(url).path))


def test_the_browser_gets_the_report(folder, monkeypatch, capsys):
    got = opened(monkeypatch)
    assert main(["view", str(folder)]) == 0
    assert main(["view", str(folder / "report.html")]) == 0
    monkeypatch.chdir(folder.parent)
    assert main(["view", folder.name]) == 0  # relative, as a user would type it
    monkeypatch.chdir(folder)
    assert main(["view", "."]) == 0
    assert [target(url).read_text() for url in got] == [PAGE] * 4
    assert capsys.readouterr() == ("", "")


def test_without_a_browser_the_file_is_named(folder, monkeypatch, capsys):
    opened(monkeypatch, found=False)
    assert main(["view", str(folder)]) == 0
    told = capsys.readouterr().out
    assert told == f"no web browser found; open {folder / 'report.html'}\n"
    assert Path(told.removeprefix("no web browser found; open ").strip()).read_text() == PAGE


def test_what_is_no_report_is_refused(folder, monkeypatch, capsys):
    got = opened(monkeypatch)
    (folder / "localizations.hdf5").write_bytes(b"no page")
    empty = folder / "empty"
    empty.mkdir()
    other = folder / "other"
    (other / "report.html").mkdir(parents=True)
    for path, message in (
        (folder / "nowhere", "nowhere: no such folder"),
        (empty, "empty: holds no report.html"),
        (other, "other: holds no report.html"),
        (folder / "localizations.hdf5", "localizations.hdf5: is no report"),
    ):
        assert main(["view", str(path)]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
        assert "give" in told
    assert not got
    with pytest.raises(SystemExit) as stop:
        main(["view"])
    assert stop.value.code == 2
    assert "DIR" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="the browser is a shell script")
def test_a_browser_of_the_users_choice(folder, tmp_path):
    """A process of its own, and a program that stands for the browser: no module of ours or Python's is replaced."""
    script, note = tmp_path / "browser", tmp_path / "note"
    script.write_text(f'#!/bin/sh\nprintf %s "$1" > "{note}"\n')
    script.chmod(0o755)
    environment = {**os.environ, "BROWSER": str(script), "PYTHONPATH": str(Path(smlmcore.__file__).parents[1])}
    command = [sys.executable, "-m", "smlmcore", "view", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert target(note.read_text()).read_text() == PAGE
