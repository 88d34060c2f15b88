"""The user's settings: `config.ini` in the configuration folder of the user, never written unless asked.

    [LOG_PATH]
    run = /data/runs

    [TEST_DATASET_PATH]
    hagen_2021 = /data/hagen_2021

A value is taken from the environment, SMLMCORE_SECTION_KEY in upper case (SMLMCORE_LOG_PATH_RUN), else from the file,
else from the defaults.  SMLMCORE_CONFIG names another file.  `smlmcore config show`, `set` and `path` do the same.
"""

from __future__ import annotations

import configparser
import io
import os
import warnings
from pathlib import Path

from .files import DataError, atomic

DEFAULTS = {
    "LOG_PATH": {"run": "runs"},
    "TEST_DATASET_PATH": {"epfl_deconvolution": "", "hagen_2021": "", "smlm_challenge": ""},
}


def path() -> Path:
    """The file that settings are in, whether or not it exists.

    >>> path().suffix
    '.ini'
    """
    if given := os.environ.get("SMLMCORE_CONFIG"):
        return Path(given)
    from platformdirs import user_config_path

    return user_config_path("smlmcore", appauthor=False) / "config.ini"


def load() -> dict[str, dict[str, str]]:
    """All settings by section and key; raises `DataError` for a file that is no such list of settings.

    >>> load()["LOG_PATH"]["run"] != ""
    True
    """
    found = {section: dict(values) for section, values in DEFAULTS.items()}
    for section, values in _file().items():
        if section != "DEFAULT":
            found.setdefault(section, {}).update(values)
    for section, values in found.items():
        for key in values:
            values[key] = os.environ.get(f"SMLMCORE_{section}_{key}".upper(), values[key])
    return found


def get(section: str, key: str) -> str:
    """One setting; raises `KeyError` that names those that exist.

    >>> get("LOG_PATH", "run") == load()["LOG_PATH"]["run"]
    True
    """
    found = load()
    if key not in found.get(section, {}):
        known = ", ".join(f"{s}.{k}" for s, values in found.items() for k in values)
        raise KeyError(f"config has no {section}.{key}; expected one of {known}")
    return found[section][key]


def put(section: str, key: str, value: str) -> bool:
    """Write one setting, and with it the file; False after one warning where its folder cannot be written.

    Raises `ValueError` for names or a value that the file could not hold, such as a key with an equals sign.
    """
    parsed = _file()
    if not parsed.has_section(section):
        parsed.add_section(section)
    parsed.set(section, key, value)
    if _read_again(parsed).get((section, key)) != value:
        raise ValueError(f"config cannot hold {section}.{key} = {value!r}; give plain names, no outer blanks")
    target = path()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as temporary, open(temporary, "w", encoding="utf-8") as file:
            parsed.write(file)
    except OSError as error:
        warnings.warn(f"{target} cannot be written ({error.strerror}); the defaults stay", stacklevel=2)
        return False
    return True


def _read_again(settings: configparser.ConfigParser) -> dict[tuple[str, str], str]:
    """What a file of these `settings` would be read as; nothing, if it could not be read."""
    text, parsed = io.StringIO(), _parser()
    settings.write(text)
    try:
        parsed.read_string(text.getvalue())
    except configparser.Error:
        return {}
    return {(section, key): value for section in parsed.sections() for key, value in parsed[section].items()}


def _parser() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str
    return parsed


def _file() -> configparser.ConfigParser:
    parsed = _parser()
    try:
        parsed.read(path(), encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path()}: is no list of settings ({text}); correct or remove it") from None
    except OSError:
        pass  # not readable: the defaults
    return parsed
