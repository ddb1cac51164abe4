"""The voices of Kokoro: their names, what language each speaks, and their style vectors."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.errors import EngineError, UsageError

_ROWS, _STYLE = 510, 256


class Voices:
    """The voice files of a folder, read when first spoken with."""

    def __init__(self, folder: Path) -> None:
        """List the folder's voices.

        Args:
            folder: Holds a `NAME.bin` for every voice: float32, one style vector of 256
                values for every number of phonemes up to 509.

        Raises:
            EngineError: There is no voice in the folder.
        """
        self._files = {file.stem: file for file in sorted(folder.glob("*.bin"))}
        if not self._files:
            raise EngineError(f"no Kokoro voice (NAME.bin) in {folder}")
        self._read: dict[str, NDArray[np.float32]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All voices, alphabetically."""
        return tuple(self._files)

    def check(self, name: object) -> None:
        """Make sure that there is such a voice.

        Raises:
            UsageError: There is none; the text names the nearest.
        """
        if not isinstance(name, str) or name not in self._files:
            near = difflib.get_close_matches(str(name).lower(), self._files, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are {self._spread()}"
            raise UsageError(f"Kokoro has no voice {name!r}; {hint}")

    def style(self, name: str, phonemes: int) -> NDArray[np.float32]:
        """The style vector, shape (1, 256), for a clause of so many phonemes.

        Raises:
            UsageError: There is no such voice.
            EngineError: The voice's file is damaged.
        """
        self.check(name)
        if name not in self._read:
            styles = np.fromfile(self._files[name], np.float32)
            if styles.size != _ROWS * _STYLE:
                raise EngineError(f"the voice file {self._files[name]} is damaged")
            self._read[name] = styles.reshape(_ROWS, 1, _STYLE)
        row: NDArray[np.float32] = self._read[name][min(phonemes, _ROWS - 1)]
        return row

    def _spread(self) -> str:
        """One voice of every language and sex, as examples."""
        return ", ".join({name[:2]: name for name in reversed(self.names)}.values())
