"""When what happened in a session, and the lines of `turns.jsonl` that are made of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from audio import Speaker
from livekit.agents import AgentSession


class Answer:
    """One run of the language model, and the voice's work on it."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.at: dict[str, float] = {}

    def note(self, moment: str) -> None:
        """It has happened for the first time."""
        self.at.setdefault(moment, time.monotonic())


class Moments:
    """What LiveKit's events tell."""

    def __init__(self) -> None:
        self.latest = 0.0
        self.speech: list[float] = []
        self.silence: list[float] = []
        self.finals: list[float] = []
        self.user: list[tuple[float, str]] = []
        self.bot: list[tuple[float, str]] = []
        self.errors: list[str] = []
        self._answers: list[Answer] = []
        self._state = ""

    def listen(self, session: AgentSession) -> None:
        """Take in a session's events."""
        session.on("user_state_changed", self._on_user_state)
        session.on("agent_state_changed", self._on_agent_state)
        session.on("user_input_transcribed", self._on_transcript)
        session.on("conversation_item_added", self._on_item)
        session.on("error", self._on_error)

    def begin_answer(self) -> Answer:
        """The language model has been asked."""
        self.latest = time.monotonic()
        self._answers.append(Answer())
        return self._answers[-1]

    def latest_answer(self) -> Answer:
        """What the language model was asked last."""
        return self._answers[-1] if self._answers else self.begin_answer()

    def answer_before(self, heard: float) -> Answer | None:
        """The one that was heard at a moment: the last whose audio was there by then."""
        ready = [a for a in self._answers if a.at.get("first_audio_ready_s", heard + 1) <= heard]
        return ready[-1] if ready else None

    @property
    def answered(self) -> bool:
        """Every turn of the user has its answer, and nothing is under way."""
        return (
            bool(self.bot)
            and bool(self.user)
            and self.bot[-1][0] >= self.user[-1][0]
            and self._state == "listening"
        )

    def _on_user_state(self, event: Any) -> None:
        self.latest = time.monotonic()
        if event.new_state == "speaking":
            self.speech.append(self.latest)
        elif event.old_state == "speaking":
            self.silence.append(self.latest)

    def _on_agent_state(self, event: Any) -> None:
        self.latest, self._state = time.monotonic(), event.new_state

    def _on_transcript(self, event: Any) -> None:
        self.latest = time.monotonic()
        if event.is_final:
            self.finals.append(self.latest)

    def _on_item(self, event: Any) -> None:
        self.latest = time.monotonic()
        role, text = getattr(event.item, "role", ""), getattr(event.item, "text_content", "") or ""
        if role in ("user", "assistant"):
            (self.user if role == "user" else self.bot).append((self.latest, text))

    def _on_error(self, event: Any) -> None:
        self.errors.append(" ".join(str(event.error).split()))


def turns(moments: Moments, speaker: Speaker, zero: float) -> Iterator[dict[str, Any]]:
    """One line of `turns.jsonl` for each of the user's turns."""
    heard = speaker.heard_from()
    ends = [at for at, _ in moments.user]
    for number, (end, text) in enumerate(moments.user, start=1):
        begun = ends[number - 2] if number > 1 else 0.0
        over = ends[number] if number < len(ends) else float("inf")
        out = next((at for at in heard if end <= at < over), None)
        answer = moments.answer_before(out) if out is not None else None

        def last(of: list[float], begun: float = begun, end: float = end) -> float | None:
            return max((at for at in of if begun < at <= end), default=None)

        at = {
            "speech_start_s": min(
                (one for one in moments.speech if begun < one <= end), default=None
            ),
            "vad_stop_s": last(moments.silence),
            "final_transcript_s": last(moments.finals),
            "turn_end_s": end,
            **(answer.at if answer else {}),
            "first_audio_out_s": out,
        }
        yield {
            "turn": number,
            "user_text": text,
            "bot_text": " ".join(said for when, said in moments.bot if end <= when < over),
            **{name: None if one is None else round(one - zero, 3) for name, one in at.items()},
            "errors": moments.errors if number == 1 else [],
        }
