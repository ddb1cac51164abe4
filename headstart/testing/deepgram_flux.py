"""One Flux stream of the test server: audio and commands in, turns out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from aiohttp import WSCloseCode

from headstart.engines.hypothesis import Hypothesis
from headstart.testing import deepgram_messages as messages
from headstart.testing.deepgram_connection import Connection, last
from headstart.testing.deepgram_flux_turns import Step, Thresholds, Turns

_BOUNDS = {
    "eot_threshold": (0.5, 1.0),
    "eager_eot_threshold": (0.3, 0.9),
    "eot_timeout_ms": (500.0, 60000.0),
}


class FluxConnection(Connection):
    """One WebSocket on `/v2/listen`."""

    def __init__(self, *arguments: Any) -> None:
        """Take over an accepted WebSocket, as `Connection` does."""
        super().__init__(*arguments)
        query = self._served.query
        given = {name: float(last(query, name, "")) for name in _BOUNDS if name in query}
        self._turns = Turns(self._rate, _thresholds(Thresholds(), given))
        self._keyterms = query.get("keyterm", [])
        self._hypothesis = Hypothesis()
        self._begun = False
        self._sequence_id = 0

    async def _work(self) -> None:
        """Greet, and answer what was queued, in order."""
        await self._tell({"type": "Connected"})
        await super()._work()

    async def _hear(self, pcm: bytes) -> None:
        turns = self._turns
        turns.feed(await self._decode(pcm))
        while not self._socket.closed and (step := turns.step()) is not None:
            if step is Step.UPDATE and not turns.sounds:
                await self._tell_turn(Step.UPDATE)
            elif step is Step.UPDATE:
                # A recogniser that has fallen behind skips what will be replaced anyway.
                if self._inbox.empty():
                    await self._recognise()
                    await self._tell_turn(Step.UPDATE)
            elif step is Step.RECOGNISE:
                await self._recognise()
                turns.understood(self._hypothesis.text)
            elif step is Step.END:
                await self._end("model" if turns.confidence >= turns.thresholds.eot else "timeout")
            else:
                await self._tell_turn(step)

    async def _obey(self, text: str) -> bool:
        """Do what a text message says; False when it was the last."""
        try:
            command = json.loads(text)
            kind = command["type"]
        except (ValueError, KeyError, TypeError):
            command, kind = {}, None
        self._served.texts.append(str(kind))
        if kind == "Configure":
            await self._configure(command)
        elif kind == "ForceEndTurn":
            if self._turns.sounds:
                await self._recognise()
            if self._hypothesis.text:
                await self._end("manual")
        elif kind == "CloseStream":
            await self._socket.close()
        else:
            why = {"code": "UNPARSABLE_CLIENT_MESSAGE", "description": f"not understood: {text}"}
            await self._tell({"type": "Error", **why})
            await self._socket.close(code=WSCloseCode.POLICY_VIOLATION)
        return not self._socket.closed

    async def _configure(self, command: dict[str, Any]) -> None:
        given = command.get("thresholds") or {}
        if (objection := _objection(given)) is not None:
            why = {"code": "INVALID_CONFIGURATION", "description": objection}
            await self._tell({"type": "ConfigureFailure", **why})
            return
        thresholds = self._turns.thresholds = _thresholds(self._turns.thresholds, given)
        self._keyterms = command.get("keyterms", self._keyterms)
        await self._tell(
            {
                "type": "ConfigureSuccess",
                "thresholds": {
                    "eot_threshold": thresholds.eot,
                    "eager_eot_threshold": thresholds.eager,
                    "eot_timeout_ms": thresholds.timeout_ms,
                },
                "keyterms": self._keyterms,
            }
        )

    async def _recognise(self) -> None:
        self._hypothesis = await self._services.recognise(self._turns.audio, self._rate)

    async def _end(self, trigger: str) -> None:
        if self._faults.close_before_answer:
            await self._socket.close(code=WSCloseCode.INTERNAL_ERROR, message=b"NET-0000")
            return
        await self._tell_turn(Step.END, trigger)
        self._turns.end()
        self._hypothesis = Hypothesis()
        self._begun = False

    async def _tell_turn(self, event: Step, trigger: str | None = None) -> None:
        """Tell how the turn stands; that it has begun, if this is the first to be heard of it."""
        if self._hypothesis.text and not self._begun:
            self._begun = True
            await self._tell_event("StartOfTurn")
            if event is Step.UPDATE:
                return
        await self._tell_event(event.value, **({"trigger": trigger} if trigger else {}))

    async def _tell_event(self, event: str, **more: str) -> None:
        turns = self._turns
        first, until = turns.sound
        listed = messages.words(self._hypothesis, first, until, punctuate=True)
        await self._tell(
            {
                "type": "TurnInfo",
                "event": event,
                "turn_index": turns.index,
                "audio_window_start": round(turns.start_secs, 3),
                "audio_window_end": round(turns.now_secs, 3),
                "transcript": self._hypothesis.text,
                "words": [
                    {
                        "word": word["punctuated_word"],
                        "confidence": word["confidence"],
                        "start": word["start"],
                        "end": word["end"],
                    }
                    for word in listed
                ],
                "end_of_turn_confidence": round(turns.confidence, 4),
                **more,
            }
        )

    async def _tell(self, message: dict[str, Any]) -> None:
        kind = message.pop("type")
        number = self._sequence_id
        self._sequence_id += 1
        await self._say(
            {"type": kind, "request_id": self._request_id, "sequence_id": number, **message}
        )


def objection(query: dict[str, list[str]]) -> str | None:
    """Why a stream with these parameters is refused, if it is."""
    if not last(query, "model", "").startswith("flux-"):
        return "model must be a Flux model, as flux-general-en"
    return _objection({name: last(query, name, "") for name in _BOUNDS if name in query})


def _objection(given: dict[str, Any]) -> str | None:
    for name, value in given.items():
        least, most = _BOUNDS.get(name, (0.0, 0.0))
        try:
            good = least <= float(value) <= most
        except (ValueError, TypeError):
            good = False
        if not good:
            return f"{name} must be between {least:g} and {most:g}, not {value}"
    return None


def _thresholds(before: Thresholds, given: dict[str, Any]) -> Thresholds:
    return replace(
        before,
        eot=float(given.get("eot_threshold", before.eot)),
        eager=given.get("eager_eot_threshold", before.eager),
        timeout_ms=int(given.get("eot_timeout_ms", before.timeout_ms)),
    )
