"""A language model on this machine: llama.cpp in a child process, behind Anthropic's protocol."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl

from loguru import logger

from headstart import assets
from headstart.engines.hub import Engine
from headstart.engines.llama_prompts import PromptCache
from headstart.engines.llama_slots import Slots
from headstart.engines.workload import Workload
from headstart.errors import AssetError, EngineError, UsageError

SCHEME = "llama://"

_SERVER = Path(__file__).with_name("llama_server.py")
_MODELS = {"smollm2135m": "smollm2-135m", "smollm2": "smollm2-135m"}
"""Assets by the names they may go by, in lower case and without punctuation."""

_LOAD_SECS = 120.0
_CLOSE_SECS = 0.5
_RESTARTS_PER_MINUTE = 3
_DEATH_SECS = 0.5
"""How long a process whose connection dropped may take to be seen dead."""


@dataclass(frozen=True)
class LlamaOptions:
    """What to serve, and how."""

    model: str = "smollm2-135m"
    """Name of an asset, or path of a .gguf file."""
    context_tokens: int = 2048
    """Longest conversation, answer included."""
    slots: int = 2
    """Answers written at the same time; each holds a context of its own in memory."""
    threads: int = max(1, min(4, (os.cpu_count() or 2) // 2))
    """Half the cores by default, 4 at most. The threads wait for each other at every layer, so
    without a core to spare they are slower than one: 5 tokens a second instead of 40, measured
    with two threads on two busy cores."""

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read `llama://SmolLM2-135M`, `llama:///path/of.gguf`, either with `?slots=4&threads=2`.

        Raises:
            UsageError: No such model or option.
        """
        name, _, query = url.removeprefix(SCHEME).partition("?")
        options: dict[str, int] = {}
        known = [field.name for field in fields(cls) if field.name != "model"]
        for key, value in parse_qsl(query, keep_blank_values=True):
            if key not in known or not value.isdecimal() or int(value) < 1:
                raise UsageError(f"{url}: after '?' stand {', '.join(known)}, each a whole number")
            options[key] = int(value)
        if name.casefold().endswith(".gguf"):
            return cls(model=str(Path(name).expanduser()), **options)
        plain = re.sub(r"[^a-z0-9]", "", name.casefold()).removesuffix("instruct")
        if plain not in _MODELS:
            raise UsageError(
                f"unknown model '{name}' in {url}: there are "
                f"{', '.join(sorted(set(_MODELS.values())))}, and llama:///PATH.gguf for a file"
            )
        return cls(model=_MODELS[plain], **options)

    @property
    def asset(self) -> str | None:
        """The asset that is needed; None where a file is named."""
        return None if self.model.casefold().endswith(".gguf") else self.model


