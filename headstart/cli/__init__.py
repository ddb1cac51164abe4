"""The command line: a contract that others script against (names, exit codes, JSON keys)."""

from __future__ import annotations

import os
import sys

EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the `headstart` command and exit with its code.

    0 done, 1 failed while running, 2 bad usage or bad config, 130 interrupted.
    """
    try:
        code = _run()
    except KeyboardInterrupt:
        # May come at any import, before anything of ours runs.
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    # Models compute in threads that cannot be stopped; nobody waits for them any more.
    from headstart.engines.hub import shared

    shared.close()
    os._exit(code)


def _run() -> int:
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
    return 0
