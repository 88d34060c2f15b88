"""The package as a whole: importing is cheap, the promises of the layout hold."""

import subprocess
import sys
from pathlib import Path

import smlmcore
from smlmcore import kernel, testing

ROOT = Path(__file__).parent.parent


def run(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_heavy():
    loaded = run(
        "import smlmcore, sys; print([m for m in ('numba', 'scipy', 'cupy', 'matplotlib') if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_localize_starts_without_what_it_does_not_need():
    code = """if True:
        import sys, numpy as np, smlmcore.localize.run
        smlmcore.localize.drift.__globals__["_smooth"](np.zeros(3), np.ones(3), 1.0)  # numba's own start
        print([m for m in ('scipy.special', 'scipy.linalg', 'h5py', 'tqdm', 'PIL', 'matplotlib', 'smlmcore.layers',
                           'smlmcore.psf.pupil') if m in sys.modules])"""
    assert run(code).strip() == "[]"


def test_packages_name_what_their_modules_have():
    for package in ("psf", "fit", "loss", "data", "simulate"):
        package = getattr(smlmcore, package)
        assert all(getattr(package, name) is not None for name in dir(package))
        assert not hasattr(package, "nothing")


def test_every_submodule_named_is_there_and_a_wrong_one_is_an_attribute_error():
    assert all(getattr(smlmcore, name).__name__ == f"smlmcore.{name}" for name in smlmcore.__all__)
    assert not hasattr(smlmcore, "torch")


def test_no_deep_learning_framework_at_run_time():
    code = """if True:
        import sys, smlmcore
        for name in smlmcore.__all__:
            getattr(smlmcore, name)
        print([m for m in ('torch', 'jax', 'tensorflow', 'tensorboardX') if m in sys.modules])"""
    assert run(code).strip() == "[]"


def test_every_cuda_source_belongs_to_a_kernel_that_the_tests_run():
    used = {k.cuda.file for k in testing.all_kernels().values() if k.cuda is not None}
    assert used == {path.name for path in kernel.source_folder().glob("*.cu")}


def test_the_makefile_lists_its_targets():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "bench", "examples", "gpu-check", "lint", "clean"):
        assert f"\n{target} " in f"\n{listed}"
