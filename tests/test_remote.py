"""Movies on a server, by byte ranges: a server on this machine that serves them, does not, or breaks off."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tifffile

from smlmcore import data
from smlmcore.camera import Camera
from smlmcore.cli import main
from smlmcore.data import remote
from smlmcore.psf import Gaussian2D

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


class Server(ThreadingHTTPServer):
    """Serves `files` by name; `ranges`: does as it is asked; `failures`: so many ranges break off first."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.ranges, self.failures, self.tag, self.asked, self.sent = {}, True, 0, "one", [], 0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def address(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def log_message(self, *_):
        pass

    def head(self, status, size, more=()):
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", f'"{self.server.tag}"')
        self.send_header("Accept-Ranges", "bytes" if self.server.ranges else "none")
        for name, value in more:
            self.send_header(name, value)
        self.end_headers()

    def content(self):
        found = self.server.files.get(self.path.lstrip("/"))
        if found is None:
            self.send_error(404)
        return found

    def do_HEAD(self):
        if (content := self.content()) is not None:
            self.head(200, len(content))

    def do_GET(self):
        if (content := self.content()) is None:
            return
        asked = self.headers.get("Range")
        if not asked or not self.server.ranges:
            self.head(200, len(content))
            self.wfile.write(content)
            return
        first, last = asked.removeprefix("bytes=").split("-")
        first, end = int(first), min(int(last) + 1 if last else len(content), len(content))
        self.server.asked.append((first, end))
        self.head(206, end - first, [("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")])
        part = content[first:end]
        if self.server.failures > 0:  # half of it, and the line is dead
            self.server.failures -= 1
            part, self.close_connection = part[: len(part) // 2], True
        self.wfile.write(part)
        self.server.sent += len(part)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    s = Server()
    yield s
    s.shutdown()
    s.server_close()


CAMERA = Camera(offset=100.0, gain=0.5, read_noise=1.0, pixel_size=0.1)


@pytest.fixture
def movie(server, tmp_path):
    """Frames, and the address of a file of them that this library has written."""
    frames = np.random.default_rng(0).integers(90, 4000, (300, 32, 40)).astype(np.uint16)
    data.write_tiff(tmp_path / "m.tif", [frames], frames.shape, np.uint16, CAMERA)
    server.files["m.tif"] = (tmp_path / "m.tif").read_bytes()
    return frames, server.address("m.tif")


def test_only_what_is_asked_for_comes_over_the_net(server, movie):
    frames, url = movie
    with data.open_movie(url) as remote_movie:
        assert remote_movie.shape == frames.shape
        assert remote_movie.dtype == np.uint16
        assert remote_movie.camera == pytest.approx(vars_of(CAMERA))
        assert server.sent < 0.8 * frames.nbytes  # its structure
        before, server.sent = len(server.asked), 0
        part = remote_movie.read(40, 47)
        assert np.array_equal(part, frames[40:47])
        assert part.flags.writeable
        assert len(server.asked) == before + 1
        assert server.sent == frames[:7].nbytes
        assert np.array_equal(np.concatenate([c for _, c in remote_movie.chunks(64)]), frames)
        assert remote_movie.read(5, 5).shape == (0, 32, 40)


def vars_of(camera):
    return {name: getattr(camera, name) for name in ("offset", "gain", "read_noise", "pixel_size")}


@pytest.mark.parametrize(
    "options",
    [{"compression": "zlib"}, {"byteorder": ">"}, {"imagej": True, "metadata": {"axes": "TYX"}}, {"bigtiff": True}],
)
def test_tiff_of_other_kinds(server, movie, options, tmp_path):
    frames = movie[0][:9]
    tifffile.imwrite(tmp_path / "o.tif", frames, photometric="minisblack", **options)
    server.files["o.tif"] = (tmp_path / "o.tif").read_bytes()
    with data.open_movie(server.address("o.tif")) as remote_movie:
        assert np.array_equal(remote_movie.read(2, 8), frames[2:8])
        assert np.array_equal(remote_movie.read(), frames)


def test_a_server_without_ranges_is_refused(server, movie):
    server.ranges = False
    with pytest.raises(data.DataError, match=r"m\.tif: .*no byte ranges; copy the file"):
        data.open_movie(movie[1])


def test_a_server_that_promises_ranges_and_sends_all_is_refused(server, movie, monkeypatch):
    def all_of_it(self):
        self.head(200, len(self.content()))
        self.wfile.write(self.content())

    server.files["m.tif"] += bytes(300_000)  # more than a block
    monkeypatch.setattr(Handler, "do_GET", all_of_it)
    with pytest.raises(data.DataError, match=r"m\.tif: the server sends no byte ranges; copy the file"):
        data.open_movie(movie[1])


def test_a_line_that_breaks_off_is_tried_again(server, movie):
    frames, url = movie
    with data.open_movie(url) as remote_movie:
        server.failures = 2
        assert np.array_equal(remote_movie.read(10, 20), frames[10:20])
        server.failures = 9
        with pytest.raises(data.DataError, match=r"m\.tif: the connection failed three times \(.+\); start again"):
            remote_movie.read(10, 20)
    server.failures = 9
    with pytest.raises(data.DataError, match="the connection failed"):
        data.open_movie(url)


def test_a_line_that_breaks_off_within_the_structure_or_a_page(server, tmp_path):
    frames = np.random.default_rng(0).integers(0, 60_000, (200, 40, 50)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", frames, compression="zlib", photometric="minisblack")
    server.files["p.tif"] = (tmp_path / "p.tif").read_bytes()
    plain = remote.open_tiff

    def breaking(*given):
        server.failures = failures
        return plain(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "open_tiff", breaking)
        patch.setattr(remote, "BLOCK", 4096)
        failures = 9
        with pytest.raises(data.DataError, match="the connection failed"):
            data.open_movie(server.address("p.tif"))
        server.failures, failures = 0, 2
        with data.open_movie(server.address("p.tif")) as movie:
            assert np.array_equal(movie.read(20, 25), frames[20:25])
            server.failures = 9
            with pytest.raises(data.DataError, match="the connection failed"):
                movie.read(150, 155)
            server.failures = 0
            assert np.array_equal(movie.read(150, 155), frames[150:155])


def test_what_is_not_there_or_no_movie(server, movie):
    with pytest.raises(data.DataError, match=r"none\.tif: no such file; check the address"):
        data.open_movie(server.address("none.tif"))
    server.files |= {"empty.tif": b"", "text.tif": b"no movie at all", "half.tif": server.files["m.tif"][:40_000]}
    for name, message in (
        ("empty", "is empty"),
        ("text", "damaged|truncated|neither"),
        ("half", "truncated or damaged"),
    ):
        with pytest.raises(data.DataError, match=message):
            data.open_movie(server.address(f"{name}.tif"))
    with pytest.raises(data.DataError, match="smlmcore"):
        data.open_movie("nonsense://server/m.tif")
    gone = Server()
    gone.shutdown()
    gone.server_close()
    with pytest.raises(data.DataError, match="the connection failed three times"):
        data.open_movie(gone.address("m.tif"))


def test_a_file_that_changes_is_another(server, movie, tmp_path):
    _, url = movie
    before = remote.version(url)
    assert remote.version(url) == before
    assert before[0] == len(server.files["m.tif"])
    server.tag = "two"
    assert remote.version(url) != before
    here = tmp_path / "m.tif"
    assert remote.version(here) == (here.stat().st_size, here.stat().st_mtime_ns)
    assert remote.whereabouts(here) == str(here)
    assert remote.whereabouts(url) == url


def test_localized_as_from_the_disk(server, tmp_path, capsys, monkeypatch):
    """The command with an address gives the table that the file gives, and can be repeated."""
    monkeypatch.chdir(tmp_path)
    spots = {"x": [9.3, 22.1], "y": [7.6, 20.4], "photons": [3000.0, 2500.0], "sigma": [1.3, 1.3], "background": 5.0}
    mean = Gaussian2D().render(
        {k: np.broadcast_to(v, (40, 2) if k != "background" else 40) for k, v in spots.items()}, (28, 32)
    )
    counts = CAMERA.expose(mean, np.random.default_rng(1))
    data.write_tiff(tmp_path / "s.tif", [counts], counts.shape, np.uint16, CAMERA)
    server.files["s.tif"] = (tmp_path / "s.tif").read_bytes()
    url = server.address("s.tif")
    assert main(["info", url]) == 0
    assert "40 of 28 x 32" in capsys.readouterr().out
    assert main(["localize", "s.tif", "--out", "here", "--method", "fit", "--quiet"]) == 0
    assert main(["localize", url, "--method", "fit", "--quiet"]) == 0  # into a folder of that name
    assert main(["localize", "--settings", "s.localize/settings.yaml", "--out", "again", "--quiet"]) == 0
    one, *others = (data.read_picasso(f"{name}/localizations.hdf5")[0] for name in ("here", "s.localize", "again"))
    assert len(one) == 80
    assert all(one.tobytes() == other.tobytes() for other in others)
    assert json.loads((tmp_path / "s.localize/report.json").read_text())["movie"]["files"] == ["s.tif"]
    server.ranges = False
    assert main(["localize", url, "--out", "no", "--quiet"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "no byte ranges" in told
