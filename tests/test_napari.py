"""The napari reader, called as napari calls it: layers of a result, its movie read frame by frame."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from smlmcore import data, napari
from smlmcore.camera import Camera
from smlmcore.localize.render import render, save_image

SHAPE = (5, 12, 16)


@pytest.fixture
def result(tmp_path):
    """A folder as `smlmcore localize` writes it, of two movies."""
    counts = np.random.default_rng(0).integers(0, 99, SHAPE).astype(np.uint16)
    camera = Camera(offset=100.0, gain=0.5, pixel_size=0.1)
    for name, part in (("a", counts[:3]), ("b", counts[3:])):
        data.write_tiff(tmp_path / f"{name}.tif", [part], part.shape, np.uint16, camera)
    table = data.table(
        frame=[0, 4], x=[3.25, 9.0], y=[7.5, 2.0], photons=[500.0, 900.0], lpx=[0.1, 0.2], lpy=[0.1, 0.2]
    )
    data.write_picasso(tmp_path / "localizations.hdf5", table, SHAPE, 0.1)
    save_image(tmp_path / "image.tif", render(table, SHAPE[1:], 4.0, 0), 0.025)
    movies = [str(tmp_path / f"{n}.tif") for n in "ab"]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({"movies": movies, "zoom": 4.0}))
    return tmp_path, counts


def test_layers_lie_over_each_other(result):
    folder, counts = result
    reader = napari.get_reader(str(folder))
    assert reader is napari.get_reader(str(folder / "localizations.hdf5")) is napari.read
    movie, image, points = reader(str(folder))
    assert [layer[2] for layer in (movie, image, points)] == ["image", "image", "points"]
    np.testing.assert_array_equal(points[0], [[0, 7.5, 3.25], [4, 2, 9]])
    assert points[1]["features"]["photons"].tolist() == [500, 900]
    # the brightest pixel of the image, in world coordinates, is where a localization lies
    place, scale, shift = np.argwhere(image[0] > 0), *(np.array(image[1][k]) for k in ("scale", "translate"))
    np.testing.assert_allclose(np.sort(place * scale + shift, 0), [[2, 3.25], [7.5, 9]], atol=scale[0] / 2)
    np.testing.assert_array_equal(np.asarray(movie[0]), counts)
    for index in (0, 3, -1, (4, slice(2, 5)), slice(1, 4), (slice(2, 4), 3, 5), slice(0, 0)):
        np.testing.assert_array_equal(movie[0][index], counts[index])
    with pytest.raises(IndexError):
        movie[0][5]


def test_what_is_missing(result, tmp_path_factory):
    folder, _ = result
    assert napari.get_reader(str(tmp_path_factory.mktemp("other"))) is None
    assert napari.get_reader([str(folder)]) is None
    (folder / "b.tif").unlink()
    assert [layer[2] for layer in napari.read(folder)] == ["image", "points"]
    (folder / "image.tif").write_bytes(b"none")
    with pytest.raises(data.DataError, match=r"image\.tif"):
        napari.read(folder)


def test_the_manifest_names_what_is_there():
    manifest = yaml.safe_load((Path(napari.__file__).parent / "napari.yaml").read_text())
    module, name = manifest["contributions"]["commands"][0]["python_name"].split(":")
    assert (module, getattr(napari, name)) == ("smlmcore.napari", napari.get_reader)
