"""The user's settings: defaults, file, environment, and nothing written unasked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smlmcore import config, data
from smlmcore.cli import main


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("SMLMCORE_CONFIG", str(tmp_path / "deep" / "config.ini"))
    return tmp_path / "deep" / "config.ini"


def test_nothing_is_written_by_reading(file, tmp_path):
    assert config.get("LOG_PATH", "run") == "runs"
    assert main(["config", "show"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_import_writes_nothing_to_the_home_of_a_new_user(tmp_path):
    code = "import smlmcore; [getattr(smlmcore, n) for n in ('config', 'data', 'camera')]; smlmcore.config.load()"
    root = Path(__file__).parents[1]
    env = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "c"), "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_set_show_and_path(file, capsys):
    assert main(["config", "set", "TEST_DATASET_PATH.hagen_2021", "/data/100 % real"]) == 0
    assert main(["config", "set", "MINE.key", "v"]) == 0
    assert config.get("TEST_DATASET_PATH", "hagen_2021") == "/data/100 % real"
    assert config.get("LOG_PATH", "run") == "runs"
    assert main(["config", "show"]) == 0
    out = capsys.readouterr().out
    assert "TEST_DATASET_PATH.hagen_2021" in out
    assert "MINE.key" in out
    assert main(["config", "path"]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert [p.name for p in file.parent.iterdir()] == ["config.ini"]


def test_the_environment_wins(file, monkeypatch):
    config.put("LOG_PATH", "run", "here")
    monkeypatch.setenv("SMLMCORE_LOG_PATH_RUN", "there")
    assert config.get("LOG_PATH", "run") == "there"


def test_an_unwritable_folder_is_one_warning(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMLMCORE_CONFIG", str(tmp_path / "file" / "config.ini"))  # a folder that cannot be
    assert config.get("LOG_PATH", "run") == "runs"
    with pytest.warns(UserWarning, match="cannot be written") as caught:
        assert config.put("LOG_PATH", "run", "x") is False
    assert len(caught) == 1
    assert main(["config", "set", "LOG_PATH.run", "x"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("smlmcore: warning: ")
    assert err.count("\n") == 1


def test_mistakes(file, capsys):
    with pytest.raises(KeyError, match=r"no LOG_PATH\.walk; expected one of LOG_PATH\.run"):
        config.get("LOG_PATH", "walk")
    for argv in (["set"], ["set", "LOG_PATH.run"], ["set", "run", "x"], ["dance"]):
        try:
            status = main(["config", *argv])
        except SystemExit as stop:
            status = stop.code
        assert status == 2
        assert capsys.readouterr().err.count("\n") == 1
    file.parent.mkdir()
    file.write_text("no section")
    with pytest.raises(data.DataError, match="no list of settings"):
        config.load()
    assert main(["config", "show"]) == 2


@pytest.mark.parametrize(("name", "value"), [("a.b=c", "d"), ("a.#b", "c"), ("a.b", " c")])
def test_what_the_file_cannot_hold_is_refused(file, capsys, name, value):
    assert main(["config", "set", name, value]) == 2
    assert "cannot hold" in capsys.readouterr().err
    assert not file.exists()
