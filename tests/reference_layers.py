"""Draws tests/reference_layers.npz with torch: values and all gradients of each layer and of the encoders, and the
losses of a training, in float64.

    python tests/reference_layers.py

`LAYERS` needs no torch: the tests make the same layers from it and compare.
"""

from pathlib import Path

import numpy as np

from smlmcore import encoder, layers

FILE = Path(__file__).with_suffix(".npz")
IMAGES, VOLUMES = (2, 5, 6), (2, 3, 4, 5)  # without channels

LAYERS = {
    "conv": (layers.Conv2d(3, 4), (*IMAGES, 3)),
    "conv_gelu": (layers.Conv2d(3, 4, activation="gelu"), (*IMAGES, 3)),
    "conv_stride": (layers.Conv2d(3, 4, stride=2, activation="silu"), (*IMAGES, 3)),
    "conv_valid": (layers.Conv2d(2, 3, padding="valid", activation="elu"), (*IMAGES, 2)),
    "conv_reflect": (layers.Conv2d(2, 3, 5, padding="reflect"), (*IMAGES, 2)),
    "conv_dilated": (layers.Conv2d(2, 3, dilation=2, activation="relu"), (*IMAGES, 2)),
    "conv_even": (layers.Conv2d(2, 3, 2), (*IMAGES, 2)),
    "conv3d": (layers.Conv3d(2, 3, activation="leaky"), (*VOLUMES, 2)),
    "conv3d_stride": (layers.Conv3d(2, 3, 3, stride=2), (*VOLUMES, 2)),
    "transpose": (layers.ConvTranspose(3, 2), (*IMAGES, 3)),
    "transpose_wide": (layers.ConvTranspose(3, 2, 4, activation="gelu"), (*IMAGES, 3)),
    "transpose_3d": (layers.ConvTranspose(3, 2, axes=3), (*VOLUMES, 3)),
    "upsample": (layers.Upsample(), (*IMAGES, 3)),
    "upsample_3d": (layers.Upsample(), (*VOLUMES, 3)),
    "linear": (layers.Linear(4, 3), (5, 4)),
    "batch_norm": (layers.BatchNorm(3), (*IMAGES, 3)),
    "group_norm": (layers.GroupNorm(6, groups=2), (*IMAGES, 6)),
    "layer_norm": (layers.LayerNorm(4), (*IMAGES, 4)),
    "max_pool": (layers.MaxPool(), (*IMAGES, 3)),
    "max_pool_3d": (layers.MaxPool(), (*VOLUMES, 3)),
    "avg_pool": (layers.AvgPool(), (*IMAGES, 3)),
    "global_pool": (layers.GlobalPool(), (*IMAGES, 3)),
    **{
        f.__name__.lower(): (f(), (3, 7))
        for f in (
            layers.Relu, layers.LeakyRelu, layers.Gelu, layers.Silu, layers.Elu, layers.Softplus, layers.Sigmoid,
            layers.Tanh,
        )
    },
    "residual": (layers.residual(layers.Conv2d(3, 3, activation="gelu")), (*IMAGES, 3)),
    "concatenate": (layers.concatenate(layers.Conv2d(3, 2), layers.Conv2d(3, 1, 1)), (*IMAGES, 3)),
}  # fmt: skip

PLAIN = {"root": False, "centre": 0.0, "spread": 1.0}
ENCODERS = {
    "unet": (encoder.UNet(3, depth=2, width=4, last=5, **PLAIN), (2, 1, 9, 10)),
    "unet_add": (encoder.UNet(2, inputs=2, depth=1, width=4, skip="add", activation="relu", **PLAIN), (2, 2, 6, 7)),
    "unet_none": (encoder.UNet(2, depth=1, width=8, skip="none", norm="group", **PLAIN), (2, 1, 4, 5)),
    "unet_3d": (encoder.UNet(2, depth=1, width=3, axes=3, **PLAIN), (1, 1, 4, 5, 6)),
    "conv_encoder": (encoder.Conv((6, 7), 3, width=3, hidden=5), (4, 6, 7)),
}


TRAINED, STEPS, RATE = encoder.UNet(1, depth=2, width=8, **PLAIN), 200, 1e-3  # with Adam


def training_data():
    """Parameters, input and target of the training, (n, y, x, channel)."""
    rng = np.random.default_rng(0)
    p = TRAINED.init(rng, np.float64)
    x = rng.normal(size=(2, 16, 16, 1))
    return p, x, 0.5 * x + 0.1 * rng.normal(size=x.shape)


def draw(name, layer, shape):
    """Parameters, input and output gradient of a case, and the function that applies the layer."""
    rng = np.random.default_rng(len(name) + sum(shape))
    p = {k: v + 0.1 * rng.normal(size=v.shape) for k, v in layer.init(rng, np.float64).items()}
    x = rng.normal(size=shape)
    if name == "conv_encoder":
        x = 10 + 5 * x
    return p, x, rng


