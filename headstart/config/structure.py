"""Whether the stages of a pipeline fit together: which are missing, doubled or out of order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipecat.processors.aggregators.llm_response_universal import LLMUserAggregator
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.llm_service import LLMService
from pipecat.services.stt_service import SegmentedSTTService, STTService
from pipecat.services.tts_service import TTSService

from headstart.config import registry
from headstart.config.spec import StageSpec
from headstart.errors import ConfigError, Problem
from headstart.processors.speculation.following import obstacle_to_following
from headstart.processors.turn.trigger.settings import EarlyTrigger

_ROLES: Mapping[str, type[FrameProcessor]] = {
    "vad": VADProcessor,
    "stt": STTService,
    "trigger": EarlyTrigger,
    "turn": LLMUserAggregator,
    "llm": LLMService,
    "tts": TTSService,
}
"""Roles of which a pipeline has one each, by the class that plays them."""

_BEFORE = (("turn", "llm"), ("llm", "tts"))
"""Roles of which the second works on what the first sends downstream."""

_TRIGGER_ALONE = "trigger needs an llm stage, and a turn stage that is `turn: smart`"


@dataclass(frozen=True)
class _Stage:
    spec: StageSpec
    cls: type[FrameProcessor]
    at: int
    role: str | None
    """None where it may be anything: hear, speak, or write text."""

    @property
    def needs_vad(self) -> bool:
        """Whether it hears nothing until a VAD has said that somebody speaks."""
        return issubclass(self.cls, SegmentedSTTService) or (
            self.role == "stt" and self.spec.target == registry.BUILTIN.get(self.spec.name)
        )

    @property
    def may_be_vad(self) -> bool:
        """Whether it is a VAD, has one in its settings, or is of no known role."""
        of_turn = self.role == "turn" and "vad_analyzer" in set(_keys(self.spec.settings))
        return self.role in ("vad", None) or of_turn


def problems(specs: Sequence[StageSpec]) -> list[Problem]:
    """What keeps stages from working together, whatever their settings.

    Only what cannot work is a problem: a stage of no known role may take any other's place.

    Raises:
        UsageError: A stage's class cannot be imported.
    """
    stages = [_stage(at, spec) for at, spec in enumerate(specs)]
    found: list[Problem] = []
    first: dict[str, _Stage] = {}
    for stage in stages:
        if stage.role in first:
            there = first[stage.role].spec.position
            message = f"a second {stage.role} stage; the first is in {there.file.name}:{there.line}"
            found.append(stage.spec.position.problem(message))
        elif stage.role is not None:
            first[stage.role] = stage
    for before, after in (("stt", "turn" if "turn" in first else "llm"), *_BEFORE):
        if before in first and after in first and first[before].at > first[after].at:
            message = f"{before} should stand before {after}, which needs what {before} sends"
            found.append(first[before].spec.position.problem(message))
    if "trigger" in first and not _can_speculate(first):
        found.append(first["trigger"].spec.position.problem(_TRIGGER_ALONE))
    if "llm" in first and _is_on(first.get("trigger")):
        obstacle = obstacle_to_following(first["llm"].cls)
        if obstacle is not None:
            message = f"{first['llm'].spec.name} {obstacle}; use it without a trigger"
            found.append(first["llm"].spec.position.problem(message))
    silent = "llm" not in first and all(stage.role for stage in stages)
    if "tts" in first and silent and {"stt", "turn"} & first.keys():
        message = "tts needs an llm stage before it, or a stage of your own that sends it text"
        found.append(first["tts"].spec.position.problem(message))
    if not any(stage.may_be_vad for stage in stages):
        message = "stt needs a vad stage before it: it listens only while somebody speaks"
        found += [stage.spec.position.problem(message) for stage in stages if stage.needs_vad]
    return found


def check(specs: Sequence[StageSpec]) -> None:
    """Check that the stages fit together.

    Raises:
        UsageError: A stage's class cannot be imported.
        ConfigError: They do not; it carries every reason.
    """
    found = problems(specs)
    if found:
        raise ConfigError(found)


def _stage(at: int, spec: StageSpec) -> _Stage:
    cls = registry.stage_type(spec).cls
    role = next((role for role, base in _ROLES.items() if issubclass(cls, base)), None)
    if role is None and spec.kind in _ROLES.keys() - {"trigger"}:
        role = spec.kind  # the file says whose place it takes
    return _Stage(spec, cls, at, role)


def _is_on(trigger: _Stage | None) -> bool:
    return trigger is not None and trigger.spec.settings.get("enabled", True) is not False


def _can_speculate(first: Mapping[str, _Stage]) -> bool:
    if "llm" not in first:
        return False
    if "turn" in first:
        return hasattr(first["turn"].cls, "speculate")
    return issubclass(first["llm"].cls, LLMService)  # which brings the default turn stage


def _keys(settings: object) -> Iterator[str]:
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            yield key
            yield from _keys(value)
