"""Movies in every kind of file: the same frames, and one clear error for what is broken."""

from __future__ import annotations

import io
import json
import struct
import zipfile

import h5py
import numpy as np
import pytest
import tifffile

from smlmcore import data
from smlmcore.cli import main


@pytest.fixture
def movie():
    return np.random.default_rng(0).integers(0, 4095, (7, 9, 12)).astype(np.uint16)


def write_npy(path, movie):
    np.save(path, movie)


def write_npz(path, movie):
    np.savez(path, small=np.zeros(3), movie=movie)


def write_packed_npz(path, movie):
    np.savez_compressed(path, movie=movie)


def write_zip(path, movie):
    with zipfile.ZipFile(path, "w") as archive:
        for i, frame in enumerate(movie):
            archive.writestr(f"images/f{i + 5}.tif", tiff(frame))  # f10 after f9


def tiff(frame):
    content = io.BytesIO()
    tifffile.imwrite(content, frame)
    return content.getvalue()


def write_hdf5(path, movie):
    with h5py.File(path, "w") as file:
        file["meta/times"] = np.zeros(3)
        file.create_dataset("entry/data", data=movie, chunks=(2, 9, 12), compression="gzip")


def write_zarr(path, movie):
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(path), data=movie, chunks=(3, 9, 12))


def write_dax(path, movie):
    path.write_bytes(movie.astype(">u2").tobytes())
    text = (
        f"frame dimensions = {movie.shape[2]} x {movie.shape[1]}\nnumber of frames = {len(movie)}\ndata type = 16 bit "
    )
    path.with_suffix(".inf").write_text(text + "integers (binary, big endian)\n")


def write_ndtiff(path, movie, **axes):
    """The index as Micro-Manager writes it, and the pixels behind some other bytes."""
    path.mkdir()
    with open(path / "a_NDTiffStack.tif", "wb") as pixels, open(path / "NDTiff.index", "wb") as index:
        pixels.write(b"II*\0" + bytes(28))
        for i in np.random.default_rng(1).permutation(len(movie)):
            where, name = json.dumps({"time": int(i), **axes}).encode(), b"a_NDTiffStack.tif"
            index.write(struct.pack("<I", len(where)) + where + struct.pack("<I", len(name)) + name)
            index.write(struct.pack("<8I", pixels.tell(), movie.shape[2], movie.shape[1], 1, 0, 0, 0, 0))
            pixels.write(movie[i].tobytes())


