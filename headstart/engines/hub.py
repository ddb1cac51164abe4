"""One engine a model a process: loaded once, off the event loop, shared by every session."""

from __future__ import annotations

import asyncio
import atexit
import threading
from abc import ABC, abstractmethod
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from headstart.errors import EngineError

E = TypeVar("E", bound="Engine")


class Engine(ABC):
    """A loaded model. Knows neither frames nor sessions."""

    @classmethod
    @abstractmethod
    def load(cls, options: Any) -> Self:
        """Load and warm up the model. Blocks; the hub calls it in a thread of its own.

        Args:
            options: A frozen (hashable) options object; equal options share one engine.

        Raises:
            AssetError: Weights are missing.
            EngineError: The model did not load.
        """

    @abstractmethod
    def close(self) -> None:
        """Release threads, memory and child processes. May be called twice."""


class EngineHub:
    """The engines of a process, by class and options.

    Belongs to no event loop: sessions on several loops share the same engines.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loading: dict[tuple[type[Engine], Hashable], Future[Engine]] = {}
        self._closed = False

    async def get(self, engine: type[E], options: Hashable) -> E:
        """The engine of this class with these options, loaded on first use.

        Callers that come while it loads wait for the same load. A load that fails is
        forgotten, so that the next caller tries again.

        Raises:
            AssetError: Weights are missing.
            EngineError: The model did not load, or the hub is closed.
        """
        key = (engine, options)
        with self._lock:
            if self._closed:
                raise EngineError("the engines of this process have been closed")
            future = self._loading.get(key)
            if future is None:
                future = self._loading[key] = Future()
                # A daemon thread, not the loop's executor: Ctrl-C must not wait for a load.
                threading.Thread(
                    target=self._load,
                    args=(key, future),
                    name=f"load-{engine.__name__}",
                    daemon=True,
                ).start()
        loaded = await asyncio.shield(asyncio.wrap_future(future))
        assert isinstance(loaded, engine)
        return loaded

    def loaded(self) -> list[Engine]:
        """Every engine that is loaded now, oldest first."""
        with self._lock:
            done = [future for future in self._loading.values() if future.done()]
        return [future.result() for future in done if future.exception() is None]

    def close(self) -> None:
        """Close every engine, newest first; loads under way are closed when they end."""
        with self._lock:
            self._closed = True
            engines = [future for future in self._loading.values() if future.done()]
            self._loading.clear()
        for future in reversed(engines):
            if future.exception() is None:
                future.result().close()

    def _load(self, key: tuple[type[Engine], Hashable], future: Future[Engine]) -> None:
        engine, options = key
        try:
            loaded = engine.load(options)
        except BaseException as error:  # delivered to whoever waits, whatever it is
            with self._lock:
                self._loading.pop(key, None)
            future.set_exception(error)
            return
        with self._lock:
            abandoned = self._closed
        if abandoned:
            loaded.close()
            future.set_exception(EngineError("the engines of this process have been closed"))
        else:
            future.set_result(loaded)


shared = EngineHub()
"""The engines of this process."""

atexit.register(shared.close)
