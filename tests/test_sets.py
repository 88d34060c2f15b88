"""Data sets: sources, splits, batches, and augmentations that keep labels on their pixels."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from smlmcore import data
from smlmcore.camera import Camera
from smlmcore.data import sets
from smlmcore.data.sets import ImageSet


def beads(n=40, shape=(9, 9)):
    """One bright pixel in each image, at the labels."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(2, shape[1] - 2, n), rng.integers(2, shape[0] - 2, n)
    images = np.zeros((n, *shape), np.float32)
    images[np.arange(n), y, x] = 1
    return ImageSet(images, 2 * images, {"x": x.astype(float), "y": y.astype(float), "id": np.arange(n)})


@pytest.mark.parametrize("augment", [sets.flips, sets.rotations, sets.pixel_shift(2)])
def test_labels_follow_the_images(augment):
    before = beads()
    kept = before.images.copy()
    after = augment(before, np.random.default_rng(1))
    rows = np.arange(len(after))
    at = after.labels["y"].astype(int), after.labels["x"].astype(int)
    assert (after.images[rows, at[0], at[1]] == 1).all()
    assert (after.images.sum((1, 2)) == 1).all()
    assert np.array_equal(after.targets, 2 * after.images)
    assert np.array_equal(after.labels["id"], rows)
    assert not np.array_equal(after.images, kept)
    assert np.array_equal(before.images, kept)  # untouched


def test_not_square_and_volumes():
    long = beads(shape=(7, 12))
    for augment in (sets.flips, sets.pixel_shift(1)):
        after = augment(long, np.random.default_rng(0))
        at = after.labels["y"].astype(int), after.labels["x"].astype(int)
        assert (after.images[np.arange(len(after)), at[0], at[1]] == 1).all()
    with pytest.raises(ValueError, match="square"):
        sets.rotations(long, np.random.default_rng(0))
    volumes = ImageSet(np.random.default_rng(0).random((3, 4, 6, 6)))
    for augment in (sets.flips, sets.rotations, sets.pixel_shift(1)):
        assert augment(volumes, np.random.default_rng(0)).images.shape == (3, 4, 6, 6)
    assert len(sets.show(volumes).get_axes()) == 3


def test_noise_makes_pairs():
    clean = ImageSet(np.full((50, 8, 9), 40.0))
    noisy = sets.noise(Camera(100, 0.5, 2.0))(clean, np.random.default_rng(0))
    assert np.array_equal(noisy.targets, clean.images)
    assert abs(noisy.images.var() - 44) < 5 * 44 * np.sqrt(2 / clean.images.size)


def test_splits_are_disjoint_and_complete():
    parts = beads().split(0.5, 0.25, seed=3)
    assert [len(p) for p in parts] == [20, 10, 10]
    assert sorted(np.concatenate([p.labels["id"] for p in parts])) == list(range(40))
    for bad in ((), (0.7, 0.6), (-0.1,)):
        with pytest.raises(ValueError, match="fractions"):
            beads().split(*bad)


@pytest.mark.parametrize("prefetch", [1, 3, 50])
def test_batches_see_each_image_once_whatever_is_made_ahead(prefetch):
    augment = [sets.flips, sets.pixel_shift(1)]
    found = list(beads().batches(7, seed=5, augment=augment, prefetch=prefetch))
    assert [len(b) for b in found] == [7, 7, 7, 7, 7, 5]
    assert sorted(np.concatenate([b.labels["id"] for b in found])) == list(range(40))
    again = list(beads().batches(7, seed=5, augment=augment))
    assert all(np.array_equal(a.images, b.images) for a, b in zip(found, again, strict=True))
    assert not np.array_equal(found[0].images, next(beads().batches(7, seed=6, augment=augment)).images)
    assert list(beads()[:0].batches(4)) == []
    with pytest.raises(ValueError, match="size 0"):
        next(beads().batches(0))


def test_an_image_under_shifts():
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((17, 20)), 2, mode="wrap")
    moved = sets.from_image(image, 6, np.random.default_rng(1), shift=1.5)
    for frame, x, y in zip(moved.images, moved.labels["x"], moved.labels["y"], strict=True):
        expected = ndimage.shift(image, (y, x), order=5, mode="grid-wrap")
        np.testing.assert_allclose(frame, expected, atol=2e-4 * np.ptp(image) + 1e-6)
    whole = sets.from_image(image, 1, np.random.default_rng(1), shift=0.0)
    np.testing.assert_allclose(whole.images[0], image, rtol=1e-6)


def test_pairs_and_files(tmp_path):
    frames = np.random.default_rng(0).integers(0, 99, (3, 6, 7)).astype(np.uint16)
    for part, factor in (("low", 1), ("high", 10)):
        (tmp_path / part).mkdir()
        for name, stack in (("a.tif", frames), ("b.tif", frames[:1] + 1)):
            tifffile.imwrite(tmp_path / part / name, stack * np.uint16(factor), photometric="minisblack")
    found = sets.pairs(tmp_path)
    assert found.images.shape == (4, 6, 7)
    assert np.array_equal(found.targets, 10 * found.images)
    assert found.labels["frame"].tolist() == [0, 1, 2, 0]
    assert len(sets.from_file(tmp_path / "low" / "a.tif")) == 3
    (tmp_path / "high" / "b.tif").unlink()
    with pytest.raises(data.DataError, match=r"differ \(b\.tif\)"):
        sets.pairs(tmp_path)


def test_sub_volumes_of_arrays_and_movies(tmp_path):
    stack = np.arange(9 * 16 * 17, dtype=np.uint16).reshape(9, 16, 17)
    tifffile.imwrite(tmp_path / "s.tif", stack)
    with data.open_movie(tmp_path / "s.tif") as movie:
        boxes = sets.sub_volumes(movie, 20, (4, 8, 9), np.random.default_rng(0), target=stack + 1)
    for box, target, z, y, x in zip(boxes.images, boxes.targets, *(boxes.labels[k] for k in "zyx"), strict=True):
        assert np.array_equal(box, stack[z : z + 4, y : y + 8, x : x + 9])
        assert np.array_equal(target, box + 1)
    with pytest.raises(ValueError, match="not larger"):
        sets.sub_volumes(stack, 1, (10, 1, 1), np.random.default_rng(0))


def test_the_figure_and_what_is_refused():
    axes = sets.show(beads(), 5).get_axes()
    assert len(axes) == 10
    assert axes[0].lines[0].get_xdata()[0] == beads().labels["x"][0]
    with pytest.raises(ValueError, match="expected \\(n, h, w\\)"):
        ImageSet(np.zeros(3))
    with pytest.raises(ValueError, match="expected one shape"):
        ImageSet(np.zeros((2, 3, 4)), np.zeros((2, 3, 5)))
    with pytest.raises(ValueError, match="1 labels x of 2"):
        ImageSet(np.zeros((2, 3, 4)), labels={"x": np.zeros(1)})
