"""Tables in and out of every format: a bead at a known place, round trips, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from smlmcore import data
from smlmcore.data import Localizations
from smlmcore.data.localizations import FORMATS

SHARED = Path(os.environ.get("SMLMCORE_DATA", Path(__file__).parents[1] / "../shared/data"))
SUFFIX = {"picasso": "hdf5", "storm-analysis": "hdf5"}
# (first frame, x of the centre of the top-left pixel in units of a pixel, unit of x in pixels of 0.1 µm)
ORIGINS = {
    "picasso": (0, 0.0, 1), "storm-analysis": (0, 0.0, 1), "thunderstorm": (1, 0.5, 100), "challenge": (1, 0.5, 100),
    "smap": (1, 1.0, 100),
}  # fmt: skip


def some(n=40, **more):
    rng = np.random.default_rng(0)
    columns = {k: rng.uniform(1, 30, n) for k in ("x", "y", "photons", "background", "sigma_x")}
    rows = data.table(frame=np.sort(rng.integers(0, 5, n)), **columns, sigma_y=columns["sigma_x"] * 1.1, **more)
    return Localizations(rows, (5, 32, 40), 0.13)


def stored(path, form):
    """Frame and x of the first row as the file has them."""
    if form == "picasso":
        with h5py.File(path) as file:
            return file["locs"]["frame"][0], file["locs"]["x"][0]
    if form == "storm-analysis":
        with h5py.File(path) as file:
            return 0, file["fr_0/x"][0]
    names, values = (line.replace(chr(34), "").split(",") for line in path.read_text().splitlines()[:2])
    row = dict(zip(names, values, strict=True))
    x = next(row[k] for k in ("x [nm]", "xnano", "xnm") if k in row)
    return int(row["frame"]), float(x)


@pytest.mark.parametrize("form", FORMATS)
def test_a_bead_at_a_known_place(tmp_path, form):
    """On pixel (row 3, column 7) of the first frame."""
    path = tmp_path / f"a.{SUFFIX.get(form, 'csv')}"
    Localizations(data.table(frame=[0], x=[7.0], y=[3.0]), (1, 9, 9), 0.1).save(path, form)
    first, origin, unit = ORIGINS[form]
    assert stored(path, form) == (first, pytest.approx((7 + origin) * unit))
    back = Localizations.load(path, pixel_size=0.1)
    assert (back["frame"][0], back["x"][0], back["y"][0]) == (0, pytest.approx(7), pytest.approx(3))


@pytest.mark.parametrize("n", [0, 1, 40])
@pytest.mark.parametrize("form", FORMATS)
def test_round_trip(tmp_path, form, n):
    table = some(n, z=np.linspace(-0.5, 0.5, n), lpx=np.full(n, 0.1), lpy=np.full(n, 0.1))
    first, second = tmp_path / f"a.{SUFFIX.get(form, 'csv')}", tmp_path / f"b.{SUFFIX.get(form, 'csv')}"
    table.save(first, form)
    back = Localizations.load(first, pixel_size=0.13)
    assert len(back) == n
    kept = [k for k in table.names if k in back.names] if n else ["frame", "x", "y"]
    assert {"frame", "x", "y", "photons"} <= set(kept) or n == 0
    for name in kept:
        tolerance = 1e-6 if form == "picasso" else 1e-10
        np.testing.assert_allclose(
            back[name], table[name], rtol=tolerance, atol=1e-5 if form == "thunderstorm" else 1e-9, err_msg=name
        )
    if form in ("picasso", "storm-analysis"):
        assert back.shape == table.shape
        assert back.pixel_size == pytest.approx(0.13)
    back.shape = table.shape
    back.save(second, form)
    if n:  # what is read and written again is the same
        again = Localizations.load(second, pixel_size=0.13)
        assert back.rows.dtype == again.rows.dtype
        for name in back.names:
            np.testing.assert_allclose(again[name], back[name], rtol=1e-11, atol=1e-11, err_msg=name)


def test_picassos_own_table_read_written_read_is_identical(tmp_path):
    folder = SHARED / "movie_dna_paint"
    if not folder.is_dir():
        pytest.skip("needs movie_dna_paint of the shared data; set SMLMCORE_DATA")
    theirs = Localizations.load(folder / "testdata_locs.hdf5")
    theirs.save(tmp_path / "a.hdf5")
    ours = Localizations.load(tmp_path / "a.hdf5")
    assert ours.rows.dtype == theirs.rows.dtype
    assert np.array_equal(ours.rows, theirs.rows)
    assert (ours.shape, ours.pixel_size) == (theirs.shape, theirs.pixel_size)


def test_picasso_gets_the_same_coordinates(tmp_path):
    io = pytest.importorskip("picasso.io")
    table = some(lpx=0.1, lpy=0.1)
    table.save(tmp_path / "a.hdf5")
    locs, _ = io.load_locs(str(tmp_path / "a.hdf5"))
    for name in ("x", "y", "frame", "photons"):
        np.testing.assert_allclose(locs[name], table[name], rtol=1e-6)


def test_views():
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    table = some()
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert isinstance(table.to_arrow(), arrow.Table)
    for other in (frame, table.to_arrow(), {name: table[name] for name in table.names}):
        back = Localizations.from_columns(other, shape=table.shape, pixel_size=table.pixel_size)
        assert np.array_equal(back.rows, table.rows)
    assert len(table[table["frame"] == 2]) == (table["frame"] == 2).sum()
    assert len(table[3]) == 1


def test_a_file_of_smap_and_one_of_the_challenge(tmp_path):
    (tmp_path / "a.csv").write_text("frame,xnm,ynm,locprecnm,phot\n1,250,130,12,800\n")
    row = Localizations.load(tmp_path / "a.csv", pixel_size=0.1).rows[0]
    assert (row["x"], row["y"], row["lpx"], row["lpy"]) == pytest.approx((1.5, 0.3, 0.12, 0.12))
    text = "Ground-truth,frame,xnano,ynano,znano,intensity\n7,2,250,130,-300,800\n"
    (tmp_path / "b.csv").write_text(text)
    row = Localizations.load(tmp_path / "b.csv", pixel_size=0.1).rows[0]
    assert (row["frame"], row["x"], row["z"]) == pytest.approx((1, 2.0, -0.3))


def test_refusals(tmp_path):
    table, path = some(), tmp_path / "a.csv"
    with pytest.raises(ValueError, match="expected one of picasso"):
        table.save(path, "excel")
    with pytest.raises(ValueError, match="movie's shape"):
        Localizations(table.rows).save(tmp_path / "a.hdf5")
    with pytest.raises(ValueError, match="pixel_size"):
        Localizations(table.rows).save(path)
    with pytest.raises(ValueError, match="expected a table"):
        Localizations(np.zeros(3))
    with pytest.raises(ValueError, match="frame 4 in a movie of 2"):
        data.write_storm_analysis(tmp_path / "a.hdf5", table.rows, (2, 32, 40))
    with pytest.raises(data.DataError, match="no such file"):
        Localizations.load(path)
    table.save(path, "smap")
    with pytest.raises(data.DataError, match="is in nm; give pixel_size"):
        Localizations.load(path)
    with pytest.raises(data.DataError, match=r"has columns .* expected at least frame"):
        Localizations.load(path, "challenge", 0.1)
    path.write_text("frame,xnm,ynm\n0,1,2\n")
    with pytest.raises(data.DataError, match="frames from 1"):
        Localizations.load(path, pixel_size=0.1)
    path.write_bytes(b"\0\1\2")
    with pytest.raises(data.DataError, match="neither HDF5 nor CSV"):
        Localizations.load(path)
    (tmp_path / "b.hdf5").write_text("no")
    with pytest.raises(data.DataError, match="storm-analysis"):
        data.read_storm_analysis(tmp_path / "b.hdf5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "b.hdf5"]
