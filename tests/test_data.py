from __future__ import annotations

import errno
import json
import logging
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

from smlmcore import data
from smlmcore.camera import Camera

CAMERA = Camera(offset=100, gain=0.5, read_noise=1.5, pixel_size=0.108)
SHARED = Path(os.environ.get("SMLMCORE_DATA", Path(__file__).parents[1] / "../shared/data"))


@pytest.fixture
def movie() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, (7, 9, 12)).astype(np.uint16)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---------------------------------------------------------------- files


def write_half(manager, target: Path, error) -> None:
    with manager(target) as temporary:
        (temporary / "a" if temporary.is_dir() else temporary).write_text("half")
        raise error


def test_atomic_replaces_only_on_success(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    for error in (ValueError, KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises((ValueError, KeyboardInterrupt, OSError)):
            write_half(data.atomic, target, error)
        assert target.read_text() == "old"
        assert names(tmp_path) == ["a.txt"]
    with data.atomic(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_keeps_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    with data.atomic(tmp_path / "ours") as temporary:
        temporary.write_text("")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(PermissionError) as caught, data.atomic(tmp_path / "table.csv") as temporary:
        raise PermissionError(13, "Permission denied", str(temporary))
    assert caught.value.filename == str(tmp_path / "table.csv")


def test_atomic_folder(tmp_path):
    target = tmp_path / "results"
    with pytest.raises(KeyboardInterrupt):
        write_half(data.atomic_folder, target, KeyboardInterrupt)
    assert names(tmp_path) == []
    with data.atomic_folder(target) as temporary:
        (temporary / "a").write_text("1")
    (target / "mine").write_text("stays")
    with pytest.raises(OSError, match="disk"):
        write_half(data.atomic_folder, target, OSError("disk"))
    assert (target / "a").read_text() == "1"
    with data.atomic_folder(target) as temporary:
        (temporary / "a").write_text("3")
    assert names(tmp_path) == ["results"]
    assert names(target) == ["a", "mine"]
    assert (target / "a").read_text() == "3"
    with data.atomic_folder(tmp_path / "deep" / "er") as temporary:
        (temporary / "a").write_text("4")
    assert names(tmp_path) == ["deep", "results"]
    assert names(tmp_path / "deep" / "er") == ["a"]
    for bad in (target / "a", target / "a" / "b"):
        with pytest.raises(data.DataError, match="is a file"), data.atomic_folder(bad):
            pass


def test_targets_that_cannot_be(tmp_path):
    with pytest.raises(data.DataError, match="does not exist; create it"), data.atomic(tmp_path / "no" / "a.txt"):
        pass
    with pytest.raises(data.DataError, match="is a folder"), data.atomic(tmp_path):
        pass
    with pytest.raises(data.DataError, match="exists already"):
        data.refuse_existing(tmp_path / "b", tmp_path)
    data.refuse_existing(tmp_path, overwrite=True)


# ---------------------------------------------------------------- TIFF


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 9, 12), (2, 5, 3)])
def test_write_then_read(tmp_path, dtype, shape):
    frames = np.random.default_rng(1).normal(50, 20, shape).astype(dtype)
    data.write_tiff(tmp_path / "m.tif", iter([frames[:1], frames[1:]]), shape, dtype, CAMERA)
    with data.open_movie(tmp_path / "m.tif") as movie:
        assert (movie.shape, movie.dtype, len(movie)) == (shape, dtype, shape[0])
        assert Camera(**movie.camera) == CAMERA
        assert np.array_equal(movie.read(), frames)
        parts = list(movie.chunks(3))
        assert [start for start, _ in parts] == list(range(0, shape[0], 3))
        assert np.array_equal(np.concatenate([p for _, p in parts]), frames)
        assert movie.read(1, 1).shape == (0, *shape[1:])
        assert movie.warnings == ()
    assert np.array_equal(tifffile.imread(tmp_path / "m.tif").reshape(shape), frames)
    assert names(tmp_path) == ["m.tif"]


def test_the_numbers_of_any_camera_come_back(tmp_path, movie):
    emccd = Camera(200, 12.0, 50.0, 0.1, qe=0.9, em_gain=300.0, spurious_charge=0.02, saturation=16000, bits=14)
    data.write_tiff(tmp_path / "m.tif", [movie], movie.shape, movie.dtype, emccd)
    assert Camera(**data.open_movie(tmp_path / "m.tif").camera) == emccd
    maps = Camera(np.full((9, 12), 100.0), 0.5)
    data.write_tiff(tmp_path / "m.tif", [movie], movie.shape, movie.dtype, maps)
    assert data.open_movie(tmp_path / "m.tif").camera == {"gain": 0.5, "read_noise": 0.0}


