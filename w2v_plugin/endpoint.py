"""When an utterance is over: rules on the silence that a CTC model hears, and optionally a VAD.

Kaldi's rules, with silence measured where CTC says it. Its blanks are everywhere, also inside words
and between them, so one blank means nothing: silence begins after some sure blanks in a row, and
ends with a frame that is clearly none (hysteresis). The encoder goes on over an endpoint: what it
remembers is bounded, and a reset would make the first word of the next utterance a victim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from w2v_plugin.frames import HOP, SAMPLE_RATE


@dataclass(frozen=True)
class EndpointRules:
    """An utterance ends when one of the first three holds; all times in seconds.

    Parameters
    ----------
    nothing_s : float
        Silence, and nothing was said: the utterance is dropped.
    after_word_s : float
        Silence after a word.
    longest_s : float
        Length of the utterance, at the next silence of `pause_s`: never within a word.
    pause_s : float
        See `longest_s`.
    certain, doubtful : float
        Silence begins with posteriors of the blank above the first, and goes on until one is
        below the second.
    least : int
        Frames that are certain blanks before it counts as silence.

    Example
    -------
    >>> EndpointRules(after_word_s=0.6).after_word_s
    0.6
    """

    nothing_s: float = 2.4
    after_word_s: float = 1.0
    longest_s: float = 20.0
    pause_s: float = 0.2
    certain: float = 0.8
    doubtful: float = 0.5
    least: int = 3

    def __post_init__(self) -> None:
        times = (self.nothing_s, self.after_word_s, self.longest_s, self.pause_s)
        if min(times) <= 0 or not 0 < self.doubtful <= self.certain < 1 or self.least < 1:
            raise ValueError(
                f"{self}: expected times above 0, 0 < doubtful <= certain < 1 and least >= 1."
            )


class Endpointer:
    """Finds the ends of utterances in a stream of frames.

    Parameters
    ----------
    rules : EndpointRules
        When an utterance is over.

    Example
    -------
    >>> endpointer = Endpointer(EndpointRules(after_word_s=0.1))
    >>> blanks = [0.0] * 5 + [0.9] * 10
    >>> said = [True] * 5 + [False] * 10
    >>> endpointer.feed(blanks, said)  # after frame 9, and never again without a word
    [10]
    """

    def __init__(self, rules: EndpointRules) -> None:
        self.rules = rules
        self._begin()
        self._certain = 0  # blanks in a row, the last ones
        self._silent = 0  # frames of silence, up to now

    def _begin(self) -> None:
        self._length, self._said = 0, False

    def feed(
        self, blanks: Sequence[float], said: Sequence[bool], speech: bool = False
    ) -> list[int]:
        """Where utterances end: numbers of frames, counted within these.

        Parameters
        ----------
        blanks : sequence of float
            (frames,) posterior of the blank.
        said : sequence of bool
            (frames,) whether the frame says a character.
        speech : bool
            A VAD's opinion of these frames; with speech there is no silence.
        """
        ends = []
        for number, (blank, character) in enumerate(zip(blanks, said, strict=True), start=1):
            self._length += 1
            self._said |= character
            self._hear(blank, speech)
            if self._over():
                ends.append(number)
                if not self._said:  # wait as long again
                    self._certain = self._silent = 0
                self._begin()
        return ends

    def _hear(self, blank: float, speech: bool) -> None:
        rules = self.rules
        self._certain = self._certain + 1 if blank > rules.certain and not speech else 0
        if speech or blank < rules.doubtful:
            self._silent = 0
        elif self._silent:
            self._silent += 1
        elif self._certain >= rules.least:
            self._silent = self._certain

    def _over(self) -> bool:
        rules, silence = self.rules, self._silent * HOP / SAMPLE_RATE
        if not self._said:
            return silence >= rules.nothing_s
        length = self._length * HOP / SAMPLE_RATE
        return silence >= rules.after_word_s or (
            length >= rules.longest_s and silence >= rules.pause_s
        )
