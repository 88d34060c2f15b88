"""Weights to and from files of PyTorch's."""

import numpy as np
import pytest

from smlmcore import encoder, interop, layers
from smlmcore.data import DataError


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_there_and_back(suffix, tmp_path):
    net = encoder.UNet(2, depth=1, width=4, norm="batch")
    p = net.init(np.random.default_rng(0))
    names = {"head": "out.conv"}
    interop.to_torch(tmp_path / f"w.{suffix}", p, names)
    back = interop.from_torch(tmp_path / f"w.{suffix}", p, names)
    assert list(back) == list(p)
    for k, v in p.items():
        np.testing.assert_array_equal(back[k], v)
        assert back[k].dtype == v.dtype


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_torch_computes_the_same_with_them(suffix, tmp_path):
    torch = pytest.importorskip("torch")
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    ours = layers.chain(layers.Conv2d(2, 3), layers.Gelu(), layers.ConvTranspose(3, 2))
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.GELU(), torch.nn.ConvTranspose2d(3, 2, 2, stride=2)
    ).double()
    p = ours.init(np.random.default_rng(0), np.float64)
    p = {k: v + 0.1 for k, v in p.items()}
    path = tmp_path / f"w.{suffix}"
    interop.to_torch(path, p)
    if suffix == "npz":
        state = {k: torch.tensor(v) for k, v in np.load(path).items()}
    else:
        from safetensors.torch import load_file

        state = load_file(path)
    theirs.load_state_dict(state)
    x = np.random.default_rng(1).normal(size=(2, 4, 4, 2))
    want = theirs(torch.tensor(x).movedim(-1, 1)).movedim(1, -1).detach().numpy()
    got = ours(p, x)
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_what_is_missing_or_misshapen_is_told(tmp_path):
    path = tmp_path / "w.npz"
    interop.to_torch(path, {"a.weight": np.zeros((3, 3, 1, 2)), "a.bias": np.zeros(2)})
    with pytest.raises(DataError, match=r"no 'b.bias'"):
        interop.from_torch(path, {"b.bias": np.zeros(2)})
    with pytest.raises(DataError, match=r"a.weight.*\(3, 3, 1, 2\)"):
        interop.from_torch(path, {"a.weight": np.zeros((3, 3, 2, 2))})
    (tmp_path / "w.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"no \.npz or \.safetensors"):
        interop.from_torch(tmp_path / "w.safetensors", {"a.bias": np.zeros(2)})
