"""What the voice keeps of an audio context."""

from __future__ import annotations

from pipecat.audio.utils import create_stream_resampler

from headstart.engines.kokoro import SAMPLE_RATE
from headstart.text.clauses import ClauseSplitter


class SpeechContext:
    """How far the text of a context has been cut, and its audio has come, to time its words."""

    def __init__(self) -> None:
        self.splitter = ClauseSplitter()
        self.resampler = create_stream_resampler(quality="MQ", clear_after_secs=None)
        """Of one context, so that what an interruption leaves in it is heard in no other. It keeps
        its state however late the next piece comes, and at most 40 ms of audio with it; of better
        quality it would keep up to 130 ms, which is more than the voice is ahead."""
        self._first_ns: int | None = None
        self._audio_secs = 0.0

    def start(self, now_ns: int) -> float:
        """When audio that is ready now is heard, in seconds from the context's first."""
        if self._first_ns is None:
            self._first_ns = now_ns
        self._audio_secs = max(self._audio_secs, (now_ns - self._first_ns) / 1e9)
        return self._audio_secs

    def begin_playback(self, now_ns: int) -> None:
        """What has been made so far was held, and begins to be heard now."""
        if self._first_ns is not None:
            self._first_ns = now_ns

    def played(self, samples: int) -> None:
        """So many more samples follow."""
        self._audio_secs += samples / SAMPLE_RATE

    def left_secs(self, now_ns: int) -> float:
        """How much of the audio is still to be heard, if it is heard as soon as it can be."""
        return self._audio_secs - (now_ns - (self._first_ns or now_ns)) / 1e9