# ---------------------------------------------------------------------------------------------- torch
def main():
    import torch
    import torch.nn.functional as F

    def first(a):  # channels first
        return a.movedim(-1, 1)

    def last(a):
        return a.movedim(1, -1)

    def filters(w):
        return w.movedim((-1, -2), (0, 1))

    def act(name):
        return {None: lambda v: v, "leaky": lambda v: F.leaky_relu(v, 0.01)}.get(name) or getattr(F, name)

    def conv(p, x, layer):
        """x and result channels first."""
        axes, reach = x.ndim - 2, layer.dilation * (layer.size - 1)
        if layer.padding != "valid":
            low = reach // 2
            x = F.pad(x, [low, reach - low] * axes, mode="reflect" if layer.padding == "reflect" else "constant")
        run = getattr(F, f"conv{axes}d")
        return act(layer.activation)(run(x, filters(p["weight"]), p["bias"], layer.stride, 0, layer.dilation))

    def part(p, name):
        return {k[len(name) + 1 :]: v for k, v in p.items() if k.startswith(f"{name}.")}

    def apply(layer, p, x):
        """Any layer of ours in torch, channels first."""
        kind = type(layer).__name__
        if kind in ("Conv2d", "Conv3d"):
            return conv(p, x, layer)
        if kind == "ConvTranspose":
            run = getattr(F, f"conv_transpose{layer.axes}d")
            return act(layer.activation)(
                run(x, filters(p["weight"]), p["bias"], layer.stride, (layer.size - layer.stride) // 2)
            )
        if kind == "chain":
            for i, one in enumerate(layer.layers):
                x = apply(one, part(p, str(i)), x)
            return x
        if kind == "residual":
            return x + apply(layer.layer, p, x)
        if kind == "concatenate":
            return torch.cat([apply(one, part(p, str(i)), x) for i, one in enumerate(layer.layers)], 1)
        if kind == "Upsample":
            return F.interpolate(x, scale_factor=layer.size)
        if kind == "Linear":
            return x @ p["weight"] + p["bias"]
        if kind == "BatchNorm":
            return F.batch_norm(x, p["mean"].detach(), p["variance"].detach(), p["scale"], p["shift"], True, 0.1)
        if kind == "GroupNorm":
            return F.group_norm(x, layer.groups, p["scale"], p["shift"])
        if kind == "LayerNorm":
            return first(F.layer_norm(last(x), (layer.channels,), p["scale"], p["shift"]))
        if kind == "Pool":
            axes = x.ndim - 2
            if layer.kind == "global":
                return x.mean(tuple(range(2, x.ndim)))
            return getattr(F, f"{'max' if layer.kind == 'max' else 'avg'}_pool{axes}d")(x, layer.size)
        if kind == "Activation":
            return act(layer.name)(x)
        raise TypeError(kind)

    def unet(net, p, x):
        size, step = x.shape[2:], 1 << net.depth
        x = F.pad(x, [v for s in reversed(size) for v in (0, -s % step)])
        kept = []
        for level, block in enumerate(net.down):
            x = apply(block, part(p, f"down.{level}"), x)
            if level < net.depth:
                kept.append(x)
                x = getattr(F, f"max_pool{net.axes}d")(x, 2)
        for level in reversed(range(net.depth)):
            if net.skip == "add":
                x = F.interpolate(apply(net.reduce[level], part(p, f"reduce.{level}"), x), scale_factor=2) + kept[level]
            else:
                x = F.interpolate(x, scale_factor=2)
                x = torch.cat([x, kept[level]], 1) if net.skip == "concatenate" else x
            x = apply(net.up[level], part(p, f"up.{level}"), x)
        return apply(net.head, part(p, "head"), x)[(..., *(slice(0, s) for s in size))]

    def conv_encoder(net, p, images):
        z, statistics = net._standardise(images, np.dtype(np.float64))
        z = apply(layers.chain(*net.features.layers[:-1]), part(p, "features"), first(torch.tensor(z)))
        return apply(net.head, part(p, "head"), torch.cat([last(z).flatten(1), torch.tensor(statistics)], 1))

    arrays = {}
    for name, (layer, shape) in (LAYERS | ENCODERS).items():
        p, x, rng = draw(name, layer, shape)
        t = {k: torch.tensor(v, requires_grad=True) for k, v in p.items()}
        inner = name in LAYERS
        source = torch.tensor(x, requires_grad=inner)
        if name == "conv_encoder":
            y = conv_encoder(layer, t, x)
        elif not inner:
            y = unet(layer, t, source)
        else:
            y = apply(layer, t, first(source) if len(shape) > 2 else source)
            y = last(y) if y.ndim > 2 else y
        g = rng.normal(size=tuple(y.shape))
        y.backward(torch.tensor(g))
        arrays[f"{name}/y"], arrays[f"{name}/g"] = y.detach().numpy(), g
        if inner:
            arrays[f"{name}/dx"] = source.grad.numpy()
        arrays |= {f"{name}/d{k}": v.grad.numpy() for k, v in t.items() if v.grad is not None}
    p, x, target = training_data()
    t = {k: torch.tensor(v, requires_grad=True) for k, v in p.items()}
    adam, losses = torch.optim.Adam(t.values(), RATE), []
    for _ in range(STEPS):
        adam.zero_grad()
        loss = F.mse_loss(last(unet(TRAINED, t, first(torch.tensor(x)))), torch.tensor(target))
        loss.backward()
        adam.step()
        losses.append(loss.item())
    np.savez_compressed(FILE, losses=losses, **arrays)


if __name__ == "__main__":
    main()
