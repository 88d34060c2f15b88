"""numba's cache, where two processes compile one function at the same time, and where one compiles and one loads."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from llvmlite.binding import Linkage

import smlmcore.kernel  # noqa: F401 - with the guard

SOURCE = """
import numba

@numba.njit(cache=True)
def half(x):
    return x / 2
"""


def started(file, name):
    """The function as in a process that has just started: nothing is compiled, nothing read from the cache."""
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.half


@pytest.mark.parametrize(("name", "right"), [("elsewhere", False), ("smlmcore.here", True), ("smlmcore_written", True)])
def test_two_processes_compile_one_function_at_once(name, right, tmp_path):
    """One is about to write its code when the other, which has found no index either, writes its own.

    Elsewhere numba then takes code for integers for that of floats.  If that case fails, numba has become safe itself:
    remove `numba_cache`.
    """
    file = tmp_path / "race.py"
    file.write_text(SOURCE)
    one, other = started(file, name), started(file, name)
    files, others = one._cache._cache_file, other._cache._cache_file
    save = files._save_data

    def save_late(*arguments):
        assert other(3.0) == 1.5
        save(*arguments)

    files._save_data = save_late
    others._load_index = dict
    assert one(3) == 1.5
    later = started(file, name)
    assert (later(2.5) == 1.25) == right
    assert later.stats.cache_hits
    assert later(3) == 1.5


def test_same_types_same_file(tmp_path):
    """As in processes of one batch job: no file is left over, and the next one compiles nothing."""
    file = tmp_path / "race.py"
    file.write_text(SOURCE)
    for _ in range(2):
        f = started(file, "smlmcore.here")
        f._cache._cache_file._load_index = dict
        assert f(3) == 1.5
    assert len(list(tmp_path.rglob("*.nbc"))) == 1
    later = started(file, "smlmcore.here")
    assert later(3) == 1.5
    assert not later.stats.cache_misses


def test_all_of_the_package_is_guarded():
    """Whatever part is imported first, the guard is there if numba is."""
    code = """
import sys
import numba
import smlmcore
for part in smlmcore.__all__:
    for name in [name for name in sys.modules if name.partition(".")[0] == "smlmcore"]:
        del sys.modules[name]
    __import__(f"smlmcore.{part}")
    own = [m for name, m in sys.modules.items() if name.startswith("smlmcore.")]
    uses = any(isinstance(v, numba.core.dispatcher.Dispatcher) for m in own for v in vars(m).values())
    assert not uses or "smlmcore.numba_cache" in sys.modules, part
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_function_calls_its_own_copies(tmp_path):
    """Not those of the same name that a process has met before, which may sum in another order."""
    source = """
import numba

@numba.njit(cache=True, fastmath=True)
def total(a):
    t = 0.0
    for x in a:
LINES    return t

@numba.njit(cache=True)
def half(a):
    return total(a) + total(a[1:])
""".replace("LINES", "".join(f"        t += {i} * x * (x - {i} * t)\n" for i in range(100)))  # too long to be inlined

    def copies(name):
        file = tmp_path / f"{name}.py"
        file.write_text(source)
        half = started(file, name)
        half(np.ones(9))
        functions = half.overloads[half.signatures[0]].library.get_defined_functions()
        return [f.linkage for f in functions if "total" in f.name]

    assert copies("elsewhere") == [Linkage.linkonce_odr]  # else the test has lost its copy
    assert copies("smlmcore_written") == [Linkage.internal]
