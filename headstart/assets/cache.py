"""The weights of this machine: finding, fetching and verifying them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headstart.assets.asset import Asset
from headstart.assets.intake import AssetFile, Intake, SourceError
from headstart.errors import AssetError


class Progress(Protocol):
    """Told how a pull goes on."""

    def __call__(self, name: str, done_bytes: int, total_bytes: int) -> None:
        """So much of this asset has arrived."""


@dataclass(frozen=True)
class Location:
    """Where an asset lies."""

    path: Path
    """The folder that holds its files."""
    origin: str
    """`cache`, `package X`, or the environment variable that names the folder."""


class Cache:
    """A folder with one subfolder an asset, and what lies elsewhere on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def locate(self, asset: Asset) -> Location | None:
        """Where the asset lies; None if it is not complete anywhere.

        Looks at names and sizes only, and never at the network.

        Raises:
            AssetError: The environment names a folder that lacks a file.
        """
        if explicit := os.environ.get(asset.variable):
            # Other files of the same names may be meant (say, a model tuned further), so that
            # their sizes are not compared.
            for file in asset.files:
                if not Path(explicit, file.name).is_file():
                    raise AssetError(f"{asset.variable}: there is no {file.name} in {explicit}")
            return Location(Path(explicit), asset.variable)
        own = self.root / asset.name
        if all(file.is_at(own / file.name) for file in asset.files):
            return Location(own, "cache")
        for package in asset.packages:
            folder = package.locate()
            if folder and all(file.is_at(folder / file.name) for file in asset.files):
                return Location(folder, f"package {package.module}")
        return None

    def damaged(self, asset: Asset) -> list[AssetFile]:
        """Files of an asset whose content is not the expected one. Reads every byte.

        Raises:
            AssetError: The asset is not here.
        """
        location = self.require(asset)
        return [file for file in asset.files if not file.is_intact_at(location.path / file.name)]

    def require(self, asset: Asset) -> Location:
        """Where the asset lies.

        Raises:
            AssetError: It is not here.
        """
        location = self.locate(asset)
        if location is None:
            raise AssetError(
                f"the weights {asset.name} ({asset.purpose}) are not here; "
                f"fetch them with: headstart models pull {asset.name}"
            )
        return location

    def pull(self, assets: Sequence[Asset], progress: Progress | None = None) -> None:
        """Fetch what is missing or damaged; does nothing for what is here and intact.

        Every asset is tried, even if one fails before it.

        Raises:
            AssetError: Something could not be fetched: what, which sources were tried, why each
                failed, and what to do.
        """
        unreachable: set[str] = set()
        failures = []
        for asset in assets:
            try:
                self._pull(asset, progress, unreachable)
            except AssetError as error:
                failures.append(str(error))
        if failures:
            raise AssetError("\n".join(failures))

    def _pull(self, asset: Asset, progress: Progress | None, unreachable: set[str]) -> None:
        location = self.locate(asset)
        if location and location.origin == asset.variable:
            return
        own = self.root / asset.name
        missing = [file for file in asset.files if not file.is_intact_at(own / file.name)]
        if not missing:
            return
        for file in missing:
            # A damaged file has the right size, so that `locate` would go on finding it, and
            # before an intact one of a package, if nothing can be fetched now.
            with suppress(OSError):
                (own / file.name).unlink()
        if self.locate(asset) and not self.damaged(asset):
            return
        total = sum(file.size for file in missing)

        most_bytes = 0

        def report(done_bytes: int) -> None:
            # An archive may be larger than what is taken out of it, and is counted first.
            nonlocal most_bytes
            most_bytes = max(most_bytes, min(done_bytes, total))
            if progress is not None:
                progress(asset.name, most_bytes, total)

        report(0)
        intake = Intake(own, self.root / ".partial", report, unreachable)
        reasons = []
        for source in asset.sources:
            try:
                source.fetch(missing, intake)
            except (SourceError, OSError) as error:
                reasons.append(f"  {source.label}: {error}")
            missing = [file for file in missing if not file.is_intact_at(own / file.name)]
            if not missing:
                return
        names = ", ".join(file.name for file in asset.files[:4]) + ", …" * (len(asset.files) > 4)
        raise AssetError(
            "\n".join(
                [
                    f"could not fetch the weights {asset.name} ({asset.purpose}):",
                    *reasons,
                    f"  Try again with: headstart models pull {asset.name}",
                    f"  Or set {asset.variable} to a folder that holds {names}",
                ]
            )
        )
