"""The child process of the llama engine: llama.cpp's HTTP server, and nothing else.

Run as a script, so that it imports xllamacpp only. It reads one JSON line of options from its
standard input, answers on its standard output with one line, `{"url": ...}` or `{"error": ...}`,
and ends when its standard input closes: a parent that is killed takes it along.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

_PROMPT_CACHE_MIB = 128
"""Bound of the prompts that llama.cpp keeps beside its slots, for conversations that take turns
on one slot. Its own default is 8 GiB."""

_NICENESS = 3
"""Once a clause is written, the voice is what its user waits for; but with two sessions, the other
one's user waits for words. With 10, the answers of two sessions at once came after 1.73 and 1.77 s
(p50, trigger on and off, 16 turns each), with 3 after 1.31 and 1.55 s; those of one session after
0.89 and 0.98 s, with 3 after 0.89 and 0.94 s."""

_BATCH_TOKENS = 64
"""A request that was given up frees its slot after one batch of its prompt at the latest."""


def _serve(options: dict[str, Any]) -> Any:
    """Load the model and start the server's threads, which live as long as what is returned."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options["model"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # any free one
    params.api_keys = [options["api_key"]]
    params.n_parallel = options["slots"]
    params.n_ctx = options["context_tokens"] * options["slots"]
    params.n_batch = _BATCH_TOKENS
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.cpuparams.n_threads = options["threads"]
    params.cpuparams_batch.n_threads = options["threads"]
    params.fit_params = False  # the context is as asked for, whatever memory is free
    params.ui = False
    params.endpoint_slots = True
    params.verbosity = 2  # warnings and errors
    return xllamacpp.Server(params)


def main() -> None:
    """Serve until standard input closes."""
    # The parent decides when it is over; the terminal's Ctrl-C goes to the parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not be taken for the answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if hasattr(os, "nice"):
        # The model writes several times faster than anybody speaks; the voice has no such lead.
        os.nice(_NICENESS)
    options = json.loads(sys.stdin.readline())
    try:
        server = _serve(options)
    except Exception as error:
        server = None
        answer = {"error": " ".join(str(error).split())}
    else:
        answer = {"url": str(server.listening_address)}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    if server is not None:
        sys.stdin.read()
    os._exit(0)  # llama.cpp's own way out waits for the responses under way


if __name__ == "__main__":
    main()
