"""Runs a benchmark of voices: speed in random order, cancellations, quality, memory."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

from headstart import assets
from headstart.bench.machine import machine, versions
from headstart.bench.voice.memory import measure, sessions_of
from headstart.bench.voice.session import Cancellation, Row, VoiceResults
from headstart.bench.voice.speed import line
from headstart.engines import hub
from headstart.engines.kokoro import KokoroEngine, KokoroOptions
from headstart.engines.kokoro.engine import MODEL, VOICES, model_file
from headstart.engines.kokoro.voices import Voices
from headstart.engines.queue import Priority, Ticket
from headstart.logging import set_up_logging
from headstart.processors.tts import KokoroSettings

_WARM_UP = "This is only to warm up, so that nothing is measured that happens once."
_LONG = (
    "While the guests were waiting in the hall, the cook dropped the last of the plates, and "
    "everybody turned to look at the kitchen door"
)
_CANCEL_AFTER_MS = (20, 60, 120, 200, 300, 450)


@dataclass(frozen=True)
class VoicePlan:
    """What a benchmark of voices does."""

    texts: Sequence[str]
    voices: Sequence[str]
    engines: Sequence[str]
    parts: Sequence[str]
    """Of `speed`, `quality`, `cancelling`, `memory`."""
    each: int | None
    """Voices that speak each text, in turn; None: all of them."""
    repeat: int
    sessions: int
    """That speak at once, to measure memory."""
    seed: int
    command: str

    @property
    def clauses(self) -> list[tuple[str, str]]:
        """Every voice with the texts that it speaks."""
        number, each = len(self.voices), self.each or len(self.voices)
        return [
            (self.voices[(each * at + turn) % number], text)
            for at, text in enumerate(self.texts)
            for turn in range(min(each, number))
        ]

    @property
    def ours(self) -> list[str]:
        """The engines that are not Pipecat's."""
        return [name for name in self.engines if name != "pipecat"]

    def steps(self) -> int:
        """How many there are to show progress by."""
        clauses = len(self.clauses)
        return (
            ("speed" in self.parts) * clauses * self.repeat * len(self.engines)
            + ("quality" in self.parts) * ("torch" in self.engines) * clauses
            + ("cancelling" in self.parts) * len(self.ours) * len(_CANCEL_AFTER_MS)
            + ("memory" in self.parts) * len(self.engines)
        )


@dataclass
class VoiceRun:
    """One benchmark under way."""

    plan: VoicePlan
    on_step: Callable[[str], None]
    results: VoiceResults = field(init=False)

    def __post_init__(self) -> None:
        self.results = VoiceResults(
            command=self.plan.command,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seed=self.plan.seed,
            versions=versions(),
            machine=machine() | _card(),
        )

    async def run(self) -> None:
        """Fill `results`; what is there already stays if it is broken off.

        Raises:
            HeadstartError: An engine did not load or failed.
        """
        begun = time.monotonic()
        try:
            if "speed" in self.plan.parts:
                await self._speed()
            if "cancelling" in self.plan.parts:
                await self._cancelling()
            if "quality" in self.plan.parts and "torch" in self.plan.engines:
                await self._quality()
            if "memory" in self.plan.parts:
                await self._memory()
        finally:
            self.results.duration_s = time.monotonic() - begun

    async def _speed(self) -> None:
        random_ = random.Random(self.plan.seed)
        order = self.plan.clauses * self.plan.repeat
        random_.shuffle(order)
        async with AsyncExitStack() as stack:
            lines = []
            for name in self.plan.engines:
                self.on_step(f"loading {name}")
                lines.append(await stack.enter_async_context(line(name)))
            for one in lines * 2:
                await one.speak(_WARM_UP, self.plan.voices[0])
            for voice, text in order:
                # Whatever else the machine does hits all alike.
                for one in random_.sample(lines, len(lines)):
                    row = (await one.speak(text, voice)).row(one.engine, voice, text)
                    self.results.rows.append(row)
                    self.on_step("")

    async def _cancelling(self) -> None:
        for name in self.plan.ours:
            engine = await hub.shared.get(KokoroEngine, _options(name))
            for after_ms in _CANCEL_AFTER_MS:
                ticket = Ticket(Priority.SPECULATIVE)
                asyncio.get_running_loop().call_later(after_ms / 1000, ticket.cancel)
                begun = time.monotonic()
                voice = self.plan.voices[0]
                async for _ in engine.speak(_LONG, voice=voice, ticket=ticket, cut=False):
                    pass
                freed_ms = 1000 * (time.monotonic() - begun) - after_ms
                if ticket.cancelled:
                    self.results.cancellations.append(
                        Cancellation(engine=name, after_ms=after_ms, freed_ms=max(0.0, freed_ms))
                    )
                self.on_step("")

    async def _quality(self) -> None:
        from headstart.bench.voice.quality import FixedPace, Judge
        from headstart.engines.kokoro.torch.engine import TorchKokoro
        from headstart.engines.whisper import WhisperEngine, WhisperOptions

        self.on_step("loading the judge")
        pace = FixedPace()
        backend = TorchKokoro(model_file(assets.path(MODEL)), threads=2, pace=pace)
        listener = WhisperEngine.load(WhisperOptions())
        judge = Judge(backend, pace, Voices(assets.path(VOICES)), listener)
        try:
            for number, (voice, text) in enumerate(self.plan.clauses):
                found = await judge.judge(text, voice, self.plan.seed + 2 * number)
                for row in self._rows_of(voice, text):
                    for figure in fields(found):
                        setattr(row, figure.name, getattr(found, figure.name))
                self.on_step("")
        finally:
            listener.close()
            backend.close()

    async def _memory(self) -> None:
        text, voice = self.plan.texts[0], self.plan.voices[0]
        for name in self.plan.engines:
            sessions = sessions_of(name, self.plan.sessions)
            self.on_step(f"{sessions} sessions")
            # A process of its own: this one holds other engines by now.
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, spawn, initializer=set_up_logging) as pool:
                work = pool.submit(measure, name, sessions, text, voice)
                self.results.memory.append(await asyncio.wrap_future(work))
            self.on_step("")

    def _rows_of(self, voice: str, text: str) -> list[Row]:
        """The rows of torch for this clause; a new one if its speed was not measured."""
        found = [
            row
            for row in self.results.rows
            if (row.engine, row.voice, row.text) == ("torch", voice, text)
        ]
        if not found:
            found = [Row(engine="torch", voice=voice, text=text, words=len(text.split()))]
            self.results.rows += found
        return found


def _card() -> dict[str, str | int | float]:
    """The graphics card that torch would use."""
    import torch

    return {"cuda": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def _options(engine: str) -> KokoroOptions:
    # As a stage has it, so that the engine is the same one.
    return KokoroOptions(engine=KokoroSettings.model_validate({"engine": engine}).engine)
