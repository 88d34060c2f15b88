"""Chunks of a run on many processes, by Dask: what a worker needs is the plan, and the folder that all can see."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence

import numba

from ..memory import KEEP, LARGEST
from .chunks import Plan, do
from .source import Source


def spread_out(plan: Plan, todo: Sequence[int], workers: int | None, scheduler: str | None) -> Iterator[int]:
    """Have the chunks `todo` done by `workers` new processes, or by the cluster at `scheduler`; yields their numbers.

    Each chunk is a file that is written once, so a chunk of a worker that is lost is simply done again by another.
    """
    try:
        from dask import config
        from distributed import Client, LocalCluster, as_completed
    except ImportError:
        raise RuntimeError("--workers and --scheduler need Dask; pip install 'smlmcore[dask]'") from None
    if not todo:
        return
    # Dask lets workers give freed memory back at once, and each array of the next chunk is cleared anew, page by page
    memory = {"MALLOC_TRIM_THRESHOLD_": str(KEEP), "MALLOC_MMAP_THRESHOLD_": str(LARGEST)}
    environment = {**config.get("distributed.nanny.pre-spawn-environ"), **memory}
    settings = {"distributed.worker.use-file-locking": False, "distributed.nanny.pre-spawn-environ": environment}
    with tempfile.TemporaryDirectory(prefix="smlmcore-dask-") as scratch, config.set(settings):
        cluster = scheduler
        if scheduler is None:
            cluster = LocalCluster(
                n_workers=min(workers, len(todo)), threads_per_worker=1, dashboard_address=None,
                local_directory=scratch, silence_logs=logging.CRITICAL,
            )  # fmt: skip
        try:
            with Client(cluster) as client:
                number = {client.submit(work, plan, n, scheduler is None, pure=False, retries=2): n for n in todo}
                for future in as_completed(list(number)):
                    future.result()
                    yield number[future]
        finally:
            if scheduler is None:
                cluster.close()


def work(plan: Plan, number: int, alone: bool) -> None:
    """One chunk, in a worker process: on one thread where the other workers have the other cores."""
    if plan.file(number).exists():
        return
    if alone:
        numba.set_num_threads(1)
    with Source(plan.movies, dict(plan.camera)) as source:
        do(plan, number, source)
