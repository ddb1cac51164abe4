"""Tools that are safe to run early: what they return is kept until anybody may hear of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from loguru import logger
from pipecat.adapters.llm.schemas.direct_function import DirectFunctionWrapper
from pipecat.frames.frames import FunctionCallFromLLM
from pipecat.services.llm_service import (
    FunctionCallParams,
    FunctionCallRegistryItem,
    LLMService,
)


class EarlyTool:
    """A tool's handler; a call that was begun early is not made a second time.

    Nothing of an early call enters the conversation. When its answer has been confirmed, the
    call is made in earnest and given the result at hand. One that failed early is made again.
    """

    def __init__(self, handler: Any) -> None:
        """Stand for a handler, as Pipecat registers them."""
        self._handler = handler
        self._early: dict[str, asyncio.Task[list[Any] | None]] = {}

    @classmethod
    def among(
        cls, functions: dict[str | None, FunctionCallRegistryItem], name: str
    ) -> EarlyTool | None:
        """The handler of that name among those registered, able to begin early from now on."""
        item = functions.get(name)
        if item is None:
            return None
        tool = item.handler if isinstance(item.handler, cls) else cls(item.handler)
        functions[name] = replace(item, handler=tool)
        return tool

    def begin(self, call: FunctionCallFromLLM, service: LLMService[Any]) -> asyncio.Task[Any]:
        """Make the call in a task of the service."""
        reported: list[Any] = []

        async def keep(*args: Any, **kwargs: Any) -> None:
            reported.append((args, kwargs))

        worker = service.pipeline_worker
        params = FunctionCallParams(
            function_name=call.function_name,
            tool_call_id=call.tool_call_id,
            arguments=call.arguments,
            llm=service,
            pipeline_worker=worker,
            context=call.context,
            result_callback=keep,
            app_resources=worker.app_resources,
            worker_runner=worker.worker_runner,
        )

        async def run() -> list[Any] | None:
            try:
                await self._call(params)
            except Exception as error:  # the task manager would keep it to itself
                logger.debug(f"{call.function_name} failed early: {error!r}")
                return None
            return reported

        task = service.create_task(run(), f"early {call.function_name}")
        self._early[call.tool_call_id] = task
        return task

    def give_up(self) -> None:
        """The answer is void, and with it all that was begun early; nobody waits for its end."""
        early, self._early = self._early, {}
        for task in early.values():
            task.cancel()

    async def __call__(self, params: FunctionCallParams) -> None:
        """Make the call in earnest."""
        early = self._early.pop(params.tool_call_id, None)
        if early is not None:
            await asyncio.wait([early])
            reported = None if early.cancelled() else early.result()
            if reported is not None:
                for args, kwargs in reported:
                    await params.result_callback(*args, **kwargs)
                return
        await self._call(params)

    async def _call(self, params: FunctionCallParams) -> None:
        if isinstance(self._handler, DirectFunctionWrapper):
            await self._handler.invoke(args=params.arguments, params=params)
        else:
            await self._handler(params)