def test_our_file_is_valid_ome(tmp_path, movie):
    data.write_tiff(tmp_path / "m.tif", [movie], movie.shape, movie.dtype, CAMERA)
    with tifffile.TiffFile(tmp_path / "m.tif") as tif:
        assert tif.is_ome
        assert tif.series[0].axes == "TYX"
        pixels = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeXUnit"]) == (0.108, "µm")
    data.write_tiff(tmp_path / "m.tif", [movie], movie.shape, movie.dtype)
    assert data.open_movie(tmp_path / "m.tif").camera == {}


def test_reading_out_of_range(tmp_path, movie):
    data.write_tiff(tmp_path / "m.tif", [movie], movie.shape, movie.dtype)
    opened = data.open_movie(tmp_path / "m.tif")
    for start, stop in ((-1, 2), (0, 8), (3, 2)):
        with pytest.raises(ValueError, match="within 0 to 7"):
            opened.read(start, stop)
    with pytest.raises(ValueError, match="at least one frame"):
        next(opened.chunks(0))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bigtiff": True},
        {"imagej": True, "metadata": {"axes": "TYX"}},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"ome": True, "metadata": {"axes": "TYX"}},
        {"compression": "zlib"},
        {"rowsperstrip": 2},
        {"tile": (16, 16)},
        {"byteorder": ">"},
        {"metadata": None},
    ],
)
def test_flavours_of_tiff(tmp_path, movie, options):
    tifffile.imwrite(tmp_path / "m.tif", movie, photometric="minisblack", **options)
    with data.open_movie(tmp_path / "m.tif") as opened:
        assert opened.shape == movie.shape
        assert opened.dtype == np.uint16
        assert opened.dtype.isnative
        assert np.array_equal(opened.read(2, 5), movie[2:5])
        assert np.array_equal(np.concatenate([c for _, c in opened.chunks(2)]), movie)


def test_axes(tmp_path, movie):
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, movie[0])
    assert data.open_movie(path).shape == (1, 9, 12)
    tifffile.imwrite(path, movie[None, None], ome=True, metadata={"axes": "CZTYX"})
    assert data.open_movie(path).shape == (7, 9, 12)
    tifffile.imwrite(path, movie[:6].reshape(3, 2, 9, 12), ome=True, metadata={"axes": "TZYX"})
    with pytest.raises(data.DataError, match=r"axes TZYX of sizes \(3, 2, 9, 12\); .* save one"):
        data.open_movie(path)
    tifffile.imwrite(path, movie[:2], ome=True, metadata={"axes": "CYX"})
    with pytest.raises(data.DataError, match="several colours or channels"):
        data.open_movie(path)
    tifffile.imwrite(path, np.zeros((5, 6, 3), np.uint8), photometric="rgb")
    with pytest.raises(data.DataError, match="several colours or channels"):
        data.open_movie(path)
    tifffile.imwrite(path, np.zeros((2, 5, 6), np.complex64))
    with pytest.raises(data.DataError, match="complex64"):
        data.open_movie(path)


def test_several_series_warn(tmp_path, movie):
    with tifffile.TiffWriter(tmp_path / "m.tif") as tif:
        tif.write(movie)
        tif.write(movie[0, :4, :4])
    opened = data.open_movie(tmp_path / "m.tif")
    assert opened.shape == movie.shape
    assert "2 series" in opened.warnings[0]


def write_ome(path, movie, size, unit):
    tifffile.imwrite(path, movie, ome=True, metadata={"axes": "TYX", "PhysicalSizeX": size, "PhysicalSizeXUnit": unit})


@pytest.mark.parametrize(("size", "unit"), [(0.16, "µm"), (160, "nm"), (1.6e-4, "mm"), (1600, "Å")])
def test_pixel_size_of_ome_in_any_unit(tmp_path, movie, size, unit):
    write_ome(tmp_path / "m.tif", movie, size, unit)
    assert data.open_movie(tmp_path / "m.tif").camera == pytest.approx({"pixel_size": 0.16})


