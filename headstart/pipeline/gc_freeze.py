"""Keeps full garbage collections out of conversations.

A full collection walks every object of every imported package: 0.1 to 0.25 s here, in which no
audio moves. Nearly all of them are never garbage, so while anybody talks they are frozen
(`gc.freeze`); what becomes garbage meanwhile is found by the collector as ever, or, if it was
frozen, too, when nobody talks any more.
"""

from __future__ import annotations

import gc
import threading

_lock = threading.Lock()
_conversations = 0


def freeze() -> None:
    """A conversation begins; if it is the only one, freeze what there is."""
    global _conversations
    with _lock:
        _conversations += 1
        if _conversations == 1:
            gc.collect()
            gc.freeze()


def release() -> None:
    """A conversation is over; after the last, its objects and all others may be collected."""
    global _conversations
    with _lock:
        _conversations -= 1
        if _conversations == 0:
            gc.unfreeze()
