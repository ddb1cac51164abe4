"""What an asset is: a few files with known digests, and the places that have them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headstart.assets.intake import AssetFile, Intake


class Source(Protocol):
    """A place that files of an asset can be fetched from."""

    @property
    def label(self) -> str:
        """What the source is called in messages."""

    def fetch(self, files: Sequence[AssetFile], intake: Intake) -> None:
        """Deliver these files to the intake, or as many of them as it has.

        Raises:
            SourceError: With the reason, in one line, why not all were delivered.
        """


@dataclass(frozen=True)
class InstalledPackage:
    """A folder inside an installed Python package, used in place."""

    module: str
    """Name of the top-level module."""
    folder: str = "."
    """Folder inside the module that holds the files."""

    def locate(self) -> Path | None:
        """The folder, found without importing the package; None if it is not installed."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(next(iter(spec.submodule_search_locations)), self.folder)


@dataclass(frozen=True)
class Asset:
    """The weights of one model."""

    name: str
    purpose: str
    """What the model does, in a few words."""
    licence: str
    """SPDX identifier."""
    files: tuple[AssetFile, ...]
    packages: tuple[InstalledPackage, ...] = ()
    """Installed packages that may hold all the files."""
    sources: tuple[Source, ...] = ()
    """Where missing files are fetched from, in order of preference."""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    @property
    def variable(self) -> str:
        """The environment variable that names a folder to use instead."""
        return "HEADSTART_ASSET_" + re.sub(r"[^A-Z0-9]+", "_", self.name.upper())