def test_pixel_size_in_unknown_units_is_left_out(tmp_path, movie):
    write_ome(tmp_path / "m.tif", movie, 1.0, "pixel")
    assert data.open_movie(tmp_path / "m.tif").camera == {}


@pytest.mark.parametrize(("unit", "expected"), [("um", 0.16), ("micron", 0.16), ("\\u00B5m", 0.16), ("nm", 1.6e-4)])
def test_pixel_size_of_imagej(tmp_path, movie, unit, expected):
    tifffile.imwrite(
        tmp_path / "m.tif", movie, imagej=True, resolution=(6.25, 6.25), metadata={"unit": unit, "axes": "TYX"}
    )
    assert data.open_movie(tmp_path / "m.tif").camera == pytest.approx({"pixel_size": expected})


def test_dots_per_inch_are_no_pixel_size(tmp_path, movie):
    tifffile.imwrite(tmp_path / "m.tif", movie, resolution=(72, 72), resolutionunit="INCH")
    assert data.open_movie(tmp_path / "m.tif").camera == {}


@pytest.mark.parametrize(("size", "expected"), [(0.11, {"pixel_size": 0.11}), (0.0, {})])
def test_pixel_size_of_micro_manager(tmp_path, movie, size, expected):
    tag = json.dumps({"PixelSizeUm": size}).encode() + b"\0"
    tifffile.imwrite(tmp_path / "m.tif", movie, extratags=[(51123, "s", len(tag), tag, True)])
    assert data.open_movie(tmp_path / "m.tif").camera == expected


