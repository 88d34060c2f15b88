"""A long TIFF is opened without a look at each page, and only where that is safe; tifffile is the oracle."""

import numpy as np
import pytest
import tifffile

from smlmcore import data
from smlmcore.data.pages import even

FRAMES = np.random.default_rng(0).integers(0, 4000, (9, 5, 6), np.uint16)


def write(path, **options):
    tifffile.imwrite(path, FRAMES, photometric="minisblack", **{"ome": True, "metadata": {"axes": "TYX"}} | options)
    return path


def found(path):
    with tifffile.TiffFile(path) as tif:
        return even(tif)


def second_directory(path):
    """Where the directories begin, their distance, and where in one of them the image's place is told."""
    with tifffile.TiffFile(path) as tif:
        second, third = tif.pages[1], tif.pages[2]
        return second.offset, third.offset - second.offset, second.tags["StripOffsets"].valueoffset - second.offset


@pytest.mark.parametrize(
    "options", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"ome": False, "metadata": None}, {"resolution": (3, 3)}]
)
def test_even_pages_are_seen(tmp_path, options):
    path = write(tmp_path / "m.tif", **options)
    with tifffile.TiffFile(path) as tif:
        shape, _, begin = even(tif)
        assert begin == tif.series[0].dataoffset
    assert tuple(n for n in shape if n > 1) == FRAMES.shape
    with data.open_movie(path) as movie:
        assert np.array_equal(movie.read(), FRAMES)
        assert np.array_equal(movie.read(3, 5), FRAMES[3:5])


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"},
        {"rowsperstrip": 2},
        {"imagej": True, "ome": False},
        {"ome": False},  # tifffile's own kind, of which it reads one page only
        {"metadata": {"axes": "TYX", "TiffData": {"IFD": 1}}},
    ],
)
def test_all_else_is_left_to_tifffile(tmp_path, options):
    path = write(tmp_path / "m.tif", **options)
    if "TiffData" not in options.get("metadata", {}):
        assert found(path) is None
    with data.open_movie(path) as movie:
        assert np.array_equal(movie.read(), tifffile.imread(path))


def test_planes_in_another_order_are_left_to_tifffile(tmp_path):
    path = write(tmp_path / "m.tif")
    begin, step, place = second_directory(path)
    content = bytearray(path.read_bytes())
    fourth, fifth = (slice(begin + k * step + place, begin + k * step + place + 4) for k in (3, 4))
    content[fourth], content[fifth] = content[fifth], content[fourth]
    path.write_bytes(content)
    assert found(path) is None
    swapped = FRAMES[[0, 1, 2, 3, 5, 4, 6, 7, 8]]
    with data.open_movie(path) as movie:
        assert np.array_equal(movie.read(), swapped)


def test_several_images_or_files_are_left_to_tifffile(tmp_path):
    path = tmp_path / "m.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(FRAMES, metadata={"axes": "TYX"})
        tif.write(FRAMES, metadata={"axes": "TYX"})
    assert found(path) is None
    assert "2 series" in data.open_movie(path).warnings[0]


def test_a_file_of_two_pages_is_no_matter(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", FRAMES[:2], ome=True, metadata={"axes": "TYX"})
    assert found(tmp_path / "m.tif") is None
    assert data.open_movie(tmp_path / "m.tif").shape == (2, 5, 6)


@pytest.mark.parametrize("page", [1, 4, 8])
def test_no_damaged_byte_is_overlooked(tmp_path, page):
    """Whatever byte of a directory is damaged: pages are taken for even only where tifffile reads the same."""
    path = write(tmp_path / "m.tif")
    whole, size = path.read_bytes(), FRAMES[0].nbytes
    begin, step, _ = second_directory(path)
    first = begin + (page - 1) * step
    seen = 0
    for at in range(first, min(first + step, len(whole))):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with tifffile.TiffFile(path) as tif:
            result = even(tif)
        if result is None:
            seen += 1
            continue
        with tifffile.TiffFile(path) as tif:
            pages = list(tif.pages)
        assert len(pages) == len(FRAMES)
        assert [p.dataoffsets[0] for p in pages] == [result[2] + k * size for k in range(len(pages))]
        assert {(p.shape, p.dtype, p.compression) for p in pages} == {((5, 6), np.dtype("u2"), 1)}
    assert seen > step / 2


def test_a_truncated_file_is_an_error(tmp_path):
    path = write(tmp_path / "m.tif")
    whole = path.read_bytes()
    begin, step, _ = second_directory(path)
    for end in (begin - 1, begin + 3, begin + step, begin + 5 * step - 7, begin + 7 * step + 5):
        path.write_bytes(whole[:end])
        with pytest.raises(data.DataError, match=r"truncated"):
            data.open_movie(path)
