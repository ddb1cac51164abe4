"""What Deepgram says, as far as it is used here: the one door at which it is checked.

The SDK's types demand much that nobody here reads, and the SDK does not check them. These name
only what is read, and hold what they promise. Fields and kinds of message that are not known
are ignored, since Deepgram may add some at any time.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from headstart.errors import HeadstartError

Secs = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, AfterValidator(lambda value: min(max(value, 0.0), 1.0))]
"""0..1; rounding may carry a provider's a little beyond."""


class NotUnderstoodError(HeadstartError):
    """A message that does not hold what it should. Says which part, never the user's words."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False, from_attributes=True)


class SpokenWord(_Part):
    """A word of a prerecorded answer."""

    word: str
    punctuated_word: str | None = None
    confidence: Probability = 0.0

    @property
    def text(self) -> str:
        """As it is to be read."""
        return self.punctuated_word or self.word


class StreamedWord(SpokenWord):
    """A word of a stream, and where it is."""

    start: Secs
    end: Secs


class StreamedText(_Part):
    """One alternative of `Results`."""

    transcript: str
    confidence: Probability = 0.0
    words: tuple[StreamedWord, ...] = ()


class StreamedChannel(_Part):
    """A channel of `Results`."""

    alternatives: tuple[StreamedText, ...]


class Results(_Part):
    """What `/v1/listen` has recognised."""

    type: Literal["Results"]
    start: Secs
    duration: Secs
    is_final: bool | None = None
    from_finalize: bool | None = None
    channel: StreamedChannel


class FluxWord(_Part):
    """A word of a Flux turn."""

    word: str
    confidence: Probability
    start: Secs | None = None
    end: Secs | None = None


class TurnInfo(_Part):
    """How a Flux turn stands."""

    type: Literal["TurnInfo"]
    event: str
    audio_window_start: Secs
    audio_window_end: Secs
    transcript: str
    words: tuple[FluxWord, ...] = ()


class Connected(_Part):
    """Flux's greeting."""

    type: Literal["Connected"]


class Trouble(_Part):
    """An error or a warning."""

    type: Literal["Error", "Warning"]
    code: str | None = None
    description: str | None = None

    @property
    def line(self) -> str:
        """Both in one line."""
        return ": ".join(" ".join(part.split()) for part in (self.code, self.description) if part)


Message = Results | TurnInfo | Connected | Trouble

_KINDS: dict[object, type[Message]] = {
    "Results": Results,
    "TurnInfo": TurnInfo,
    "Connected": Connected,
    "Error": Trouble,
    "Warning": Trouble,
}


def read(raw: str | bytes) -> Message | None:
    """A message of a stream; None if it is of a kind that is not used here.

    Raises:
        NotUnderstoodError: It is no JSON, has no type, or does not hold what its type should.
    """
    try:
        message = json.loads(raw)
        kind = _KINDS.get(message["type"])
        return None if kind is None else kind.model_validate(message)
    except ValidationError as error:
        raise _not_understood(message["type"], error) from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise NotUnderstoodError("a message is not understood: no JSON with a type") from None


class PrerecordedText(_Part):
    """One alternative of a prerecorded answer."""

    transcript: str
    confidence: Probability = 0.0
    words: tuple[SpokenWord, ...] | None = None


class _PrerecordedChannel(_Part):
    alternatives: Annotated[tuple[PrerecordedText, ...], Field(min_length=1)]


class _PrerecordedResults(_Part):
    channels: Annotated[tuple[_PrerecordedChannel, ...], Field(min_length=1)]


class _Prerecorded(_Part):
    results: _PrerecordedResults


def read_prerecorded(answer: Any) -> PrerecordedText:
    """The best alternative in an answer of the prerecorded API, given as the SDK's object.

    Raises:
        NotUnderstoodError: There is none.
    """
    try:
        return _Prerecorded.model_validate(answer).results.channels[0].alternatives[0]
    except ValidationError as error:
        raise _not_understood("the answer", error) from None


def _not_understood(what: str, error: ValidationError) -> NotUnderstoodError:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"])) or "all of it"
    return NotUnderstoodError(f"{what} is not understood: {where}: {first['msg']}")
