"""The command line: a contract that others script against (names, exit codes, JSON keys)."""

from __future__ import annotations

import os
import signal
import sys

from headstart.cli.streams import Streams

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the `headstart` command and exit with its code.

    0 done, 1 failed while running, 2 bad usage or bad config, 130 interrupted.
    """
    streams = Streams()
    try:
        code = _run()
    except KeyboardInterrupt:
        # May come at any import, before anything of ours runs.
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    # All is done but for the end itself.
    signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    if (failure := streams.failure()) is not None:
        print(f"headstart: {failure}", file=sys.stderr)
        code = code or EXIT_FAILED
    # Models compute in threads that cannot be stopped; nobody waits for them any more.
    if (hub := sys.modules.get("headstart.engines.hub")) is not None:
        hub.shared.close()
    os._exit(code)


def _run() -> int:
    from loguru import logger

    from headstart.cli.app import app
    from headstart.errors import ConfigError, HeadstartError
    from headstart.logging import set_up_logging

    set_up_logging()
    try:
        app()
    except SystemExit as ended:  # how typer ends, having said why
        return ended.code if isinstance(ended.code, int) else 0
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except HeadstartError as error:
        print(f"headstart: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a folder that cannot be written, a disk that is full
        logger.opt(exception=error).debug("ended by")
        what = f"{error.filename}: " if error.filename else ""
        print(f"headstart: {what}{error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED
    return 0
