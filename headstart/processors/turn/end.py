"""Decides when the user's turn has ended; no I/O and no clock: it is told what passes."""

from __future__ import annotations

from enum import StrEnum

_LATE_WORDS_SECS = 0.2
"""Late words may be followed by more, and what they interrupt has to come to rest."""

_LONGEST_PENDING_SECS = 30.0
"""After so long a final transcript is given up, even if the recogniser still promises it."""


class Ending(StrEnum):
    """Why a turn has ended."""

    COMPLETE = "complete"
    """The speaker has finished, as far as one can hear, and every word is there."""
    SILENCE = "silence"
    """It sounded unfinished, but nothing more came for long enough."""
    NO_WORDS = "no words"
    """There was a sound, but nothing was said."""
    MISSING_TRANSCRIPT = "missing transcript"
    """The recogniser still owes words, but has been given long enough."""


class TurnEnd:
    """A turn ends when the user is quiet, every word is there, and they sound finished.

    A turn may have several segments (VAD start to VAD stop), each of which the recogniser
    answers with one final transcript, in order, though it may come much later: when the user
    already speaks again. Such a transcript is one fewer to wait for, but what ends a turn is
    only what follows the last stop: the verdict on it, the silence, and the last final owed.

    Each input returns why the turn ends now, or None. Deciding does not end the turn: whoever
    acts on it reports `turn_stopped`.
    """

    def __init__(self, *, threshold: float, silence_secs: float, final_timeout_secs: float) -> None:
        """Begin between two turns.

        Args:
            threshold: Probability from which a verdict says that they sound finished. 0: no
                verdicts will come, and every stop sounds finished.
            silence_secs: Silence that ends the turn whatever it sounded like. The nearer a
                verdict is to the threshold, the less is waited for.
            final_timeout_secs: Silence after which a final transcript is no longer waited for,
                unless the recogniser says that it is still being made (`final_pending`).
        """
        self._threshold = threshold
        self._silence_secs = silence_secs
        self._final_timeout_secs = final_timeout_secs
        self._give_up_secs = final_timeout_secs
        self._in_turn = False
        self._speaking = False
        self._stops = 0
        self._outstanding = 0
        self._words = False
        self._stopped = False
        self._patience_secs = silence_secs
        self._silent_secs = 0.0
        self._silent_audio_secs = 0.0
        self._voice_heard = False
        self._gave_up = False

    @property
    def in_turn(self) -> bool:
        """Whether a turn is going on."""
        return self._in_turn

    @property
    def stops(self) -> int:
        """The number of the last VAD stop, from 1."""
        return self._stops

    @property
    def silent_secs(self) -> float:
        """How long the user has been silent."""
        return self._silent_secs

    @property
    def voice_heard(self) -> bool:
        """Whether a voice seems to begin again, though the VAD is not sure of it."""
        return self._voice_heard

    @property
    def due(self) -> Ending | None:
        """Why the turn may end now, or None."""
        return self._decide()

    def turn_started(self) -> None:
        """A turn has begun."""
        self._in_turn = True
        self._words = False
        self._forget_stop()

    def begun_by_words(self) -> None:
        """The turn is one of words that came when theirs was over: nobody speaks any more."""
        if not self._speaking:
            self._stopped = True
            self._patience_secs = _LATE_WORDS_SECS

    def turn_stopped(self) -> None:
        """The turn has ended, for a reason of ours or of somebody else."""
        self._in_turn = False
        self._forget_stop()

    def vad_started(self) -> None:
        """The user speaks (again): nothing said before counts as the end."""
        self._speaking = True
        self._forget_stop()

    def voice(self, *, heard: bool) -> None:
        """The VAD's guess, before it is sure: a voice begins, or what did was none."""
        self._voice_heard = heard

    def vad_stopped(self, stop_secs: float) -> Ending | None:
        """The user has been silent for `stop_secs`."""
        if self._speaking:
            self._speaking = self._voice_heard = False
            self._stopped = True
            self._stops += 1
            self._outstanding += 1
            self._silent_secs = self._silent_audio_secs = stop_secs
            self._patience_secs = self._silence_secs if self._threshold else 0.0
        return self._decide()

    def transcript(self, text: str, *, final: bool) -> Ending | None:
        """Words came; if final, they are all there is of the oldest segment without a final."""
        self._words = self._words or bool(text.strip())
        if final:
            self._outstanding = max(0, self._outstanding - 1)
        return self._decide()

    def final_pending(self, waited_secs: float) -> bool:
        """A final transcript is still being made; the wait for it begins anew.

        Args:
            waited_secs: How long it has been in the making.

        Returns:
            Whether it is waited for.
        """
        if waited_secs >= _LONGEST_PENDING_SECS:
            return False
        self._give_up_secs = self._silent_secs + self._final_timeout_secs
        return True

    def verdict(self, stop: int, probability: float) -> Ending | None:
        """How likely it is, 0..1, that the user was finished at stop number `stop`."""
        if stop == self._stops and self._stopped:
            doubt = max(0.0, 1 - probability / self._threshold)
            self._patience_secs = self._silence_secs * doubt
        return self._decide()

    def silent(self, secs: float) -> Ending | None:
        """Audio of this length passed without speech."""
        self._silent_audio_secs += secs
        return self.silent_for(self._silent_audio_secs)

    def silent_for(self, secs: float) -> Ending | None:
        """The user has been silent for so long since the last stop, in all.

        That is told where no audio comes. Audio that was only late, and comes after all, is the
        same silence, and does not count twice.
        """
        if self._stopped:
            self._silent_secs = max(self._silent_secs, secs)
            if self._outstanding and self._silent_secs >= self._give_up_secs:
                self._outstanding = 0
                self._gave_up = True
        return self._decide()

    def _forget_stop(self) -> None:
        self._stopped = False
        self._patience_secs = self._silence_secs
        self._silent_secs = self._silent_audio_secs = 0.0
        self._give_up_secs = self._final_timeout_secs
        self._gave_up = False

    def _decide(self) -> Ending | None:
        if not self._in_turn or not self._stopped or self._outstanding:
            return None
        if self._gave_up:
            return Ending.MISSING_TRANSCRIPT
        if not self._words:
            return Ending.NO_WORDS
        if self._patience_secs == 0:
            return Ending.COMPLETE
        if self._silent_secs >= self._patience_secs:
            return Ending.SILENCE
        return None
