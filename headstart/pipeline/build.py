"""From a spec to a Pipecat pipeline between a transport's two ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMUserAggregator
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.llm_service import LLMService
from pipecat.services.tts_service import TTSService
from pipecat.transports.base_transport import BaseTransport

from headstart.config import structure
from headstart.config.registry import create, stage_type
from headstart.config.registry import required_assets as stage_assets
from headstart.config.spec import PipelineSpec, StageSpec
from headstart.errors import UsageError
from headstart.pipeline.watch import WatchedPipeline
from headstart.processors.audio_end import InputAudioEnd
from headstart.processors.speculation.attempts import SharesModel
from headstart.processors.speculation.following import (
    FollowingLLM,
    following,
    obstacle_to_following,
)
from headstart.processors.speculation.gate import ReleaseGate
from headstart.processors.turn.aggregator import AssistantTurn, TurnSettings, UserTurn
from headstart.processors.turn.trigger.settings import EarlyTrigger

P = TypeVar("P", bound=FrameProcessor)


@dataclass(frozen=True)
class Built:
    """A pipeline that is ready to run."""

    pipeline: WatchedPipeline
    context: LLMContext
    """The conversation, still empty; the prompt is with the language model."""


def build(spec: PipelineSpec, transport: BaseTransport) -> Built:
    """Make the stages and link them between the transport's input and output.

    A pipeline with a language model needs stages that collect the user's words into turns and
    the bot's words into the conversation. Where the spec names no `turn` stage, the default one
    goes before the language model. The assistant's always goes after the output, where only what
    was heard arrives.

    The trigger is left out of the pipeline: its settings go to the turn stage. With it, Pipecat's
    language models and voices are made to follow attempts, and a release gate goes before the
    output.

    Raises:
        ConfigError: A stage cannot be made from its settings, or the stages do not fit together.
    """
    context = LLMContext()
    trigger = _make_trigger(spec, context)
    stages = [
        _make(stage, context, early=trigger is not None)
        for stage in spec.stages
        if not _is_trigger(stage)
    ]
    structure.check(spec.stages)
    after_output: list[FrameProcessor] = []
    if any(isinstance(stage, LLMService) for stage in stages):
        _join_conversation(stages, spec.prompt, context)
        after_output.append(AssistantTurn(context))
    elif (unanswered := _first(stages, UserTurn)) is not None:
        unanswered.is_answered = False
    if trigger is not None:
        _answer_early(stages, trigger)
    listeners = [at for at, stage in enumerate(stages) if _may_listen(stage)]
    stages.insert(listeners[-1] + 1 if listeners else 0, InputAudioEnd())
    processors = [transport.input(), *stages, transport.output(), *after_output]
    return Built(WatchedPipeline(processors), context)


def _is_trigger(stage: StageSpec) -> bool:
    try:
        return issubclass(stage_type(stage).cls, EarlyTrigger)
    except UsageError:
        return False  # `create` says what is wrong, and where


def _make_trigger(spec: PipelineSpec, context: LLMContext) -> EarlyTrigger | None:
    """The trigger, if the spec has one that is enabled."""
    for stage in filter(_is_trigger, spec.stages):
        trigger = create(stage, {LLMContext: context})
        if isinstance(trigger, EarlyTrigger) and trigger.settings.enabled:
            return trigger
    return None


def _make(stage: StageSpec, context: LLMContext, *, early: bool) -> FrameProcessor:
    if early:
        return create(stage, {LLMContext: context}, make=following)
    return create(stage, {LLMContext: context})


def _may_listen(stage: FrameProcessor) -> bool:
    """Whether a stage may have a use for the user's audio."""
    if isinstance(stage, LLMService):
        return obstacle_to_following(type(stage)) is not None
    return not isinstance(stage, TTSService | ReleaseGate)


def _answer_early(stages: list[FrameProcessor], trigger: EarlyTrigger) -> None:
    turn = _first(stages, UserTurn)
    assert turn is not None  # the structure is checked
    makers = [stage for stage in stages if isinstance(stage, SharesModel)]
    gate = ReleaseGate()
    turn.speculate(trigger, lambda: any(maker.model_is_busy for maker in makers), gate.confirm)
    for stage in stages:
        if isinstance(stage, FollowingLLM):
            stage.work_ahead()
    stages.append(gate)


def _join_conversation(stages: list[FrameProcessor], prompt: str, context: LLMContext) -> None:
    for stage in stages:
        if isinstance(stage, LLMService):
            stage.append_system_instruction(prompt)
    if _first(stages, LLMUserAggregator) is None:
        llm = next(at for at, stage in enumerate(stages) if isinstance(stage, LLMService))
        stages.insert(llm, UserTurn(context))


def _first(stages: Sequence[FrameProcessor], kind: type[P]) -> P | None:
    return next((stage for stage in stages if isinstance(stage, kind)), None)


def required_assets(spec: PipelineSpec) -> tuple[str, ...]:
    """The weights that the spec's stages need, each once, in the order of the stages.

    Raises:
        UsageError: A stage's class cannot be imported.
    """
    names = [name for stage in spec.stages for name in stage_assets(stage)]
    kinds = [stage.kind for stage in spec.stages]
    if "llm" in kinds and "turn" not in kinds:
        names += UserTurn.required_assets(TurnSettings())
    return tuple(dict.fromkeys(names))
