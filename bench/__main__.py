"""Run the benchmarks, print each row beside its peers, write JSON to bench/results/.

python -m bench [NAME ...] [--device cpu|gpu]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
# every module here that yields rows; on a GPU, the kernels against its roofline
NAMES = {
    "cpu": sorted(p.stem for p in HERE.glob("*.py") if p.stem not in ("__init__", "__main__", "harness")),
    "gpu": ["kernels"],
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(NAMES['cpu'])}; default all")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    for preset in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # a preset here can halve BLAS
        os.environ.pop(preset, None)
    import numba
    import numpy as np

    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": numba.get_num_threads(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "device": options.device,
    }
    print(json.dumps(machine))
    for name in options.names or NAMES[options.device]:
        module = import_module(f"bench.{name}")
        found = []
        for row in module.rows(options.device) if name == "kernels" else module.rows():
            print(row.text(), flush=True)
            found.append(asdict(row))
        out = HERE / "results" / f"{name}-{options.device}.json"
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps({"machine": machine, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