@pytest.mark.parametrize("flavour", [{"ome": True}, {"imagej": True}, {"compression": "zlib"}, {"bigtiff": True}])
def test_a_truncated_tiff_is_one_clear_error(tmp_path, movie, flavour):
    whole, path = tmp_path / "whole.tif", tmp_path / "m.tif"
    tifffile.imwrite(whole, movie, **flavour)
    content = whole.read_bytes()
    for size in [*range(1, 60, 7), *range(60, len(content) * 9 // 10, 61)]:
        path.write_bytes(content[:size])
        with pytest.raises(data.DataError) as error:
            data.open_movie(path).read()
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_truncation_is_seen_with_logging_off(tmp_path, movie, capfd):
    path, logger = tmp_path / "m.tif", logging.getLogger("tifffile")
    tifffile.imwrite(path, movie, ome=True)
    path.write_bytes(path.read_bytes()[:2000])
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with pytest.raises(data.DataError, match="truncated"):
            data.open_movie(path)
        assert logger.level == logging.CRITICAL
    finally:
        logger.setLevel(before)
    assert capfd.readouterr() == ("", "")


def test_files_that_are_no_movie(tmp_path):
    path = tmp_path / "m.tif"
    for content, message in ((b"", "empty"), (b"hello", "neither"), (b"II*\0", "truncated"), (b"MM\0*junk", "damaged")):
        path.write_bytes(content)
        with pytest.raises(data.DataError, match=message):
            data.open_movie(path)
    with pytest.raises(data.DataError, match="no such file"):
        data.open_movie(tmp_path / "absent.tif")
    with pytest.raises(data.DataError, match="is a folder"):
        data.open_movie(tmp_path)


def test_write_tiff_refuses_what_does_not_fit(tmp_path, movie):
    path = tmp_path / "m.tif"
    cases = [
        ([movie], (8, 9, 12), np.uint16, "7 frames in all; expected 8"),
        ([movie], (6, 9, 12), np.uint16, "more frames in all; expected 6"),
        ([movie.astype(float)], (7, 9, 12), np.uint16, "float64"),
        ([movie[:, :-1]], (7, 9, 12), np.uint16, "chunk of shape"),
        ([], (0, 9, 12), np.uint16, "none of them zero"),
        ([movie], (9, 12), np.uint16, "none of them zero"),
        ([movie > 3], (7, 9, 12), bool, "dtype bool"),
    ]
    for chunks, shape, dtype, message in cases:
        with pytest.raises(ValueError, match=message):
            data.write_tiff(path, chunks, shape, dtype)
        assert names(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_nothing(tmp_path, movie, monkeypatch, error):
    def chunks():
        yield movie[:3]
        raise error

    with pytest.raises(type(error)):
        data.write_tiff(tmp_path / "m.tif", chunks(), movie.shape, movie.dtype)
    assert names(tmp_path) == []

    def write(self, *arguments):
        raise error

    monkeypatch.setattr(tifffile.FileHandle, "write", write)
    with pytest.raises(type(error)):
        data.write_tiff(tmp_path / "m.tif", [movie], movie.shape, movie.dtype)
    assert names(tmp_path) == []


def test_big_movies_become_bigtiff(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(data.movie.tifffile, "imwrite", lambda path, *_, **k: (seen.update(k), path.write_text(""))[1])
    for frames, big in ((1000, False), (16_000, False), (16_384, True), (40_000, True)):
        data.write_tiff(tmp_path / "m.tif", [], (frames, 256, 512), np.uint16)
        assert seen["bigtiff"] is big


# ---------------------------------------------------------------- Picasso raw


def write_raw(folder: Path, frames: np.ndarray, **changes) -> Path:
    n, h, w = frames.shape
    order = ">" if frames.dtype.byteorder == ">" else "<"
    info = {"Byte Order": order, "Data Type": frames.dtype.name, "Frames": n, "Height": h, "Width": w, **changes}
    (folder / "m.raw").write_bytes(frames.tobytes())
    (folder / "m.yaml").write_text(yaml.safe_dump({k: v for k, v in info.items() if v is not None}))
    return folder / "m.raw"


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_picasso_raw(tmp_path, movie, order):
    path = write_raw(tmp_path, movie.astype(order), Baseline=100, Sensitivity=1.5, Gain=3, Pixelsize=160)
    with data.open_movie(path) as opened:
        assert opened.shape == movie.shape
        assert np.array_equal(opened.read(), movie)
        assert opened.camera == {"offset": 100.0, "gain": 0.5, "pixel_size": 0.16}
        assert opened.warnings == ()


def test_raw_with_another_number_of_frames_than_stated(tmp_path, movie):
    for stated, used in ((1000, 7), (5, 5)):
        opened = data.open_movie(write_raw(tmp_path, movie, Frames=stated))
        assert opened.shape == (used, 9, 12)
        assert np.array_equal(opened.read(), movie[:used])
        assert f"says {stated}; {used} used" in opened.warnings[0]


def test_raw_that_does_not_fit(tmp_path, movie):
    path = write_raw(tmp_path, movie)
    path.write_bytes(movie.tobytes()[:-1])
    with pytest.raises(data.DataError, match="ends within frame 6 of 7"):
        data.open_movie(path)
    with pytest.raises(data.DataError, match="lacks the key 'Width'"):
        data.open_movie(write_raw(tmp_path, movie, Width=None))
    with pytest.raises(data.DataError, match="correct Data Type"):
        data.open_movie(write_raw(tmp_path, movie, **{"Data Type": "nonsense"}))
    with pytest.raises(data.DataError, match="expected positive sizes"):
        data.open_movie(write_raw(tmp_path, movie, Height=0))
    (tmp_path / "m.yaml").write_text("a: [")
    with pytest.raises(data.DataError, match="no valid YAML"):
        data.open_movie(path)
    (tmp_path / "m.yaml").write_text("")
    with pytest.raises(data.DataError, match="holds no keys"):
        data.open_movie(path)
    (tmp_path / "m.yaml").unlink()
    with pytest.raises(data.DataError, match=r"needs m.yaml beside it"):
        data.open_movie(path)


def test_yaml_with_python_objects_is_read_without_running_them(tmp_path, movie):
    path = write_raw(tmp_path, movie)
    sidecar = tmp_path / "m.yaml"
    sidecar.write_text(sidecar.read_text() + "Pick: !!python/tuple [1, 2]\nX: !!python/object/apply:os.getcwd []\n")
    assert data.open_movie(path).shape == movie.shape


def test_the_shared_movie():
    folder = SHARED / "movie_dna_paint"
    if not folder.is_dir():
        pytest.skip("needs movie_dna_paint of the shared data; set SMLMCORE_DATA")
    with data.open_movie(folder / "testdata.raw") as movie:
        assert movie.shape == (100, 32, 32)
        assert movie.camera == {"pixel_size": 0.16}
        assert np.array_equal(movie.read(), np.fromfile(folder / "testdata.raw", "<u2").reshape(100, 32, 32))
    rows, info = data.read_picasso(folder / "testdata_locs.hdf5")
    assert len(rows) == 564
    assert {"frame", "x", "y", "photons", "background", "sigma_x", "sigma_y", "lpx", "lpy"} <= set(rows.dtype.names)
    assert (info["Width"], info["Generated by"]) == (32, "Picasso Localize")


# ---------------------------------------------------------------- tables


def rows(n: int, dtype=np.float32, **more) -> np.ndarray:
    rng = np.random.default_rng(2)
    columns = {k: rng.uniform(1, 30, n).astype(dtype) for k in ("x", "y", "photons", "background", "sigma_x")}
    errors = {k: rng.uniform(0.01, 0.1, n).astype(dtype) for k in ("lpx", "lpy")}
    return data.table(frame=np.arange(n) % 5, **columns, sigma_y=columns["sigma_x"], **errors, **more)


@pytest.mark.parametrize("n", [0, 1, 50])
def test_picasso_round_trip(tmp_path, n):
    table = rows(n, z=np.linspace(-1, 1, n, dtype=np.float32), status=np.arange(n, dtype=np.int8))
    data.write_picasso(tmp_path / "a.hdf5", table, (5, 32, 40), 0.13, {"Seed": 3})
    back, info = data.read_picasso(tmp_path / "a.hdf5")
    assert back.dtype == table.dtype
    for name in table.dtype.names:
        np.testing.assert_allclose(back[name], table[name], rtol=1e-6 if name == "z" else 0)
    assert info == {
        "Generated by": "smlmcore", "Frames": 5, "Height": 32, "Width": 40, "Pixelsize": 130.0, "Seed": 3
    }  # fmt: skip
    assert names(tmp_path) == ["a.hdf5", "a.yaml"]


def test_picasso_opens_our_tables(tmp_path):
    io = pytest.importorskip("picasso.io")
    table = rows(50, np.float64)
    data.write_picasso(tmp_path / "a.hdf5", table, (5, 32, 40), 0.13)
    locs, info = io.load_locs(str(tmp_path / "a.hdf5"))
    assert len(locs) == 50
    assert info[0]["Pixelsize"] == 130.0
    for ours, theirs in {"frame": "frame", "x": "x", "background": "bg", "sigma_y": "sy", "lpx": "lpx"}.items():
        np.testing.assert_allclose(locs[theirs], table[ours], rtol=1e-6)
    assert all(kind in (np.float32, np.uint32) for kind in locs.dtypes)  # as Picasso itself writes


def test_picasso_needs_uncertainties(tmp_path):
    io = pytest.importorskip("picasso.io")
    data.write_picasso(tmp_path / "a.hdf5", data.table(frame=[0], x=[1.0], y=[2.0]), (1, 4, 4))
    locs, _ = io.load_locs(str(tmp_path / "a.hdf5"))
    assert locs["lpx"].tolist() == [0]


def test_we_open_tables_of_picasso(tmp_path):
    io, pandas = pytest.importorskip("picasso.io"), pytest.importorskip("pandas")
    locs = pandas.DataFrame({"frame": np.uint32([0, 3]), "x": np.float32([1, 2]), "y": np.float32([3, 4])})
    locs = locs.assign(bg=np.float32(7), sx=np.float32(1.2), z=np.float32([-300, 250]))
    io.save_locs(str(tmp_path / "a.hdf5"), locs, [{"Width": 9, "Height": 8, "Frames": 4, "Pixelsize": 100}])
    back, info = data.read_picasso(tmp_path / "a.hdf5")
    assert back["background"].tolist() == [7, 7]
    np.testing.assert_allclose(back["z"], [-0.3, 0.25], rtol=1e-6)
    assert info.get("Width", 9) == 9


def test_picasso_refuses(tmp_path):
    for bad in (np.zeros(3), data.table(x=[1.0], y=[1.0]), rows(4).reshape(2, 2)):
        with pytest.raises(ValueError, match="expected a table"):
            data.write_picasso(tmp_path / "a.hdf5", bad, (1, 2, 3))
    (tmp_path / "a.hdf5").write_text("no")
    with pytest.raises(data.DataError, match="no Picasso HDF5"):
        data.read_picasso(tmp_path / "a.hdf5")
    with pytest.raises(data.DataError, match="no such file"):
        data.read_picasso(tmp_path / "b.hdf5")


@pytest.mark.parametrize("write", [data.write_picasso, data.write_thunderstorm])
def test_a_full_disk_leaves_no_table(tmp_path, monkeypatch, write):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data.tables.np, "savetxt", full)
    monkeypatch.setattr(data.tables.yaml, "safe_dump", full)
    arguments = ((5, 32, 40),) if write is data.write_picasso else (0.1,)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "a.csv", rows(5), *arguments)
    assert names(tmp_path) == []


@pytest.mark.parametrize("n", [0, 1, 50])
@pytest.mark.parametrize("elliptic", [False, True])
def test_thunderstorm_round_trip(tmp_path, n, elliptic):
    table = rows(n, np.float64, z=np.linspace(-0.5, 0.5, n), lpz=0.02)
    if elliptic:
        table["sigma_y"] *= 1.5
    data.write_thunderstorm(tmp_path / "a.csv", table, 0.13)
    back = data.read_thunderstorm(tmp_path / "a.csv", 0.13)
    rms = np.sqrt((table["lpx"] ** 2 + table["lpy"] ** 2) / 2)
    table["lpx"] = table["lpy"] = rms  # ThunderSTORM has one uncertainty for both
    assert set(back.dtype.names) == set(table.dtype.names)
    for name in table.dtype.names:
        np.testing.assert_allclose(back[name], table[name], atol=0.6e-5, err_msg=name)


def test_thunderstorm_counts_from_the_corner_of_the_pixel_and_from_frame_one(tmp_path):
    data.write_thunderstorm(tmp_path / "a.csv", data.table(frame=[0], x=[0.0], y=[2.0], lpx=0.1, lpy=0.1), 0.1)
    header, row = (tmp_path / "a.csv").read_text().splitlines()
    assert header == '"id","frame","x [nm]","y [nm]","uncertainty_xy [nm]"'
    assert row == "1,1,50.00000,250.00000,10.00000"


def test_a_file_of_thunderstorm_itself(tmp_path):
    header = (
        '"id","frame","x [nm]","y [nm]","sigma [nm]","intensity [photon]","offset [photon]","bkgstd [photon]",'
        '"chi2","uncertainty [nm]"\r\n'
    )
    (tmp_path / "a.csv").write_text(header + "1.0,1.0,1000.0,2050.0,130.0,900.5,12.0,3.4,80.1,9.5\r\n")
    (row,) = data.read_thunderstorm(tmp_path / "a.csv", 0.1)
    expected = {
        "frame": 0, "x": 9.5, "y": 20.0, "sigma_x": 1.3, "sigma_y": 1.3, "photons": 900.5, "background": 12.0,
        "lpx": 0.095, "lpy": 0.095,
    }  # fmt: skip
    assert dict(zip(row.dtype.names, row.item(), strict=True)) == pytest.approx(expected)


def test_picasso_opens_our_thunderstorm_tables(tmp_path):
    io = pytest.importorskip("picasso.io")
    table = rows(20, np.float64)
    data.write_thunderstorm(tmp_path / "a.csv", table, 0.13)
    locs, _ = io.import_ts(str(tmp_path / "a.csv"), 130.0)
    # Picasso leaves out the half pixel between the conventions; its positions are ours shifted.
    order = np.argsort(table["frame"], kind="stable")
    by_x = np.argsort(locs["x"].to_numpy())
    np.testing.assert_allclose(locs["x"].to_numpy()[by_x], np.sort(table["x"]) + 0.5, atol=1e-5)
    assert sorted(locs["frame"]) == table["frame"][order].tolist()


def test_thunderstorm_refuses(tmp_path):
    path = tmp_path / "a.csv"
    cases = {
        "a,b\n1,2\n": "has columns",
        "": "has columns",
        "frame,x [nm],y [nm]\n1,2\n": "no table of numbers",
        "frame,x [nm],y [nm]\n1,2,three\n": "no table of numbers",
        "frame,x [nm],y [nm]\n0,2,3\n": "counts frames from 1",
    }
    for content, message in cases.items():
        path.write_text(content)
        with pytest.raises(data.DataError, match=message):
            data.read_thunderstorm(path, 0.1)
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(data.DataError, match="no text file"):
        data.read_thunderstorm(path, 0.1)
    with pytest.raises(data.DataError, match="no such file"):
        data.read_thunderstorm(tmp_path / "b.csv", 0.1)
    for size in (0, -1, None, np.nan):
        with pytest.raises(ValueError, match="size of a pixel in µm"):
            data.write_thunderstorm(path, rows(1), size)


def test_table_refuses_unequal_columns():
    with pytest.raises(ValueError, match="expected one length"):
        data.table(frame=[0, 1], x=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="expected one length"):
        data.table(frame=np.zeros((2, 2)))
