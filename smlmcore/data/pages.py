"""The pages of a long TIFF at a glance: are all alike, and do their images lie one after another in the file?

tifffile reads pages one by one, 15 µs each: a movie takes as long to open as to read.  But who writes movies frame by
frame leaves the directories of the pages (IFDs; TIFF 6.0, Adobe 1992) at equal distances behind the images, and alike
but for where their image lies, which can be seen by comparing all of them at once as rows of bytes.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import tifffile


def even(tif: tifffile.TiffFile) -> tuple[tuple[int, ...], str, int] | None:
    """Shape and axes of a file's one series of images, and where they begin; None for all that is not so simple.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     options = {"ome": True, "photometric": "minisblack", "metadata": {"axes": "TYX"}}
    ...     tifffile.imwrite(f"{folder}/a.tif", np.zeros((9, 3, 4), "u2"), **options)
    ...     with tifffile.TiffFile(f"{folder}/a.tif") as tif: even(tif)[:2]
    ((9, 3, 4), 'TYX')
    """
    try:
        pages = _pages(tif)
        special = any(getattr(tif, f"is_{kind}", False) for kind in tifffile.TIFF.FILE_FLAGS - {"ome", "uniform"})
    except Exception:  # fewer than three pages, or one of the many kinds that tifffile raises on damaged ones
        return None
    if pages is None or special:
        return None
    series = _ome_series(tif.ome_metadata, pages) if tif.is_ome else (pages, "IYX")
    return series and (*series, tif.pages[0].dataoffsets[0])


def _pages(tif: tifffile.TiffFile) -> tuple[int, int, int] | None:
    """How many pages, of (h, w) pixels."""
    first, second, third = (tif.pages[i] for i in range(3))
    simple = first.is_contiguous and len(first.dataoffsets) == first.samplesperpixel == 1 and not first.subifds
    if not simple or first.hash != second.hash:
        return None
    begin, size, step = first.dataoffsets[0], first.databytecounts[0], third.offset - second.offset
    number = (second.offset - begin) // max(size, 1)  # of images before the second directory
    count, entry, pointer = tif.tiff.tagnosize, tif.tiff.tagsize, tif.tiff.offsetsize  # bytes
    length = count + len(second.tags) * entry + pointer
    if number < 3 or step < length:
        return None
    held = np.fromfile(tif.filehandle.path, np.uint8, (number - 2) * step + length, offset=second.offset)
    if held.size < (number - 2) * step + length:
        return None
    directories = np.ndarray((number - 1, length), np.uint8, held, strides=(step, 1))

    def numbers(at: int, kind: str) -> np.ndarray:
        kind = np.dtype(tif.byteorder + kind)
        return np.ascontiguousarray(directories[:, at : at + kind.itemsize]).view(kind)[:, 0].astype(np.int64)

    own = np.zeros(length, bool)  # bytes in which directories may differ
    own[-pointer:] = True
    for tag in second.tags:
        value = tag.offset - second.offset + entry - pointer
        elsewhere = tag.valueoffset != tag.offset + entry - pointer  # the place of a value that is too long
        own[value : value + pointer] = elsewhere or tag.name == "StripOffsets"
    where = second.tags.get("StripOffsets")
    kind = where and {3: "u2", 4: "u4", 16: "u8"}.get(where.dtype)
    if kind is None or (directories != directories[0]).any(0)[~own].any():
        return None
    place, following = numbers(where.valueoffset - second.offset, kind), numbers(length - pointer, f"u{pointer}")
    index = np.arange(1, number)
    regular = (place == begin + index * size).all() and (following[:-1] == second.offset + index[:-1] * step).all()
    return (number, *first.shape) if regular and following[-1] == 0 else None


def _ome_series(text: str, pages: tuple[int, int, int]) -> tuple[tuple[int, ...], str] | None:
    """Shape and axes that OME-XML tells, if all `pages`, in their order, are the planes of a single image."""
    try:
        root = ElementTree.fromstring(text)
        (pixels,) = root.findall("./{*}Image/{*}Pixels")
        (data,) = pixels.findall("{*}TiffData")
        axes = pixels.attrib["DimensionOrder"][::-1]
        shape = tuple(int(pixels.attrib[f"Size{axis}"]) for axis in axes)
    except (ElementTree.ParseError, ValueError, KeyError):
        return None
    planes = data.attrib.get("PlaneCount", data.attrib.get("NumPlanes"))
    plain = (
        not len(data)
        and planes == str(pages[0])
        and not any(int(value) for name, value in data.attrib.items() if name == "IFD" or name.startswith("First"))
    )
    modulo = any(e.attrib.get("Namespace", "").endswith("modulo") for e in root.iter())
    fits = shape[-2:] == pages[1:] and math.prod(shape) == math.prod(pages)
    if not plain or modulo or not fits:
        return None
    long = [(n, axis) for n, axis in zip(shape, axes, strict=True) if n > 1 or axis in "YX"]  # as tifffile does
    return tuple(n for n, _ in long), "".join(axis for _, axis in long)
