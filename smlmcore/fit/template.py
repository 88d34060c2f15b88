"""Generated code: a template expanded into a Python module that lies in the user's cache directory.

A fast path is made of loops that LLVM turns into vectors only if sizes are constants and short loops are written out.
So its source is a template, expanded for each size and dtype:

    #each j,v LIST ... #end             repeats its lines, $j and $v replaced
    #if ... #elif ... #else ... #end    chooses by a Python expression
    $name                               a word

LIST and the conditions are Python expressions over the `scope`; blocks may nest.  The module is a file named by its
content, beside which numba keeps what it compiles: the first call compiles, later processes load.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any


def expand(text: str, scope: Mapping[str, Any], words: Mapping[str, Any]) -> str:
    """The template `text` with its blocks carried out and its words replaced.

    >>> print(expand("#each i range(2)\\na$i = $b\\n#end\\n#if big\\nc = 1\\n#end", {"big": False}, {"b": 7}).rstrip())
    a0 = 7
    a1 = 7
    """
    lines = "\n".join(_blocks(text.splitlines(), dict(scope))) + "\n"
    return re.sub(r"\$(\w+)", lambda m: str(words[m[1]]), lines)


def _blocks(lines: list[str], scope: dict[str, Any]) -> Iterable[str]:
    """The lines with '#each' and '#if' carried out."""
    i = 0
    while i < len(lines):
        word = "#" in lines[i] and re.match(r"\s*#(each|if) (.*)", lines[i])
        if not word:
            yield lines[i]
            i += 1
            continue
        branches, depth, stop = [(word[2], i + 1)], 1, i
        while depth:
            stop += 1
            inner = "#" in lines[stop] and re.match(r"\s*#(each|if|elif|else|end)\b ?(.*)", lines[stop])
            if inner:
                depth += {"each": 1, "if": 1, "end": -1}.get(inner[1], 0)
                if depth == 1 and inner[1] in ("elif", "else"):
                    branches.append((inner[2] or "True", stop + 1))
        ends = [start - 1 for _, start in branches[1:]] + [stop]
        if word[1] == "if":
            for (condition, start), end in zip(branches, ends, strict=True):
                if eval(condition, {}, scope):
                    yield from _blocks(lines[start:end], scope)
                    break
        else:
            names, values = word[2].split(" ", 1)
            for value in eval(values, {}, scope):
                values_ = value if "," in names else (value,)
                own = dict(zip(names.split(","), values_, strict=True))
                if block := list(_blocks(lines[i + 1 : stop], scope | own)):
                    pattern = rf"\$({'|'.join(own)})(?!\w)"
                    yield re.sub(pattern, lambda m, own=own: str(own[m[1]]), "\n".join(block))
        i = stop + 1


def lighten(text: str) -> str:
    r"""`text` with fewer names, calls and products, each of which numba takes its time to find the type of.

    `R(number)` becomes a constant of the module, and an index into the scratch array, `w[CONSTANTS + k]`, a number.

    >>> print(lighten("R = float\nX = 8\n@fast\ndef f(w, k):\n    return R(2.0) * w[X + (3 * 2) * 4 + k]").rstrip())
    R = float
    X = 8
    C0 = R(2.0)
    @fast
    def f(w, k):
        return C0 * w[32 + k]
    """
    head, mark, body = text.partition("\n@")
    sizes = {m[1]: int(m[2]) for m in re.finditer(r"^(\w+) = (\d+)$", head, re.M)}
    names: dict[str, str] = {}

    @cache
    def index(place: str) -> str:
        try:
            return f"w[{eval(place, {}, sizes)} + k]"
        except NameError:  # of a loop's variable
            return f"w[{place} + k]"

    def name(match: re.Match) -> str:
        return names.setdefault(match[0], f"C{len(names)}")

    body = re.sub(r"\bw\[([^\]]+) \+ k\]", lambda match: index(match[1]), body)
    body = re.sub(r"\bR\(-?[\d.]+(?:e[+-]?\d+)?\)", name, body)
    return "\n".join([head, *(f"{constant} = {value}" for value, constant in names.items())]) + mark + body


def load(text: str, kind: str) -> ModuleType:
    """The module with the source `text`, imported from a file in the cache directory's folder `kind`."""
    code = text.encode()
    name = f"smlmcore_{kind}_{hashlib.sha256(code).hexdigest()[:16]}"
    for directory in _directories(kind):
        path = directory / f"{name}.py"
        try:
            if not (path.is_file() and path.read_bytes() == code):
                directory.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
                    file.write(code)
                os.replace(file.name, path)
            break
        except OSError:
            continue
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def is_compiled(module: ModuleType, function: str) -> bool:
    """Whether machine code of this function of a loaded module lies in memory or in the cache."""
    beside = Path(module.__file__).parent / "__pycache__"
    return bool(getattr(module, function).signatures) or any(beside.glob(f"{module.__name__}.{function}-*.nbi"))


def _directories(kind: str) -> Iterable[Path]:
    yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smlmcore" / kind
    yield Path(tempfile.mkdtemp(prefix=f"smlmcore-{kind}-"))  # where the home directory cannot be written to
