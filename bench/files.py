"""Reading a 4 GiB BigTIFF by chunks: rate beside plain reads of the same file, and memory, each in a process of its
own.

The file's pages are dropped from the cache before each run.  A map of the file would count as resident memory.
Measured (results/files-cpu.json): 83 % of the better of plain reads of 1 and of 32 MiB at a time, 146 MB resident, of
which 114 are Python and its modules.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from smlmcore import data

from .harness import Row

FRAMES, SHAPE = 8200, (512, 512)

READ = """
import os, sys, time
import numpy as np
from smlmcore import data
path, how = sys.argv[1:]

def most_resident():  # MB; getrusage would count the parent's
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) >> 10

file = os.open(path, os.O_RDONLY)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
movie = data.open_movie(path)
before = most_resident()
start = time.perf_counter()
if how != "chunks":
    buffer = bytearray(int(how))
    with open(path, "rb", buffering=0) as raw:
        while raw.readinto(buffer):
            pass
else:
    for _, frames in movie.chunks():
        frames[0, 0, 0]
print(time.perf_counter() - start, most_resident(), before)
"""


def rows() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    block = rng.integers(0, 60_000, (100, *SHAPE), np.uint16)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as folder:
        path = Path(folder) / "m.tif"
        data.write_tiff(path, (block for _ in range(FRAMES // 100)), (FRAMES, *SHAPE), np.uint16)
        os.sync()
        found = {}
        for how in 2 * (str(1 << 20), str(32 << 20), "chunks"):  # plain reads of 1 and of 32 MiB at a time
            command = [sys.executable, "-c", READ, str(path), how]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            found.setdefault(how, []).append([float(v) for v in out])
        size = path.stat().st_size
    ours = min(found.pop("chunks"))
    raw = min(min(runs) for runs in found.values())
    note = (
        f"{size / 2**30:.2f} GiB: ours {size / ours[0] / 1e9:.2f} GB/s, plain reads {size / raw[0] / 1e9:.2f} GB/s "
        f"({raw[0] / ours[0]:.0%}, target 70 %); resident {ours[1]:.0f} MB, of which {ours[2]:.0f} before reading"
    )
    yield Row("BigTIFF by chunks", ours[0], {"plain reads": raw[0]}, FRAMES, "<= 200 MB, >= 70 %", note)