class LlamaEngine(Engine):
    """Supervises the child process; requests go to it over HTTP on the loopback interface.

    The process takes no signal from the terminal, ends with this one however that ends, and is
    restarted, at another address, by the next use after its death.
    """

    def __init__(self, model: Path, options: LlamaOptions) -> None:
        """Take note of what to serve; `load` starts it."""
        self.options = options
        self.api_key = secrets.token_hex(16)
        """Other users and pages on this machine do not have it."""
        self.workload = Workload()
        """What it has been asked, by all sessions."""
        self.slots = Slots()
        self.prompts = PromptCache(self.slots)
        self._model = model
        self._restarting = threading.Lock()
        self._closing = threading.Event()
        self._restarts: deque[float] = deque(maxlen=_RESTARTS_PER_MINUTE)
        self._process: subprocess.Popen[str] | None = None
        self._log: deque[str] = deque(maxlen=50)
        self._log_reader: threading.Thread | None = None
        self._url = ""

    @classmethod
    def load(cls, options: LlamaOptions) -> Self:
        """Start the process and wait until it serves.

        Raises:
            AssetError: Weights are missing.
            EngineError: The file is no model that llama.cpp can read, or loading took too long.
        """
        engine = cls(_weights(options), options)
        engine._start()
        return engine

    @property
    def base_url(self) -> str:
        """Where it was last seen serving, as `http://127.0.0.1:PORT`."""
        return self._url

    @property
    def pid(self) -> int | None:
        """The child process, or None when it is dead."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    async def ensure_running(self, dropped_url: str | None = None) -> str:
        """Where it serves now; restarts it if it is dead.

        Args:
            dropped_url: An address that has just dropped a connection, for its process may
                still look alive.

        Raises:
            EngineError: It is closed, does not start, or dies again and again.
        """
        if dropped_url is None and self.pid is not None and not self._restarting.locked():
            return self._url
        running: Future[str] = Future()

        def restart() -> None:
            try:
                running.set_result(self._restart(dropped_url))
            except BaseException as error:  # delivered to whoever awaits
                running.set_exception(error)

        # A daemon thread, not the loop's executor: Ctrl-C must not wait for a load.
        threading.Thread(target=restart, name="llama-restart", daemon=True).start()
        return await asyncio.shield(asyncio.wrap_future(running))

    def close(self) -> None:
        """End the process."""
        self._closing.set()
        if self._process is not None:
            _end(self._process)

    def _restart(self, dropped_url: str | None) -> str:
        with self._restarting:
            process = self._process
            assert process is not None
            if dropped_url == self._url:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_DEATH_SECS)
            if self._closing.is_set():
                raise EngineError("llama.cpp has been closed")
            if process.poll() is None:
                return self._url
            died = self._last_words(process)
            _end(process)  # what is left of it is our end of its pipe
            now = time.monotonic()
            recent = sum(now - at < 60 for at in self._restarts)
            if recent == _RESTARTS_PER_MINUTE:
                raise EngineError(f"{died}; it was restarted {recent} times within a minute")
            logger.warning(f"{died}; restarting it")
            self._restarts.append(now)
            self._closing.wait(0.5 * recent)
            self._start()
            return self._url

    def _start(self) -> None:
        self._log.clear()
        process = subprocess.Popen(
            # -P: the folder of the script must not shadow modules of the standard library
            [sys.executable, "-P", str(_SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._process = process
        self._log_reader = threading.Thread(
            target=self._read_log, args=(process,), name="llama-log", daemon=True
        )
        self._log_reader.start()
        # A close() that came too early to see this process has set the flag by now.
        too_late = threading.Timer(0 if self._closing.is_set() else _LOAD_SECS, process.kill)
        too_late.daemon = True
        too_late.start()
        try:
            url = self._await_url(process)
        finally:
            too_late.cancel()
        if self._closing.is_set():
            _end(process)
            raise EngineError("llama.cpp has been closed")
        self._url = url

    def _await_url(self, process: subprocess.Popen[str]) -> str:
        assert process.stdin is not None and process.stdout is not None
        options = {
            "model": str(self._model),
            "api_key": self.api_key,
            "slots": self.options.slots,
            "context_tokens": self.options.context_tokens,
            "threads": self.options.threads,
        }
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(options) + "\n")
            process.stdin.flush()
        with process.stdout:
            line = process.stdout.readline()
        if not line:
            _end(process)
            raise EngineError(f"{self._last_words(process)} while it loaded {self._model}")
        answer = json.loads(line)
        if "url" not in answer:
            _end(process)
            raise EngineError(f"{self._model} did not load: {self._cause() or answer['error']}")
        return str(answer["url"])

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self._log.append(line.strip())
                logger.debug(f"llama.cpp: {line.strip()}")

    def _last_words(self, process: subprocess.Popen[str]) -> str:
        """How the process ended, in one line."""
        code = process.returncode
        how = f"was killed by {_signal(-code)}" if code < 0 else f"ended with code {code}"
        cause = self._cause()
        return f"llama.cpp {how}" + (f" ({cause})" if cause else "")

    def _cause(self) -> str:
        """The first error that a dead process logged: those that follow say the same vaguely."""
        if self._log_reader is not None:
            self._log_reader.join(_DEATH_SECS)
        for line in list(self._log):
            if match := re.match(r"[\d.]+ E \s*(.+)", line):
                return match[1].rstrip(".")
        return ""


def _weights(options: LlamaOptions) -> Path:
    if options.asset is None:
        file = Path(options.model)
        if not file.is_file():
            raise AssetError(f"no model file at {file}")
        return file
    found = sorted(assets.path(options.asset).glob("*.gguf"))
    if not found:
        raise AssetError(f"no .gguf file in {assets.path(options.asset)}")
    return found[0]


def _end(process: subprocess.Popen[str]) -> None:
    """Closing its standard input ends it at once; a process that hangs is killed."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(_CLOSE_SECS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
