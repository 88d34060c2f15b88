"""Several emitters through one network, and presence."""

import numpy as np
import pytest

from smlmcore import fit
from smlmcore.autograd import Tensor, check_gradient
from smlmcore.mapper import Direct, Parameter, StackedConv, straight_through

PARAMETERS = {
    "x": Parameter.between(0.0, 10.0),
    "photons": Parameter("exp", 500.0),
    "background": Parameter("softplus", 1.0, 2.0, per="image"),
    "sigma": Parameter(offset=1.3, fitted=False),
}


def make(presence="soft", emitters=3):
    mapper = StackedConv(emitters, PARAMETERS, hidden=5, presence=presence)
    return mapper, mapper.init(np.random.default_rng(0))


def test_shapes_and_starting_values():
    mapper, p = make()
    features = np.random.default_rng(1).normal(size=(4, mapper.features)).astype(np.float32)
    values = mapper(p, features)
    assert {k: v.shape for k, v in values.items()} == {
        "x": (4, 3), "photons": (4, 3), "background": (4,), "sigma": (4, 3), "p": (4, 3)
    }  # fmt: skip
    assert (np.abs(values["x"] - 5) < 5).all()
    assert (values["sigma"] == np.float32(1.3)).all()
    assert ((values["p"] > 0) & (values["p"] < 1)).all()
    np.testing.assert_array_equal(mapper(p, features[:, :, None, None])["x"], values["x"])
    assert mapper(p, features[:0])["x"].shape == (0, 3)


def test_emitters_share_the_network():
    mapper, p = make(None)
    one = np.random.default_rng(1).normal(size=(1, 8)).astype(np.float32)
    values = mapper(p, np.tile(one, (2, 3)))
    assert np.ptp(values["x"]) == 0


def test_presence_is_zero_or_one_and_its_gradient_lives():
    mapper, p = make("straight")
    t = {k: Tensor(v) for k, v in p.items()}
    values = mapper(t, np.random.default_rng(1).normal(size=(4, mapper.features)).astype(np.float32))
    assert set(np.unique(values["p"].data)) <= {0, 1}
    values["photons"].sum().backward()
    assert np.abs(t["2.weight"].grad[:, -1]).max() > 0
    x = Tensor([0.2, 0.8])
    straight_through(x).sum().backward()
    np.testing.assert_array_equal(x.grad, [1, 1])


def test_gradient():
    mapper, p = make()
    p = {k: v.astype(float) for k, v in p.items()}
    features = np.random.default_rng(1).normal(size=(2, mapper.features))

    def run(*values):
        found = mapper(dict(zip(p, values, strict=True)), features)
        return found["x"].sum() * found["background"].sum() + found["photons"].sum()

    check_gradient(run, *p.values())


def test_configuration():
    mapper, _ = make("straight")
    again = fit.model.build(fit.model.describe(mapper))
    assert again.configuration() == mapper.configuration()


def test_fixed_parameters_in_direct():
    mapper = Direct({"sigma": Parameter(offset=1.3, fitted=False), "x": Parameter()})
    values = mapper({}, np.array([[2.0], [3.0]]))
    assert values["sigma"].tolist() == [1.3, 1.3]
    assert values["x"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    "arguments", [(0, PARAMETERS), (2, {"x": Parameter()}, 8, 4, "soft"), (2, PARAMETERS, 8, 4, "hard")]
)
def test_impossible_mappers(arguments):
    with pytest.raises(ValueError, match="StackedConv"):
        StackedConv(*arguments)


def test_wrong_features_and_parameters():
    mapper, p = make()
    with pytest.raises(ValueError, match="expected \\(n, 24\\)"):
        mapper(p, np.ones((2, 23), np.float32))
    with pytest.raises(ValueError, match="per 'pixel'"):
        Parameter(per="pixel")
