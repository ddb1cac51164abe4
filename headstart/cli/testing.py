"""`headstart testing`: servers that speak providers' protocols, to try an agent without them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headstart.cli.drops import drops
from headstart.cli.loop import run_to_end
from headstart.errors import UsageError

if TYPE_CHECKING:
    from headstart.testing.delays import Delays

_PORT = typer.Option(help="Port to bind; 0 for a free one.", min=0, max=65535)

app = typer.Typer(
    help="Servers that speak providers' protocols, with local models and faults on demand.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def testing() -> None:
    """Servers that speak providers' protocols, with local models and faults on demand."""


app.command("drops")(drops)


@app.command("deepgram")
def deepgram(
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, _PORT] = 8090,
    key: Annotated[str | None, typer.Option(help="The one API key it takes; any if none.")] = None,
    on: Annotated[
        Literal["stream", "rest"],
        typer.Option(help="What the faults below hit: streams or prerecorded requests."),
    ] = "stream",
    times: Annotated[
        int, typer.Option(help="How many connections the faults hit, from the first on.", min=0)
    ] = 1_000_000,
    refuse: Annotated[bool, typer.Option("--refuse", help="Cut before any answer.")] = False,
    status: Annotated[int | None, typer.Option(help="Answer with this HTTP status.")] = None,
    handshake_delay_secs: Annotated[float, typer.Option(help="Open so late.", min=0)] = 0.0,
    drop_after_chunks: Annotated[
        int | None, typer.Option(help="Cut after so many audio messages.")
    ] = None,
    drop_at_secs: Annotated[
        float | None, typer.Option(help="Cut after so many seconds of audio.")
    ] = None,
    stall_after_secs: Annotated[
        float | None, typer.Option(help="Say nothing after so many seconds of audio.")
    ] = None,
    half_open: Annotated[
        bool, typer.Option("--half-open", help="Accept, then neither read nor answer.")
    ] = False,
    slow_secs: Annotated[float, typer.Option(help="Say everything so late.", min=0)] = 0.0,
    close_before_answer: Annotated[
        bool, typer.Option("--close-before-answer", help="Close instead of answering Finalize.")
    ] = False,
    greeting: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Say this instead of Flux's Connected.")
    ] = None,
    instead: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Say this instead of each result.")
    ] = None,
    delay_secs: Annotated[
        tuple[float, float], typer.Option(help="Least and most random delay of a message.")
    ] = (0.0, 0.0),
    transcript_ms: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="P50 P95",
            help="Draw how late words are; 47 98 is nova-3, as published, after the VAD's stop.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random delays.")] = 0,
) -> None:
    """Serve Deepgram's speech-to-text protocol.

    /v1/listen (WebSocket and prerecorded) and Flux's /v2/listen (WebSocket).

    Point the agent at it:  DEEPGRAM_BASE_URL=ws://127.0.0.1:8090 DEEPGRAM_API_KEY=any
    """
    from headstart.testing.deepgram import DeepgramServer, Faults

    none = Faults(on)
    faults = replace(
        none,
        refuse=refuse,
        status=status,
        handshake_delay_secs=handshake_delay_secs,
        drop_after_chunks=drop_after_chunks,
        drop_at_secs=drop_at_secs,
        stall_after_secs=stall_after_secs,
        half_open=half_open,
        slow_secs=slow_secs,
        close_before_answer=close_before_answer,
        greeting=greeting,
        instead=instead,
    )

    async def serve() -> None:
        server = DeepgramServer(
            host=host,
            port=port,
            key=key,
            delay_secs=delay_secs,
            seed=seed,
            transcript=_delays(transcript_ms, seed),
        )
        if faults != none:
            server.fail(faults, times)
        async with server:
            typer.echo(f"DEEPGRAM_BASE_URL={server.url}")
            await asyncio.Event().wait()

    _run(serve(), host, port)


@app.command("anthropic")
def anthropic(
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, _PORT] = 8091,
    key: Annotated[str | None, typer.Option(help="The one API key it takes; any if none.")] = None,
    model: Annotated[str, typer.Option(help="The local model that answers.")] = (
        "llama://SmolLM2-135M"
    ),
    first_token_ms: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="P50 P95",
            help="Draw how late the first token is; 637 1615 is claude-haiku-4-5, as published.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random delays.")] = 0,
) -> None:
    """Serve Anthropic's protocol (/v1/messages), a local model behind it.

    Point the agent at it:  ANTHROPIC_BASE_URL=http://127.0.0.1:8091 ANTHROPIC_API_KEY=any
    """
    from headstart.testing.anthropic import AnthropicServer

    server = AnthropicServer(
        host=host, port=port, key=key, model=model, first_token=_delays(first_token_ms, seed)
    )

    async def serve() -> None:
        async with server:
            typer.echo(f"ANTHROPIC_BASE_URL={server.url}")
            await asyncio.Event().wait()

    _run(serve(), host, port)


def _delays(percentiles: tuple[float, float] | None, seed: int) -> Delays | None:
    if percentiles is None:
        return None
    from headstart.testing.delays import Delays, Latency

    try:
        return Delays(Latency(*percentiles), seed)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _run(serving: Coroutine[Any, Any, None], host: str, port: int) -> None:
    try:
        run_to_end(serving)
    except OSError as error:
        raise UsageError(f"cannot serve on {host}:{port}: {error.strerror}") from None
    except UnicodeError:
        raise UsageError(f"cannot serve on {host}:{port}: {host!r} is no host's name") from None
