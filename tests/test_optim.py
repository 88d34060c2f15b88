"""Optimisers against torch and closed forms; composition, precision, purity."""

import pickle

import numpy as np
import pytest

from smlmcore import optim


def parameters(dtype=np.float64):
    rng = np.random.default_rng(0)
    return {"w": rng.standard_normal((3, 2)).astype(dtype), "b": rng.standard_normal(2).astype(dtype)}


def gradient(p):
    """Of a quartic bowl with different curvatures."""
    return {name: (a**3 + np.arange(1, a.size + 1).reshape(a.shape) * a).astype(a.dtype) for name, a in p.items()}


def run(optimiser, p, steps):
    state = optimiser.init(p)
    for _ in range(steps):
        updates, state = optimiser.update(gradient(p), state, p)
        p = optim.apply(p, updates)
    return p


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (optim.adam(0.01), "Adam", {"lr": 0.01}),
        (optim.adamw(0.01, decay=0.1), "AdamW", {"lr": 0.01, "weight_decay": 0.1}),
        (optim.sgd(0.01), "SGD", {"lr": 0.01}),
        (optim.sgd(0.01, momentum=0.9), "SGD", {"lr": 0.01, "momentum": 0.9}),
    ],
    ids=["adam", "adamw", "sgd", "momentum"],
)
def test_against_torch(ours, theirs, settings):
    torch = pytest.importorskip("torch")
    p = parameters()
    tensors = {name: torch.tensor(a, requires_grad=True) for name, a in p.items()}
    reference = getattr(torch.optim, theirs)(tensors.values(), **settings)
    for _ in range(20):
        for name, g in gradient({name: t.detach().numpy() for name, t in tensors.items()}).items():
            tensors[name].grad = torch.tensor(g)
        reference.step()
    for name, a in run(ours, p, 20).items():
        np.testing.assert_allclose(a, tensors[name].detach().numpy(), rtol=1e-11)


def test_float32_adam_rounds_each_step_only():
    """Large arrays take the kernel, whose 1 - b2 must not be that of a rounded 0.999: wrong by 5e-5."""
    g = np.random.default_rng(0).standard_normal(2 * optim.SMALL).astype(np.float32)
    p = {"large": g, "small": g[:10]}
    o = optim.scale_by_adam()
    single, state, double, exact = p, o.init(p), {}, o.init({k: v.astype(float) for k, v in p.items()})
    for step in range(5):
        gradients = {k: v * np.float32(1 + step) for k, v in p.items()}
        single, state = o.update(gradients, state, p)
        double, exact = o.update({k: v.astype(float) for k, v in gradients.items()}, exact, p)
    for k in p:
        np.testing.assert_allclose(single[k], double[k], rtol=20 * np.finfo(np.float32).eps)


def test_first_steps_of_adam_by_hand():
    o = optim.adam(0.1)
    p = {"a": np.zeros(1)}
    state = o.init(p)
    u, state = o.update({"a": np.array([2.0])}, state, p)
    np.testing.assert_allclose(u["a"], -0.1 * 2 / (2 + 1e-8), rtol=1e-14)
    u, state = o.update({"a": np.array([-1.0])}, state, p)
    m = (0.9 * 0.1 * 2 - 0.1 * 1) / (1 - 0.9**2)
    v = (0.999 * 0.001 * 4 + 0.001 * 1) / (1 - 0.999**2)
    np.testing.assert_allclose(u["a"], -0.1 * m / (np.sqrt(v) + 1e-8), rtol=1e-12)


ALL = {
    "adam": optim.adam(1e-2),
    "adamw": optim.adamw(optim.cosine(1e-2, 100, 10), decay=0.1),
    "sgd": optim.sgd(1e-2),
    "momentum": optim.sgd(1e-2, momentum=0.9),
    "clipped": optim.chain(optim.clip_global_norm(1.0), optim.adam(1e-2)),
}


