"""`headstart testing drops`: does a broken connection cost a word?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from loguru import logger

from headstart.cli.loop import run_to_end
from headstart.errors import HeadstartError


def drops(
    utterances: Annotated[
        Path, typer.Argument(metavar="DIR", help="Holds manifest.jsonl and the recordings.")
    ],
    only: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this utterance; may be repeated.")
    ] = None,
    every_secs: Annotated[
        float, typer.Option(min=0.1, help="Drop the connection at each multiple of this.")
    ] = 0.5,
    handshake_secs: Annotated[float, typer.Option(min=0, help="Open so late, once each.")] = 0.6,
    real_time: Annotated[
        bool, typer.Option("--real-time", help="Speak as fast as people do.")
    ] = False,
) -> None:
    """Cut the connection to Deepgram at every half second of every utterance in turn.

    Each utterance is heard undisturbed first, then with each drop and with a slow handshake, by
    the real stages and SDK, on the server of `headstart testing deepgram`. Exit code 1 if any text
    differs from the undisturbed one.
    """
    from headstart.bench.drops import Outcome, try_drops

    logger.disable("headstart.processors.stt")  # each drop would be a warning
    outcomes: list[Outcome] = []

    async def run() -> None:
        async for outcome in try_drops(
            utterances,
            only=only,
            every_secs=every_secs,
            handshake_secs=handshake_secs,
            real_time=real_time,
        ):
            outcomes.append(outcome)
            told = "DIFFERS" if outcome.differs else "same"
            paths = ", ".join(path or "?" for path in outcome.paths)
            typer.echo(f"{outcome.utterance:<16} {outcome.fault:<16} {told:<8} {paths}")
            if outcome.differs:
                typer.echo(f"  undisturbed: {outcome.undisturbed}\n  disturbed:   {outcome.text}")

    run_to_end(run())
    for kind, count in Counter(outcome.fault.split()[0] for outcome in outcomes).items():
        differ = sum(one.differs for one in outcomes if one.fault.startswith(kind))
        typer.echo(f"{kind}: {count} runs, {differ} with another text")
    if any(outcome.differs for outcome in outcomes):
        raise HeadstartError("words were lost or doubled")
