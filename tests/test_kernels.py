"""Every body of every registered kernel against its reference, and the machinery that runs them against errors."""

import numpy as np
import pytest

from smlmcore import cuda_on_host, kernel, nvrtc, testing
from smlmcore.cuda_on_host import CudaError

KERNELS = testing.all_kernels()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("body", testing.bodies())
@pytest.mark.parametrize("name", KERNELS)
def test_body_agrees_with_reference(name, body, dtype):
    testing.check_kernel(name, body, dtype)


@pytest.mark.parametrize("name", KERNELS)
def test_all_bodies_and_cases_exist(name):
    k = KERNELS[name]
    assert k.cpu is not None
    assert k.cuda is not None
    sizes = [[case[d] for d in k.dims if d in case] for case in k.cases]
    assert any(0 in s for s in sizes), "no empty case"
    assert any(1 in s for s in sizes), "no case of one item"
    assert any(s % 2 for sizes_ in sizes for s in sizes_ if s > 1), "no odd case"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuda_sources_compile_for_real_gpus(dtype, report):
    report.append(f"{dtype:29} " + "".join(f"{f'sm_{a}: regs spill shared':>28}" for a in nvrtc.ARCHITECTURES))
    for name, k in KERNELS.items():
        usages = [nvrtc.compile_kernel(k, a, dtype) for a in nvrtc.ARCHITECTURES]
        report.append(f"{name:30}" + "".join(f"{u.registers:16}{u.spill:6}{u.shared:6}" for u in usages))
        for u in usages:  # a block must fit in a multiprocessor's registers, and in the shared memory of any of them
            assert u.registers * k.cuda.threads <= 65536, (name, u)
            assert u.shared <= 48 << 10, (name, u)


def test_nvrtc_says_why_a_source_does_not_compile():
    with pytest.raises(nvrtc.NvrtcError, match=r"bad\.cu\(1\): error.*undefined"):
        nvrtc.compile_source("__global__ void f() { nonsense(); }", 80, name="bad.cu")


# ---- bodies that are wrong


def double(x, y):
    y[...] = 2 * x


def make(source, monkeypatch, tmp_path, cpu=None, threads=64, signature="x[n] -> y[n]"):
    """The kernel y = 2 x with the given CUDA source."""
    (tmp_path / "wrong.cu").write_text(source)
    monkeypatch.setattr(kernel, "source_folder", lambda: tmp_path)
    return kernel.Kernel(
        "wrong",
        signature,
        double,
        cpu=cpu,
        cuda=kernel.Cuda("wrong.cu", lambda dims: 1, threads=threads),
        sample=lambda rng, n: [rng.standard_normal(n)],
        cases=({"n": 40},),
    )


HEAD = 'extern "C" __global__ void wrong(const REAL* x, REAL* y, int n) { const int i = threadIdx.x; '


def test_a_slightly_wrong_cpu_body_is_caught(monkeypatch, tmp_path):
    def wrong(x, y):
        y[...] = 2 * x
        y[7] *= 1 + 1e-5

    k = make("", monkeypatch, tmp_path, cpu=wrong)
    with pytest.raises(AssertionError, match=r"wrong \[cpu, float32\] with {'n': 40}.*y\[7\] is .* reference gives"):
        testing.check_kernel(k, "cpu", "float32")