@pytest.mark.parametrize("optimiser", ALL.values(), ids=ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pure_and_of_one_precision(optimiser, dtype):
    p = parameters(dtype)
    g = gradient(p)
    state = optimiser.init(p)
    before = pickle.dumps((p, g, state))
    updates, after = optimiser.update(g, state, p)
    assert pickle.dumps((p, g, state)) == before
    assert not any(np.shares_memory(updates[n], x) for n in p for x in (p[n], g[n]))
    assert (
        {a.dtype for a in updates.values()} == {a.dtype for a in optim.apply(p, updates).values()} == {np.dtype(dtype)}
    )
    again, _ = optimiser.update(g, pickle.loads(pickle.dumps(after)), p)
    once, _ = optimiser.update(g, after, p)
    for n in p:
        np.testing.assert_array_equal(again[n], once[n])


def plain(state):
    """Whether a state is made of dicts, tuples, arrays and ints only."""
    if isinstance(state, dict):
        return all(isinstance(k, str) and plain(v) for k, v in state.items())
    return all(map(plain, state)) if isinstance(state, tuple) else isinstance(state, (int, np.ndarray))


@pytest.mark.parametrize("optimiser", ALL.values(), ids=ALL)
def test_states_are_plain_and_survive_npz(optimiser):
    p = parameters(np.float32)
    _, state = optimiser.update(gradient(p), optimiser.init(p), p)
    assert plain(state)

    def loaded(s):  # as np.load gives them back: counts are arrays of shape ()
        if isinstance(s, dict):
            return {k: loaded(v) for k, v in s.items()}
        return tuple(map(loaded, s)) if isinstance(s, tuple) else np.asarray(s)

    updates, _ = optimiser.update(gradient(p), loaded(state), p)
    assert {u.dtype for u in updates.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("optimiser", ALL.values(), ids=ALL)
def test_no_parameters_and_empty_ones(optimiser):
    assert optimiser.update({}, optimiser.init({}), {})[0] == {}
    p = {"a": np.empty((0, 3), np.float32)}
    updates, _ = optimiser.update(p, optimiser.init(p), p)
    assert updates["a"].shape == (0, 3)


def test_clip_global_norm():
    g = {"a": np.array([[3.0, 0.0]]), "b": np.array([4.0])}
    clip = optim.clip_global_norm(2.5)
    out, state = clip.update(g, clip.init(g), g)
    np.testing.assert_allclose([out["a"][0, 0], out["b"][0]], [1.5, 2.0])
    assert state == ()
    small = {name: a / 10 for name, a in g.items()}
    for name, a in clip.update(small, (), g)[0].items():
        np.testing.assert_array_equal(a, small[name])
    with pytest.raises(ValueError, match="positive"):
        optim.clip_global_norm(0)


def test_clip_of_large_float32_gradients():
    g = {"a": np.full(2, 1e18, np.float32)}
    out = optim.clip_global_norm(1.0).update(g, (), g)[0]["a"]
    np.testing.assert_allclose(out, np.sqrt(0.5), rtol=1e-6)


def test_cosine():
    s = optim.cosine(2.0, steps=110, warmup=10)
    assert s(0) == 0.2
    assert s(9) == s(10) == 2.0
    np.testing.assert_allclose(s(60), 1.0, rtol=1e-14)
    assert s(110) == s(10**6) == 0
    assert optim.cosine(1.0, 10)(0) == 1.0
    with pytest.raises(ValueError, match="warmup=10"):
        optim.cosine(1.0, 10, warmup=10)


def test_schedule_counts_steps():
    seen = []
    o = optim.sgd(lambda step: seen.append(step) or 0.1)
    run(o, parameters(), 3)
    assert seen == [0, 1, 2]


def test_names_and_missing_gradients_are_told():
    p = parameters()
    o = optim.adam(0.1)
    state = o.init(p)
    with pytest.raises(ValueError, match="b;"):
        o.update({"w": p["w"]}, state, p)
    with pytest.raises(ValueError, match="'b' is None"):
        o.update({"w": p["w"], "b": None}, state, p)


def test_apply_keeps_parameters_without_updates():
    p = parameters()
    out = optim.apply(p, {"b": np.ones(2)})
    assert out["w"] is p["w"]
    np.testing.assert_array_equal(out["b"], p["b"] + 1)


def test_rmsprop_against_torch():
    torch = pytest.importorskip("torch")
    p = parameters()
    tensors = {name: torch.tensor(a, requires_grad=True) for name, a in p.items()}
    reference = torch.optim.RMSprop(tensors.values(), lr=0.01, momentum=0.5)
    for _ in range(20):
        for name, g in gradient({name: t.detach().numpy() for name, t in tensors.items()}).items():
            tensors[name].grad = torch.tensor(g)
        reference.step()
    for name, a in run(optim.rmsprop(0.01, momentum=0.5), p, 20).items():
        np.testing.assert_allclose(a, tensors[name].detach().numpy(), rtol=1e-11)


def test_one_cycle_against_torch():
    torch = pytest.importorskip("torch")
    o = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(o, 0.5, total_steps=50)
    ours = optim.one_cycle(0.5, 50)
    for step in range(49):
        assert ours(step) == pytest.approx(o.param_groups[0]["lr"], rel=1e-9)
        o.step()
        theirs.step()


def test_the_fused_step_of_adam_equals_the_plain_one():
    big = {"a": np.random.default_rng(0).normal(size=(200, 101))}
    small = {str(i): row for i, row in enumerate(big["a"])}
    o = optim.scale_by_adam()
    states = o.init(big), o.init(small)
    for step in range(3):
        a, s = o.update({"a": np.sin(big["a"] + step)}, states[0], big)
        b, t = o.update({k: np.sin(v + step) for k, v in small.items()}, states[1], small)
        states = s, t
        np.testing.assert_allclose(a["a"], np.stack(list(b.values())), rtol=1e-12, atol=1e-15)


def test_groups_have_their_own_rates_and_names_without_a_rule_are_told():
    o = optim.by_name({"w": optim.sgd(1.0), "*": optim.sgd(0.1, momentum=0.9)})
    p = parameters()
    u, _ = o.update(p, o.init(p), p)
    np.testing.assert_allclose(u["w"], -p["w"])
    np.testing.assert_allclose(u["b"], -0.1 * p["b"])
    with pytest.raises(ValueError, match="no rule for 'b'"):
        optim.by_name({"w": optim.sgd(1.0)}).init(p)


def test_lbfgs_finds_the_minimum_of_rosenbrocks_valley():
    def valley(p):
        x, y = p["x"], p["y"]
        value = ((1 - x) ** 2 + 100 * (y - x**2) ** 2).sum()
        return value, {"x": -2 * (1 - x) - 400 * x * (y - x**2), "y": 200 * (y - x**2)}

    p = optim.lbfgs(valley, {"x": np.array([-1.2]), "y": np.array([1.0])}, steps=200)
    np.testing.assert_allclose([p["x"][0], p["y"][0]], 1, rtol=1e-6)


def test_plateau_and_warmup():
    s = optim.Plateau(1.0, factor=0.5, patience=2)
    for loss in (3, 2, 1, 1, 1):
        s.observe(loss)
    assert s(0) == 1.0
    s.observe(1)
    assert s(0) == 0.5
    assert optim.warmup(optim.cosine(1.0, 10), 5)(0) == pytest.approx(0.2)
    for bad in (lambda: optim.Plateau(1.0, factor=2.0), lambda: optim.one_cycle(1.0, 1)):
        with pytest.raises(ValueError, match="expected"):
            bad()


def test_average_of_parameters():
    a = {"w": np.zeros(2, np.float32)}
    for _ in range(100):
        a = optim.average(a, {"w": np.ones(2, np.float32)}, decay=0.9)
    np.testing.assert_allclose(a["w"], 1 - 0.9**100, rtol=1e-5)
    assert a["w"].dtype == np.float32
