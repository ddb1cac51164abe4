"""What a process of Headstart logs, and where."""

from __future__ import annotations

import os
import sys
import warnings

from loguru import logger


def set_up_logging() -> None:
    """Warnings, errors and what was decided for good, unless HEADSTART_LOG names another level."""
    level = os.environ.get("HEADSTART_LOG", "SUCCESS").upper()
    logger.remove()
    try:
        logger.add(sys.stderr, level=level, format="<level>{level: <8}</level> {name}: {message}")
    except ValueError:
        logger.add(sys.stderr, level="SUCCESS")
        logger.warning(f"HEADSTART_LOG={level} is no level; try DEBUG, INFO, WARNING or ERROR")
    if level not in ("DEBUG", "TRACE") and not sys.warnoptions:
        warnings.simplefilter("ignore")  # those of the libraries below us are not the user's
