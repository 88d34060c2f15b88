"""The encoder: a training step beside torch, and how near to the bound a minute of training comes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from smlmcore import encoder, fit, psf
from smlmcore.autograd import Tensor
from smlmcore.training import Trainer

from .harness import Row, compare

BATCH, SHAPE = 256, (11, 11)


def rows() -> Iterator[Row]:
    images = np.random.default_rng(0).poisson(20.0, (BATCH, *SHAPE)).astype(np.float32)
    for width in (16, 32):
        net = encoder.Conv(SHAPE, 5, width=width)
        start = net.init(np.random.default_rng(0))

        def step(net=net, start=start):
            net({name: Tensor(v) for name, v in start.items()}, images).sum().backward()

        yield compare(
            f"conv encoder width {width}, {BATCH} spots 11x11, forward + backward",
            step,
            {"torch": torch_step(width, images)},
            target="<= 0.85x torch's time",
        )
    yield accuracy()


def accuracy() -> Row:
    """RMSE / CRLB on unseen spots from the encoder alone, and the seconds it was trained."""
    rng = np.random.default_rng(1)
    n = 30_000
    truth = np.stack(
        [
            5 + rng.uniform(-1, 1, n),
            5 + rng.uniform(-1, 1, n),
            2000 * np.exp(0.3 * rng.normal(size=n)),
            rng.uniform(5, 15, n),
            rng.uniform(1.1, 1.5, n),
        ],
        1,
    )
    model = psf.Gaussian2D()
    images = rng.poisson(model.partials(truth, SHAPE)[0]).astype(np.float32)
    run = Trainer(fit.gaussian2d(SHAPE), images, epochs=26, progress=False)
    seconds = run.run()["seconds"][-1]
    found = np.stack([run.model.predict(images[run.held_out])[name] for name in model.names], 1)
    error = (found - truth[run.held_out]) / model.crlb(truth[run.held_out], SHAPE)
    ratio = np.sqrt((error**2).mean(0))
    note = "RMSE/CRLB " + ", ".join(f"{name} {v:.3f}" for name, v in zip(model.names, ratio, strict=True))
    return Row("unsupervised encoder, training", seconds, {}, target="<= 60 s, <= 1.05 CRLB", note=note)


def torch_step(width, images):
    """The same network in torch; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    from torch import nn

    torch.set_num_threads(2)
    torch.manual_seed(0)
    c = width
    features = nn.Sequential(
        *(nn.Conv2d(1, c, 3, padding=1), nn.GELU(), nn.Conv2d(c, c, 3, padding=1), nn.GELU()),
        *(nn.Conv2d(c, 2 * c, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(2 * c, 2 * c, 3, padding=1), nn.GELU()),
        nn.Flatten(),
    ).to(memory_format=torch.channels_last)
    head = nn.Sequential(nn.Linear(2 * c * 36, 128), nn.GELU(), nn.Linear(128, 5))
    x = torch.from_numpy(images)[:, None]

    def run():
        a = torch.sqrt(x + 0.375)
        a = (a - a.mean((1, 2, 3), keepdim=True)) / a.std((1, 2, 3), keepdim=True)
        loss = head(features(a)).sum()
        for parameter in [*features.parameters(), *head.parameters()]:
            parameter.grad = None
        loss.backward()

    return run
