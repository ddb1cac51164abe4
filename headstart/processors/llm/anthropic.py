"""The language model stage: Claude, or anything else that speaks its protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, nullcontext
from typing import Any

from anthropic import APIConnectionError, APIStatusError
from loguru import logger
from pipecat.frames.frames import (
    CancelFrame,
    Frame,
    FunctionCallFromLLM,
    InterruptionFrame,
    LLMContextFrame,
    SystemFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import (
    FrameCallback,
    FrameDirection,
    FrameProcessorSetup,
)
from pipecat.services.anthropic.llm import AnthropicLLMService, AnthropicLLMSettings
from pipecat.utils.errors import ErrorCategory

from headstart.engines import hub
from headstart.engines.llama import LlamaEngine
from headstart.errors import HeadstartError
from headstart.frames import WarmUpFrame
from headstart.processors.llm.early_tools import EarlyTool
from headstart.processors.llm.errors import TIMEOUTS, category_of, described, in_one_line, tidy
from headstart.processors.llm.patience import Patience
from headstart.processors.llm.settings import LLMSettings, check_key, client_for, request_settings
from headstart.processors.llm.stream import is_readable, text_of, why_incomplete
from headstart.processors.llm.warm_up import (
    cache_prompt,
    open_connection,
    prepare_to_read_events,
    slots_of,
)
from headstart.processors.speculation.attempts import SESSION_ENDS, AttemptStatus
from headstart.processors.speculation.following import FollowingLLM

_CANCEL_SECS = 1.0
_PIECE_LETTERS = 200
"""Text that goes on in one piece, so that the stages that follow let others run in between."""
_FINAL: tuple[type[Exception], ...] = (APIStatusError, TimeoutError, HeadstartError)
"""Errors after which llama.cpp would answer no better."""


class AnthropicLLM(FollowingLLM, AnthropicLLMService):
    """Answers each context in a task of its own, token by token.

    Pipecat's service converts contexts, calls functions and counts. This class changes the order
    of events. A new context or an interruption ends the current answer at once, without waiting
    until its connection is closed. Every other frame that comes down the pipeline after a
    context waits until the answer to it is complete.

    An answer that fails ends like any other, after an `ErrorFrame` of one line. No request is
    repeated once a word of its answer is out. `FollowingLLM` says what happens to answers whose
    turn has not ended.
    """

    _settings: AnthropicLLMSettings

    def __init__(self, settings: LLMSettings | None = None, **kwargs: Any) -> None:
        """Set the stage up; no connection is made and no key needed yet.

        Args:
            settings: What to ask, and whom.
            **kwargs: For Pipecat's base class.
        """
        self._stage = settings or LLMSettings()
        self._llama = self._stage.llama
        self._engine: LlamaEngine | None = None
        self._answer: asyncio.Task[None] | None = None
        self._events: AsyncGenerator[Any] | None = None
        self._receiving = False
        """Whether more of the answer may come; afterwards it has only to be wound up."""
        self._winding_up: set[asyncio.Task[Any]] = set()
        """Connections and tools that answers have, or had; they end in their own time."""
        self._interruption = 0
        """Id of the last one. Frames are numbered in the order in which they are made."""
        self.max_speculative_letters = self._stage.max_speculative_letters
        super().__init__(
            api_key="",  # the client has it
            client=client_for(self._stage),
            settings=request_settings(self._stage),
            **kwargs,
        )

    @classmethod
    def required_assets(cls, settings: LLMSettings) -> tuple[str, ...]:
        """The weights of a llama:// model that is named, not given as a file."""
        asset = settings.llama.asset if settings.llama else None
        return (asset,) if asset else ()

    @classmethod
    def check_environment(cls, settings: LLMSettings) -> None:
        """Check that there is a key where one is needed.

        Raises:
            UsageError: Anthropic wants one and there is none.
        """
        check_key(settings, client_for(settings))

    @property
    def model_is_busy(self) -> bool:
        """Whether a model on this machine answers somebody who waits."""
        return self._engine is not None and self._engine.workload.is_committed

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Load the model, if it is one on this machine.

        Raises:
            UsageError: Anthropic wants a key and there is none.
            AssetError: The weights are missing.
            EngineError: The model did not load.
        """
        await super().setup(setup)
        client = self._client
        if self._llama is not None:
            self._engine = await hub.shared.get(LlamaEngine, self._llama)
            client.api_key = self._engine.api_key
        elif client.api_key is None and client.auth_token is None and client.credentials is None:
            check_key(self._stage, client)
            client.api_key = "none"  # other servers may not ask for one

    async def cleanup(self) -> None:
        """Give up the answer under way and close the connections."""
        await self._give_up_answer()
        for task in self._winding_up:
            task.cancel()
        if self._winding_up:
            _, left = await asyncio.wait(self._winding_up, timeout=_CANCEL_SECS)
            for task in left:
                logger.warning(f"{task.get_name()} ignores its cancellation: it is left behind")
        if self._engine is not None:
            self._engine.slots.left(self)
        await super().cleanup()

    async def cancel(self, frame: CancelFrame) -> None:
        """Give up the answer under way."""
        await self._give_up_answer()
        await super().cancel(frame)

    async def queue_frame(
        self,
        frame: Frame,
        direction: FrameDirection = FrameDirection.DOWNSTREAM,
        callback: FrameCallback | None = None,
    ) -> None:
        """Queue a frame; a new context does not wait for frames that wait for the answer."""
        if isinstance(frame, LLMContextFrame):
            self._supersede_answer()
        await super().queue_frame(frame, direction, callback)
        if isinstance(frame, SESSION_ENDS) and self._follower.status is AttemptStatus.VOID:
            self._supersede_answer()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Answer contexts; pass on every other frame in its place."""
        if isinstance(frame, InterruptionFrame):
            self._interruption = frame.id
        if isinstance(frame, LLMContextFrame):
            self._supersede_answer()
            await self._answer_is_over()
            if frame.id < self._interruption:
                return  # the interruption came after it, and has overtaken it
        elif direction == FrameDirection.DOWNSTREAM and not isinstance(frame, SystemFrame):
            await self._answer_is_over()
        if isinstance(frame, WarmUpFrame):
            await self._warm_up(frame.context)
        await super().process_frame(frame, direction)

    async def push_error(
        self,
        error_msg: str,
        exception: Exception | None = None,
        fatal: bool = False,
        category: ErrorCategory | None = None,
        force_treat_as_permanent: bool = False,
    ) -> None:
        """Report an error in one line that says what failed: the answer, or a tool by its name."""
        if self._answer is not None and asyncio.current_task() is self._answer:
            self._failed = True
            if exception is not None:
                error_msg = self._describe(exception)
        elif isinstance(exception, HeadstartError):
            error_msg = str(exception)
        elif exception is not None and not str(exception):
            error_msg += described(exception)
        message = tidy(error_msg, self._secrets)
        await super().push_error(message, exception, fatal, category, force_treat_as_permanent)

    async def _process_context(self, context: LLMContext) -> None:
        self._receiving = True
        self._answer = self.create_task(self._respond(context), "answer")

    async def _context_processed(self) -> None:
        """The answer goes on in a task of its own."""

    async def _respond(self, context: LLMContext) -> None:
        ticket = self._follower.ticket
        workload = self._engine.workload.holding(ticket) if self._engine else nullcontext()
        try:
            with workload:
                await super()._process_context(context)
        finally:
            self._receiving = False
            if self._events is not None:
                # Cancelled between two tokens, the stream would stay open until collected.
                await self._events.aclose()
        await self._withdraw_if_in_vain()

    async def run_function_calls(self, function_calls: Sequence[FunctionCallFromLLM]) -> None:
        """Call tools once the turn has ended on their answer; begin the safe ones before."""
        safe: list[EarlyTool] = []
        if self._follower.is_pending:
            safe = self._begin_safe_tools(function_calls)
        try:
            if function_calls:
                await self._follower.verdict()
        finally:
            if self._follower.status is not AttemptStatus.CONFIRMED:
                for tool in safe:
                    tool.give_up()
        await super().run_function_calls(function_calls)

    def _begin_safe_tools(self, calls: Sequence[FunctionCallFromLLM]) -> list[EarlyTool]:
        begun: list[EarlyTool] = []
        for call in calls:
            is_safe = call.function_name in self._stage.safe_tools
            tool = EarlyTool.among(self._functions, call.function_name) if is_safe else None
            if tool is not None:
                self._lets_wind_up(tool.begin(call, self))
                begun.append(tool)
        return begun

    def _supersede_answer(self) -> None:
        # An answer that has arrived whole may be starting function calls: it is let finish.
        if self._answer is not None and self._receiving and not self._answer.cancelling():
            self._answer.cancel()

    async def _answer_is_over(self) -> None:
        if self._answer is not None:
            await asyncio.wait([self._answer])

    async def _give_up_answer(self) -> None:
        if self._answer is not None:
            if not self._answer.cancelling():
                self._answer.cancel()
            await asyncio.wait([self._answer], timeout=_CANCEL_SECS)

    async def _start_interruption(self) -> None:
        # First what is queued, so that no other answer begins after this one is given up.
        await super()._start_interruption()  # type: ignore[no-untyped-call]
        await self._give_up_answer()

    async def _push_llm_text(self, text: str) -> None:
        if not self._said:
            text = text.lstrip()
        for start in range(0, len(text), _PIECE_LETTERS):
            if start:
                await asyncio.sleep(0)  # other sessions have their turn
            await super()._push_llm_text(text[start : start + _PIECE_LETTERS])

    async def _create_message_stream(
        self, api_call: Callable[..., Any], params: dict[str, Any]
    ) -> AsyncGenerator[Any]:
        self._events = self._receive(api_call, params)
        return self._events

    async def _receive(
        self, api_call: Callable[..., Any], params: dict[str, Any]
    ) -> AsyncGenerator[Any]:
        """The events of the answer; from the beginning again if llama.cpp fails before a word."""
        last_try = self._engine is None
        while True:
            url = await self._locate()
            events: asyncio.Queue[Any] = asyncio.Queue()
            # Closing a connection takes time. The answer neither has it nor must it wait for it.
            reader = self.create_task(self._read(api_call, params, events), "connection")
            self._lets_wind_up(reader)
            is_whole = False
            try:
                while not is_whole:
                    event = await events.get()
                    if isinstance(event, Exception):
                        raise event
                    is_whole = event.type == "message_stop"
                    self._receiving = not is_whole
                    yield event
                return
            except TIMEOUTS as error:
                raise TimeoutError from error  # of the SDK's, Pipecat reports only some
            except Exception as error:
                if last_try or self._said or isinstance(error, _FINAL):
                    raise
                last_try = True
                restarted = await self._locate(dropped_url=url) != url
                if not restarted and not isinstance(error, APIConnectionError):
                    raise
            finally:
                if not is_whole:  # else the connection is as good as new when it is read out
                    reader.cancel()
                    if self._engine is not None:
                        self._engine.slots.given_up()

    async def _read(
        self, api_call: Callable[..., Any], params: dict[str, Any], events: asyncio.Queue[Any]
    ) -> None:
        """Read the events of one request; the last is an exception if it broke off."""
        async with AsyncExitStack() as closing:
            try:
                if self._engine is not None:
                    await self._engine.slots.settled(self._busy_slots)
                async with Patience(self._stage.timeout_secs) as patience:
                    stream = await api_call(**params)
                    await closing.enter_async_context(stream)
                    with self._engine.slots.answering(self) if self._engine else nullcontext():
                        await self._pass_on(stream, events, patience)
                events.put_nowait(ConnectionError("it broke off"))
            except Exception as error:
                events.put_nowait(error)

    async def _pass_on(self, stream: Any, events: asyncio.Queue[Any], patience: Patience) -> None:
        """Queue the events that can be read, and wait where an early answer pauses."""
        words = letters = 0
        async for event in stream:
            patience.renew()
            if not is_readable(event):
                continue
            letters += max(1, len(text_of(event)))
            if letters > self._stage.max_letters:
                raise HeadstartError(
                    f"{self._host} sent more than {self._stage.max_letters} letters for one "
                    "answer; the rest is left out"
                )
            events.put_nowait(event)
            if reason := why_incomplete(event):
                raise HeadstartError(f"{self._host}: {reason}")
            words += len(getattr(getattr(event, "delta", None), "text", None) or "")
            if words >= self._stage.max_speculative_letters:
                patience.pause()
                await self._follower.verdict()
                patience.renew()

    async def _busy_slots(self) -> int:
        return sum(slot["is_processing"] for slot in await slots_of(self._client))

    def _lets_wind_up(self, task: asyncio.Task[Any]) -> None:
        self._winding_up.add(task)
        task.add_done_callback(self._winding_up.discard)

    async def _locate(self, dropped_url: str | None = None) -> str:
        """Point the client to where the model is now."""
        if self._engine is not None:
            self._client.base_url = await self._engine.ensure_running(dropped_url)
            return self._engine.base_url
        return str(self._client.base_url)

    async def _warm_up(self, context: LLMContext) -> None:
        try:
            await asyncio.to_thread(prepare_to_read_events)
            if self._engine is None:
                await open_connection(self._client, str(self._settings.model))
            else:
                url = await self._locate()
                await cache_prompt(
                    self._client, await self._first_request(context), self._engine, url
                )
        except Exception as error:
            logger.warning(f"{self} is not warmed up: {self._describe(error)}")

    async def _first_request(self, context: LLMContext) -> dict[str, Any]:
        begun = LLMContext(
            messages=[*context.get_messages(), {"role": "user", "content": "Hello."}],
            tools=context.tools,
        )
        return {"model": self._settings.model, **await self._get_llm_invocation_params(begun)}

    @property
    def _host(self) -> str:
        return self._client.base_url.host if self._llama is None else "llama.cpp"

    @property
    def _secrets(self) -> tuple[str | None, str | None]:
        return self._client.api_key, self._client.auth_token

    def _describe(self, error: Exception) -> str:
        line = in_one_line(error, host=self._host, timeout_secs=self._stage.timeout_secs)
        return tidy(line, self._secrets)

    def _classify_error(self, exception: Exception) -> ErrorCategory | None:
        return category_of(exception) or super()._classify_error(exception)