WRITERS = {
    "m.npy": write_npy, "m.npz": write_npz, "packed.npz": write_packed_npz, "m.zip": write_zip, "m.h5": write_hdf5,
    "m.zarr": write_zarr, "m.dax": write_dax, "m_1": write_ndtiff,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file(tmp_path, movie, name):
    path = tmp_path / name
    WRITERS[name](path, movie)
    with data.open_movie(path) as opened:
        assert (opened.shape, opened.dtype) == (movie.shape, movie.dtype)
        assert np.array_equal(opened.read(), movie)
        assert np.array_equal(opened.read(4, 6), movie[4:6])
        assert np.array_equal(opened.read(1, 2), movie[1:2])  # backwards as well
        assert np.array_equal(np.concatenate([c for _, c in opened.chunks(3)]), movie)
        assert opened.warnings == ()
    assert main(["info", str(path)]) == 0


@pytest.mark.parametrize("name", [n for n in WRITERS if n not in ("m.zarr", "m_1")])
def test_truncated_files_are_one_clear_error(tmp_path, movie, name, capsys):
    path = tmp_path / name
    WRITERS[name](path, movie)
    content = path.read_bytes()
    for size in (0, 3, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(data.DataError, match=name):
            data.open_movie(path).read()
        assert main(["info", str(path)]) == 2 or size >= len(content) // 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("series", ["", "0"])  # the latter as bioformats2raw nests them
def test_ome_zarr(tmp_path, movie, version, series):
    """(t, c, z, y, x) in several sizes, and its pixel size."""
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(tmp_path / "m.zarr", mode="w", zarr_format=2 if version == "0.4" else 3)
    image = root.create_group(series) if series else root
    for level, step in enumerate((1, 2)):
        pixels = movie[:, None, None, ::step, ::step]
        image.create_array(str(level), data=pixels, chunks=(2, 1, 1, *pixels.shape[-2:]))
    space = [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"]
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, *space]
    scales = [[{"type": "scale", "scale": [1, 1, 1, 106.7 * s, 106.7 * s]}] for s in (1, 2)]
    levels = [{"path": str(k), "coordinateTransformations": c} for k, c in enumerate(scales)]
    ome = {"multiscales": [{"axes": axes, "datasets": levels, "version": version}]}
    image.attrs.update(ome if version == "0.4" else {"ome": {**ome, "version": version}})
    with data.open_movie(tmp_path / "m.zarr") as opened:
        assert opened.shape == movie.shape
        assert np.array_equal(opened.read(2, 5), movie[2:5])
        assert opened.camera == {"pixel_size": pytest.approx(0.1067)}
    del axes[-1]["unit"]
    image.attrs.update(ome if version == "0.4" else {"ome": ome})
    assert data.open_movie(tmp_path / "m.zarr").camera == {}
    image.create_array("2", data=np.zeros((2, 3, 1, 40, 40), np.uint16))  # channels: another array is taken
    assert data.open_movie(tmp_path / "m.zarr").shape == movie.shape


def test_foreign_shapes_and_kinds(tmp_path, movie):
    cases = {
        "rgb.npy": np.zeros((9, 12, 3), np.uint8), "deep.npy": np.zeros((2, 3, 9, 12)), "line.npy": np.zeros(9),
        "complex.npy": np.zeros((2, 9, 12), complex), "text.npy": np.array(["a", "b"]),
    }  # fmt: skip
    for name, array in cases.items():
        np.save(tmp_path / name, array)
        with pytest.raises(data.DataError, match=name):
            data.open_movie(tmp_path / name)
    np.savez(tmp_path / "f.npz", movie=np.asfortranarray(movie))
    with pytest.raises(data.DataError, match="Fortran"):
        data.open_movie(tmp_path / "f.npz")
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["a"] = np.zeros(5)
    with pytest.raises(data.DataError, match="expected one array"):
        data.open_movie(tmp_path / "none.h5")
    (tmp_path / "folder").mkdir()
    with pytest.raises(data.DataError, match="neither NDTiff nor Zarr"):
        data.open_movie(tmp_path / "folder")
    np.save(tmp_path / "one.npy", movie[0])
    assert np.array_equal(data.open_movie(tmp_path / "one.npy").read(), movie[:1])


def test_metadata_that_lacks_or_lies(tmp_path, movie):
    path = tmp_path / "m.dax"
    write_dax(path, movie)
    sidecar = path.with_suffix(".inf")
    text = sidecar.read_text()
    sidecar.write_text(text.replace("frames = 7", "frames = 9"))
    opened = data.open_movie(path)
    assert opened.shape == (7, 9, 12)
    assert "says 9; 7 used" in opened.warnings[0]
    sidecar.write_text(text.replace("big", "little"))
    assert np.array_equal(data.open_movie(path).read(), movie.byteswap())  # as it says
    sidecar.write_text("nothing")
    with pytest.raises(data.DataError, match="lacks"):
        data.open_movie(path)
    sidecar.unlink()
    with pytest.raises(data.DataError, match=r"needs m\.inf"):
        data.open_movie(path)
    write_ndtiff(tmp_path / "two", movie)
    (tmp_path / "two" / "a_NDTiffStack.tif").write_bytes(b"II*\0")
    with pytest.raises(data.DataError, match="missing or truncated"):
        data.open_movie(tmp_path / "two").read()


def test_a_zip_of_unequal_images(tmp_path, movie):
    write_zip(tmp_path / "m.zip", movie)
    with zipfile.ZipFile(tmp_path / "m.zip", "a") as archive:
        archive.writestr("images/f99.tif", tiff(movie[0, :5]))
    with pytest.raises(data.DataError, match="one size and kind"):
        data.open_movie(tmp_path / "m.zip").read()


@pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd"])
def test_compressed_tiff(tmp_path, movie, compression):
    if compression != "zlib":
        pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "m.tif", movie, compression=compression)
    assert np.array_equal(data.open_movie(tmp_path / "m.tif").read(), movie)


def test_twelve_bits_packed_and_big_endian(tmp_path, movie):
    pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "be.tif", movie, byteorder=">")
    assert np.array_equal(data.open_movie(tmp_path / "be.tif").read(), movie)
    bits = ((movie[..., None] >> np.arange(11, -1, -1)) & 1).astype(np.uint8)
    packed = [np.packbits(frame.reshape(len(frame), -1), axis=1).tobytes() for frame in bits]  # rows begin at a byte
    write_packed_tiff(tmp_path / "p.tif", packed, movie.shape)
    assert np.array_equal(data.open_movie(tmp_path / "p.tif").read(), movie)


def write_packed_tiff(path, frames, shape):
    """A TIFF of 12 bits per sample by hand: header, then strip and directory of each frame."""
    out, link = bytearray(b"II*\0\0\0\0\0"), 4
    for content in frames:
        strip = len(out)
        out += content + b"\0" * (len(content) % 2)
        out[link : link + 4] = struct.pack("<I", len(out))
        tags = {
            256: shape[2],
            257: shape[1],
            258: 12,
            259: 1,
            262: 1,
            273: strip,
            277: 1,
            278: shape[1],
            279: len(content),
        }
        out += struct.pack("<H", len(tags))
        for tag, value in tags.items():
            out += struct.pack("<HHII", tag, 4, 1, value)
        link = len(out)
        out += b"\0\0\0\0"
    path.write_bytes(bytes(out))