def test_a_cpu_body_that_depends_on_the_threads_is_caught(monkeypatch, tmp_path):
    def wrong(x, y):
        import numba

        y[...] = 2 * x
        y[0] = np.nextafter(y[0], 9) if numba.get_num_threads() == 1 else y[0]

    with pytest.raises(AssertionError, match="depends on the number of threads"):
        testing.check_kernel(make("", monkeypatch, tmp_path, cpu=wrong), "cpu", "float64")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_right_cuda_body_passes(monkeypatch, tmp_path, dtype):
    testing.check_kernel(make(HEAD + "if (i < n) y[i] = 2 * x[i]; }", monkeypatch, tmp_path), "cuda-on-host", dtype)


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        ("if (i < n) y[i] = REAL(2.00001) * x[i]; }", AssertionError, r"y\[\d+\] is .* off by"),
        ("y[i] = 2; }", CudaError, "y was written outside its bounds, at element 40 of 40"),
        ("if (i < n) y[i - 1] = 2 * x[i]; }", CudaError, "y was written outside its bounds, at element -1 of 40"),
        ("if (i < n) y[i] = 2 * x[i + 1]; }", AssertionError, r"y\[39\] is .*nan"),
        ("if (i < n - 1) y[i] = 2 * x[i]; }", CudaError, "y has 1 of 40 elements never written, the first is 39"),
        ("if (i < n) y[i] = 2 * x[i], ((REAL*)x)[i] = 0; }", CudaError, "x is an input and was overwritten"),
        (
            "__shared__ REAL t[40]; if (i < n) { t[i] = x[i]; __syncthreads(); y[i] = 2 * t[i]; } }",
            CudaError,
            "divergent barrier in block 0: thread 0 waits at __syncthreads in line 1, .* 24 of 64 threads have ended",
        ),
        (
            "if (i < 32) __syncthreads();\nelse __syncthreads(); y[i % n] = 0; }",
            CudaError,
            "thread 0 waits at __syncthreads in line 1, thread 63 at __syncthreads in line 2, and 0 of 64",
        ),
        (
            "if (i % 2) __syncwarp(); else __syncthreads(); y[i % n] = 0; }",
            CudaError,
            "thread 0 waits at __syncthreads in line 1, thread 63 at a warp function in line 1",
        ),
        ("if (i) return; y[0] = __shfl_sync(~0u, x[0], 3); }", CudaError, "lane 3 is read, which takes no part"),
        ("y[i % n] = __shfl_xor_sync(0xffff, x[0], 1); }", CudaError, "thread 16: .* the mask 0xffff lacks"),
        (
            "__shared__ REAL t[8]; t[i] = x[i % n]; __syncthreads(); y[i % n] = t[i % 8]; }",
            CudaError,
            r"thread 8: wrong.cu:1: index 8 is outside a local or shared array",
        ),
        ("__shared__ REAL t[64]; if (i < n) y[i] = 2 * x[i] + t[i]; }", AssertionError, "is .*nan"),
        (  # no barrier between writing and reading: right in one order of the threads only
            "__shared__ REAL t[64]; t[i] = i < n ? x[i] : 0; if (i < n) y[i] = 2 * t[max(i - 1, 0)] + 2 * x[i] - 2 * t["
            "max(i - 1, 0)]; }",
            AssertionError,
            "threads in reverse order: y",
        ),
        ("y[i] = 2 * x[i] }", CudaError, "wrong.cu:1:.*error: expected ‘;’"),
    ],
)
def test_a_wrong_cuda_body_is_caught(body, error, text, monkeypatch, tmp_path):
    k = make(HEAD + body, monkeypatch, tmp_path)
    with pytest.raises(error, match=f"(?s){text}"):
        testing.check_kernel(k, "cuda-on-host", "float32")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ('extern "C" __global__ void other(REAL* y, int n) {}', "has no extern"),
        ('extern "C" __global__ void wrong(REAL* y, const REAL* x, int n) {}', r"takes \(Rrn\).* expects \(rRn\)"),
        ('extern "C" __global__ void wrong(const REAL* x, REAL* y) {}', r"takes \(rR\)"),
        ('extern "C" __global__ void wrong(const REAL* x, REAL* y, long n) {}', r"takes \(rR\?\)"),
        ('extern "C" __global__ void wrong(const float* x, double* y, int n) {}', r"takes \(r\?n\)"),
    ],
)
def test_arguments_that_do_not_follow_the_signature_are_caught(source, text, monkeypatch, tmp_path):
    with pytest.raises(CudaError, match=text):
        testing.check_kernel(make(source, monkeypatch, tmp_path), "cuda-on-host", "float32")


