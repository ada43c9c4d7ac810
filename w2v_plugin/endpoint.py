"""When an utterance is over: rules on the silence that a CTC model hears, and optionally a VAD.

Kaldi's rules, with silence measured where CTC says it. Its blanks are everywhere, also inside words
and between them, so one blank means nothing: silence begins after some sure frames in a row, and
ends with a frame that is clearly none (hysteresis). Word boundaries are silence, too: models say
some of them in a row where a pause begins. The encoder goes on over an endpoint: what it remembers
is bounded, and a reset would make the first word of the next utterance a victim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from w2v_plugin.frames import HOP, SAMPLE_RATE

VAD_ON, VAD_OFF = 0.5, 0.35  # speech begins, and goes on


@dataclass(frozen=True)
class EndpointRules:
    """An utterance ends when one of the first three holds; all times in seconds.

    Whatever is heard, decoders need not remember more than twice `longest_s`: then an utterance
    ends with the next frame between two words, silent or not.

    Parameters
    ----------
    nothing_s : float
        Silence, and nothing was said: the utterance is dropped.
    after_word_s : float
        Silence after a word.
    longest_s : float
        Length of the utterance, at the next silence of `pause_s` after a whole word: words have
        blanks of that length inside.
    pause_s : float
        See `longest_s`.
    certain, doubtful : float
        Silence begins where the posterior that no character is said is above the first, and goes
        on until it is below the second.
    least : int
        Frames that are certain before it counts as silence.

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
    >>> quiet = [0.0] * 5 + [0.9] * 10
    >>> said, gaps = [True] * 5 + [False] * 10, [False] * 15
    >>> endpointer.feed(quiet, said, gaps)  # after frame 9, and never again without a word
    [10]
    """

    def __init__(self, rules: EndpointRules) -> None:
        self.rules = rules
        self._begin()
        self._certain = 0  # frames in a row, the last ones
        self._silent = 0  # frames of silence, up to now
        self._speech = False  # the VAD's opinion

    def _begin(self) -> None:
        self._length, self._said, self._within = 0, False, False  # a word that may go on

    def feed(
        self,
        quiet: Sequence[float],
        said: Sequence[bool],
        gaps: Sequence[bool],
        speech: float = 0.0,
    ) -> list[int]:
        """Where utterances end: numbers of frames, counted within these.

        Parameters
        ----------
        quiet : sequence of float
            (frames,) posterior that no character is said.
        said, gaps : sequence of bool
            (frames,) whether the frame says a character, and whether it is between two words.
        speech : float
            A VAD's probability of speech in these frames. Speech begins with 0.5 and goes on down
            to 0.35; with speech there is no silence.
        """
        self._speech = speech >= (VAD_OFF if self._speech else VAD_ON)
        ends = []
        for number, (p, character, gap) in enumerate(zip(quiet, said, gaps, strict=True), start=1):
            self._length += 1
            self._said |= character
            self._within = character or (self._within and not gap)
            self._hear(p, character or self._speech)
            if self._over():
                ends.append(number)
                if not self._said:  # wait as long again
                    self._certain = self._silent = 0
                self._begin()
        return ends

    def _hear(self, quiet: float, sound: bool) -> None:
        rules = self.rules
        self._certain = self._certain + 1 if quiet > rules.certain and not sound else 0
        if sound or quiet < rules.doubtful:
            self._silent = 0
        elif self._silent:
            self._silent += 1
        elif self._certain >= rules.least:
            self._silent = self._certain

    def _over(self) -> bool:
        rules = self.rules
        silence, length = self._silent * HOP / SAMPLE_RATE, self._length * HOP / SAMPLE_RATE
        if length >= 2 * rules.longest_s and not self._within:
            return True
        if not self._said:
            return silence >= rules.nothing_s
        pause = length >= rules.longest_s and silence >= rules.pause_s and not self._within
        return pause or silence >= rules.after_word_s
