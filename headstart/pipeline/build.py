"""From a spec to a Pipecat pipeline between a transport's two ends."""

from __future__ import annotations

from dataclasses import dataclass

from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMUserAggregator
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.llm_service import LLMService
from pipecat.transports.base_transport import BaseTransport

from headstart.pipeline.registry import create
from headstart.pipeline.registry import required_assets as stage_assets
from headstart.pipeline.spec import PipelineSpec


@dataclass(frozen=True)
class Built:
    """A pipeline that is ready to run."""

    pipeline: Pipeline
    context: LLMContext
    """The conversation, still empty; the prompt is with the language model."""


def build(spec: PipelineSpec, transport: BaseTransport) -> Built:
    """Make the stages and link them between the transport's input and output.

    A pipeline with a language model needs somebody to collect the user's words into turns and
    the bot's into the conversation. Where the spec names no `turn` stage, the default one is
    put before the language model; the assistant's is always put after the output, where only
    what was heard arrives.

    Raises:
        UsageError: A stage cannot be made from its settings.
    """
    context = LLMContext()
    stages = [create(stage, {LLMContext: context}) for stage in spec.stages]
    after_output: list[FrameProcessor] = []
    llm = next((at for at, stage in enumerate(stages) if isinstance(stage, LLMService)), None)
    if llm is not None:
        from headstart.processors.turn import AssistantTurn, UserTurn

        for stage in stages:
            if isinstance(stage, LLMService):
                stage.append_system_instruction(spec.prompt)
        if not any(isinstance(stage, LLMUserAggregator) for stage in stages):
            stages.insert(llm, UserTurn(context))
        after_output.append(AssistantTurn(context))
    return Built(Pipeline([transport.input(), *stages, transport.output(), *after_output]), context)


def required_assets(spec: PipelineSpec) -> tuple[str, ...]:
    """The weights that the spec's stages need, each once, in the order of the stages.

    Raises:
        UsageError: A stage's class cannot be imported.
    """
    names = [name for stage in spec.stages for name in stage_assets(stage)]
    kinds = [stage.kind for stage in spec.stages]
    if "llm" in kinds and "turn" not in kinds:
        from headstart.processors.turn import TurnSettings, UserTurn

        names += UserTurn.required_assets(TurnSettings())
    return tuple(dict.fromkeys(names))