def test_a_kernel_without_cases_is_no_pass():
    with pytest.raises(AssertionError, match="without sample"):
        testing.check_kernel(kernel.Kernel("bare", "x[n] -> y[n]", double), "cpu", "float32")


# ---- what the shim offers


def run(body, monkeypatch, tmp_path, n=64, threads=64, reverse=False):
    k = make(HEAD + body, monkeypatch, tmp_path, threads=threads)
    x, y = np.arange(n, dtype=np.float64), np.empty(n)
    cuda_on_host.run(k, [x], [y], reverse=reverse)
    return y


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y[i] = __shfl_sync(~0u, x[i], 5); }", lambda i: i // 32 * 32 + 5),
        ("y[i] = __shfl_sync(~0u, x[i], 1, 8); }", lambda i: i // 8 * 8 + 1),
        ("y[i] = __shfl_down_sync(~0u, x[i], 4); }", lambda i: np.where(i % 32 < 28, i + 4, i)),
        ("y[i] = __shfl_up_sync(~0u, x[i], 3, 16); }", lambda i: np.where(i % 16 >= 3, i - 3, i)),
        ("y[i] = __shfl_xor_sync(~0u, i, 9); }", lambda i: i ^ 9),
        ("y[i] = __ballot_sync(~0u, i % 32 < 5); }", lambda i: 0 * i + 31),
        ("y[i] = __any_sync(~0u, i == 3) + 2 * __all_sync(~0u, i > 31); }", lambda i: np.where(i < 32, 1, 2)),
        ("if (i < 8) y[i] = __shfl_xor_sync(0xff, x[i], 1); else y[i] = 0; }", lambda i: np.where(i < 8, i ^ 1, 0)),
        (
            "__shared__ int c; if (!i) c = 0; __syncthreads(); atomicAdd(&c, i); __syncthreads(); y[i] = c; }",
            lambda i: 0 * i + 2016,
        ),
        (
            "__shared__ REAL a, b; if (!i) a = 99, b = -1; __syncthreads(); atomicMin(&a, x[i]); atomicMax(&b, x[i]);"
            "__syncthreads(); y[i] = 100 * b + a; }",
            lambda i: 0 * i + 6300,
        ),
        (
            "__shared__ unsigned c; if (!i) c = 7; __syncthreads(); atomicCAS(&c, 7, 8); __syncthreads(); y[i] = c; }",
            lambda i: 0 * i + 8,
        ),
        (
            "__shared__ REAL t[64]; t[i] = __ldg(x + i); __syncthreads(); y[i] = t[63 - i]; __syncthreads(); }",
            lambda i: 63 - i,
        ),
    ],
)
def test_the_shim_computes_what_cuda_does(body, expected, reverse, monkeypatch, tmp_path):
    np.testing.assert_array_equal(run(body, monkeypatch, tmp_path, reverse=reverse), expected(np.arange(64)))


def test_blocks_and_partial_warps(monkeypatch, tmp_path):
    source = (
        'extern "C" __global__ void wrong(const REAL* x, REAL* y, int n) {\n'
        "    const int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
        "    const REAL sum = x[i] + __shfl_xor_sync(~0u, x[i], 1);\n"
        "    y[i] = sum + 1000 * gridDim.x;\n}"
    )
    k = make(source, monkeypatch, tmp_path)
    k = kernel.Kernel(k.name, k.signature, double, cuda=kernel.Cuda("wrong.cu", lambda dims: dims["n"] // 20, 20))
    y = np.empty(60)
    cuda_on_host.run(k, [np.arange(60.0)], [y])
    i = np.arange(60)
    np.testing.assert_array_equal(y, i + (i ^ 1) + 3000)
