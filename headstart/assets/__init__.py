"""Weights of models: which there are, whether they are here, and fetching them.

`path` is what engines call. It is quick and never touches the network; only `pull` does.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from headstart.assets.asset import Asset, InstalledPackage
from headstart.assets.cache import Cache, Location, Progress
from headstart.assets.catalogue import ASSETS
from headstart.assets.intake import AssetFile
from headstart.errors import UsageError

__all__ = [
    "ASSETS",
    "Asset",
    "AssetFile",
    "Cache",
    "InstalledPackage",
    "Location",
    "Progress",
    "cache",
    "find",
    "known",
    "path",
    "pull",
]


def cache() -> Cache:
    """The cache of this user: `HEADSTART_CACHE`, or the platform's place for caches."""
    folder = os.environ.get("HEADSTART_CACHE") or platformdirs.user_cache_path("headstart")
    return Cache(Path(folder).expanduser())


def known(name: str) -> Asset:
    """The asset of this name.

    Raises:
        UsageError: There is none.
    """
    try:
        return ASSETS[name]
    except KeyError:
        near = difflib.get_close_matches(name, ASSETS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(ASSETS)}"
        raise UsageError(f"there are no weights named {name!r}; {hint}") from None


def find(name: str) -> Path | None:
    """The folder that holds an asset's files; None if the asset is not here.

    Raises:
        UsageError: There is no asset of this name.
        AssetError: The environment names a folder for it that lacks a file.
    """
    location = cache().locate(known(name))
    return location.path if location else None


def path(name: str) -> Path:
    """The folder that holds an asset's files.

    Raises:
        UsageError: There is no asset of this name.
        AssetError: The asset is not here; the message says how to fetch it.
    """
    return cache().require(known(name)).path


def pull(names: Sequence[str], *, progress: Progress | None = None) -> None:
    """Fetch the assets that are not here, verify them, and put them into the cache.

    Raises:
        UsageError: There is no asset of one of these names.
        AssetError: Something could not be fetched, and why from each source.
    """
    cache().pull([known(name) for name in names], progress)
