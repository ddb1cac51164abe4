"""The few frames that Headstart adds to Pipecat's."""

from __future__ import annotations

from dataclasses import dataclass

from pipecat.frames.frames import ControlFrame, Frame, InterimTranscriptionFrame, SystemFrame
from pipecat.processors.aggregators.llm_context import LLMContext

PLAYED_AT_NS = "played_at_ns"
"""Key in the `metadata` of an output audio frame: when its first sample was played, in
nanoseconds on the pipeline's clock. Set by transports that know; read by the timeline."""


_ATTEMPT = "attempt"


def mark_attempt(frame: Frame, attempt: int) -> None:
    """Say to which attempt a frame belongs, or on which one it is the verdict.

    Marked are the context that an attempt answers, the first frame of the response, the
    `EagerEndOfTurnCancelFrame` that withdraws it and the `UserStoppedSpeakingFrame` that
    confirms it. Verdicts overtake what they are about; the mark says what that is.
    A frame that has a mark keeps it.
    """
    frame.metadata.setdefault(_ATTEMPT, attempt)


def attempt_of(frame: Frame) -> int | None:
    """The attempt a frame belongs to; None if it has nothing to do with any."""
    attempt: int | None = frame.metadata.get(_ATTEMPT)
    return attempt


@dataclass
class ProgressiveTranscriptionFrame(InterimTranscriptionFrame):
    """What the recogniser believes so far, while the user is still speaking.

    Each one replaces the one before it within a segment (VAD start to VAD stop).

    Parameters:
        confidence: 0..1, of the whole text; None where the recogniser has none.
        stable_text: The leading words on which successive hypotheses agree.
        audio_secs: Length of the segment's audio that the text covers, in seconds.
        behind_secs: Length of the audio that has come since, in seconds.
        ends_turn: Whether the recogniser takes the turn for over; None from one that does not
            predict that.
    """

    confidence: float | None = None
    stable_text: str = ""
    audio_secs: float = 0.0
    behind_secs: float = 0.0
    ends_turn: bool | None = None


@dataclass
class FinalPendingFrame(SystemFrame):
    """The recogniser still works on the final transcript of a segment that has ended.

    It is repeated about twice a second, so that the turn stage does not give up on words that
    are on their way, however long the recogniser's own timeouts and fallbacks take.

    Parameters:
        waited_secs: Time since the oldest segment without its final transcript ended, in
            seconds.
    """

    waited_secs: float


@dataclass
class VoiceFrame(SystemFrame):
    """A voice is heard, or no longer: the VAD's guess, before it is sure enough to say so.

    Parameters:
        heard: Whether the newest window of audio sounds like a voice.
    """

    heard: bool


@dataclass
class AudioGapFrame(SystemFrame):
    """No audio comes any more, for a while at least: the microphone was muted, say.

    What was heard before has nothing to do with what will be heard next: a stage that keeps the
    last moments of audio for the next speech forgets them. Speech that was going on ended with
    the last sample; a `VADUserStoppedSpeakingFrame` follows.
    """


@dataclass
class AnswerCutFrame(SystemFrame):
    """What was heard of an interrupted answer is in the context. Goes upstream.

    Parameters:
        interruption: Id of the `InterruptionFrame` that cut it.
    """

    interruption: int


@dataclass
class AnswerOverFrame(SystemFrame):
    """Nothing more comes of an answer, heard or not. Goes upstream."""


@dataclass
class WarmUpFrame(ControlFrame):
    """Sent once through a new pipeline, before any audio.

    A stage does on it what its first turn would otherwise pay for (the language model
    caches its prompt) and passes it on; the session is open when it has reached the end.

    Parameters:
        context: The conversation as it begins, with the tools if there are any.
    """

    context: LLMContext


@dataclass
class SpeculationFiredFrame(SystemFrame):
    """An answer has been begun before the turn has ended.

    Parameters:
        attempt: Its number within the conversation, from 1.
        text: The words of the whole turn that it answers.
        confidence: 0..1, of those words; None where the recogniser has none.
        reason: Why now.
    """

    attempt: int
    text: str
    confidence: float | None
    reason: str


@dataclass
class SpeculationAwaitedFrame(SystemFrame):
    """The turn has ended on the words of an attempt, but for the silence that proves it.

    The user waits for the answer from now on, unless they go on speaking.

    Parameters:
        attempt: Its number within the conversation.
    """

    attempt: int


@dataclass
class SpeculationEndedFrame(SystemFrame):
    """What has become of it. Follows every `SpeculationFiredFrame` exactly once.

    Parameters:
        attempt: Its number within the conversation.
        committed: Whether it has become the answer of the turn.
        reason: Why, or why not.
        waited_secs: How much earlier the turn would have ended without the attempt: so long it
            waited for enough silence to let the answer out.
    """

    attempt: int
    committed: bool
    reason: str
    waited_secs: float = 0.0


@dataclass
class SpeculationCostFrame(SystemFrame):
    """What the language model's answer in an attempt has cost.

    Parameters:
        attempt: Its number within the conversation.
        input_tokens: Of the language model's request.
        output_tokens: Generated, as far as they are known of one that was cut off.
    """

    attempt: int
    input_tokens: int
    output_tokens: int


@dataclass
class SpeculationDroppedFrame(SystemFrame):
    """Speech that was made for nothing has been thrown away.

    Parameters:
        audio_secs: Its length, in seconds.
    """

    audio_secs: float
