"""Runs the fit: `python -m headstart.engines.kokoro.fit OUT.npz 120`."""

from __future__ import annotations

import sys
from pathlib import Path

from headstart.engines.kokoro.fit.fitting import main

if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 40)
