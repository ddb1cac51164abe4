"""Kokoro on onnxruntime: small, quick to load, a clause at a time."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from headstart.engines.kokoro.backend import Abort, Rendering
from headstart.engines.kokoro.silence import trimmed
from headstart.errors import EngineError

_GAIN = np.float32(1 / 1.5)
"""This export is 1.5 times too loud: its inverse STFT divides by the window's overlap only in
the first frame. `torch.istft` of the same spectrum is the reference."""

_DURATIONS = "/encoder/Clip_output_0"
"""The rounded durations inside the graph, which the export does not give out."""


class OnnxKokoro:
    """Backend: the whole clause in one run, which can be broken off inside."""

    name = "onnx"

    def __init__(self, model: Path, *, threads: int) -> None:
        """Load the export.

        Args:
            model: The `.onnx` file.
            threads: That one run may use.

        Raises:
            EngineError: The file is no Kokoro export that onnxruntime can run.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle workers that spin would take the cores from the other engines.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                model.read_bytes() + _output(_DURATIONS),
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:
            raise EngineError(f"onnxruntime cannot load {model}: {error}") from error
        # One for the run that is wanted, one for the layer that another still has to end.
        self._runs = ThreadPoolExecutor(2, thread_name_prefix="kokoro-onnx")

    def render(
        self,
        tokens: NDArray[np.int64],
        style: NDArray[np.float32],
        *,
        voice: str,
        speed: float,
        pause: int,
        abort: Abort,
    ) -> Rendering | None:
        """See `Backend.render`."""
        feed = {
            "tokens": np.concatenate([[0], tokens, [0]])[None].astype(np.int64),
            "style": style,
            "speed": np.array([speed], np.float32),
        }
        options = onnxruntime.RunOptions()
        unwanted: Future[None] = Future()

        def break_off() -> None:
            options.terminate = True
            unwanted.set_result(None)

        run = self._runs.submit(self._session.run, ["audio", _DURATIONS], feed, options)
        abort.on_request(break_off)
        # onnxruntime ends between two layers, and one of a long clause may take 0.1 s.
        wait((run, unwanted), return_when=FIRST_COMPLETED)
        if abort.requested:
            return None
        try:
            audio, durations = run.result()
        except Exception as error:
            raise EngineError(f"Kokoro failed: {error}") from error
        audio, skipped = trimmed(audio.reshape(-1) * _GAIN, pause)
        return Rendering(durations.reshape(-1).astype(np.int64), skipped, iter((audio,)))

    def close(self) -> None:
        """Release the session; a run under way ends first."""
        self._runs.shutdown()
        self.__dict__.pop("_session", None)


def _output(name: str) -> bytes:
    """Bytes that, appended to an ONNX model, make a float tensor in its graph an output.

    Concatenated protocol buffers merge, so that no model has to be parsed:
    ModelProto.graph (7) { GraphProto.output (12) { name (1), type (2) { tensor (1) { FLOAT }}}}.
    """
    tensor = b"\x0a\x02\x08\x01"
    output = b"\x0a" + bytes([len(name)]) + name.encode() + b"\x12" + bytes([len(tensor)]) + tensor
    graph = b"\x62" + bytes([len(output)]) + output
    return b"\x3a" + bytes([len(graph)]) + graph
