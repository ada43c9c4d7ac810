"""Which words and characters are wrong: alignments, counts and error rates of a whole test set.

references, hypotheses ─ score ─► Scored: an alignment and counts for every utterance
    ─ total ─► error_rate (WER, CER), mer, wil          of all counts together,
    ─ confusions ─► what is taken for what              never means of means

jiwer aligns. Texts come normalized; a word is what spaces separate, and a character is a code
point, spaces between words among them, as jiwer and SpeechBrain's `ErrorRateStats` count.
Surprising: an utterance without reference words has no error rate of its own, but its insertions
count in the total.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jiwer
import numpy as np

METRICS = {"WER": "words", "CER": "characters"}  # error rates, and what they count
UNITS = tuple(METRICS.values())
CUTS = {
    "words": jiwer.ReduceToListOfListOfWords(),
    "characters": jiwer.ReduceToListOfListOfChars(),
}
# as Unicode's names of their characters begin: scripts that write no space between words
SPACELESS = ("CJK ", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


class Step(NamedTuple):
    """One place of an alignment: a word or character of each side, None where there is none."""

    reference: str | None
    hypothesis: str | None

    @property
    def kind(self) -> str:
        """hit, substitution, deletion or insertion."""
        if self.reference == self.hypothesis:
            return "hit"
        if self.reference is None:
            return "insertion"
        return "deletion" if self.hypothesis is None else "substitution"


Alignment = Sequence[Step]


@dataclass(frozen=True)
class Counts:
    """What became of the words, or characters, of a reference; add them up with `+`.

    Example
    -------
    >>> counts = Counts(hits=3, substitutions=1) + Counts(insertions=1)
    >>> counts.error_rate, counts.mer, round(counts.wil, 2)
    (50.0, 40.0, 55.0)
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference(self) -> int:
        """Length of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def hypothesis(self) -> int:
        """Length of the hypothesis."""
        return self.hits + self.substitutions + self.insertions

    @property
    def error_rate(self) -> float:
        """WER or CER in percent: errors by the length of the reference; NaN if that is 0."""
        return 100 * self.errors / self.reference if self.reference else float("nan")

    @property
    def mer(self) -> float:
        """Match error rate in percent: the share of the alignment that is wrong, 100 at most.

        Morris, Maier and Green, "From WER and RIL to MER and WIL", Interspeech 2004.
        """
        return 100 * self.errors / max(self.hits + self.errors, 1)

    @property
    def wil(self) -> float:
        """Word information lost in percent (the same paper, its approximation)."""
        if not (self.reference and self.hypothesis):
            return 100.0 if self.errors else 0.0
        return 100 - 100 * (self.hits / self.reference) * (self.hits / self.hypothesis)


@dataclass(frozen=True)
class Scored:
    """Alignments and counts, one per utterance; see `score`."""

    alignments: list[Alignment]
    counts: list[Counts]

    @property
    def total(self) -> Counts:
        """Of all utterances together."""
        return sum(self.counts, Counts())

    @property
    def array(self) -> np.ndarray:
        """(utterances, 2): errors, and length of the reference."""
        return np.array([(c.errors, c.reference) for c in self.counts], dtype=np.int64)


def score(references: Sequence[str], hypotheses: Sequence[str], unit: str = "words") -> Scored:
    """Align every hypothesis with its reference, with as few errors as possible.

    Parameters
    ----------
    references, hypotheses : sequence of str
        (utterances,) normalized in the same way; either may be empty.
    unit : {"words", "characters"}
        What is compared.

    Example
    -------
    >>> scored = score(["one two three", ""], ["one to three", "uh"])
    >>> scored.total, scored.alignments[0][1].kind
    (Counts(hits=2, substitutions=1, deletions=0, insertions=1), 'substitution')
    """
    if not references:
        return Scored([], [])
    cut = jiwer.Compose([CUTS[unit]])
    found = jiwer.process_words([*references], [*hypotheses], cut, cut)
    sides = zip(found.references, found.hypotheses, found.alignments, strict=True)
    alignments = [_steps(*side) for side in sides]
    return Scored(alignments, [_counts(alignment) for alignment in alignments])


def confusions(scored: Scored) -> dict[str, Counter[tuple[str | None, str | None]]]:
    """How often which word (character) was taken for which, by kind of error.

    Example
    -------
    >>> found = confusions(score(["a b", "a"], ["x b c", "x"]))
    >>> found["substitution"].most_common(1), found["insertion"].most_common(1)
    ([(('a', 'x'), 2)], [((None, 'c'), 1)])
    """
    found: dict[str, Counter[tuple[str | None, str | None]]] = {
        kind: Counter() for kind in ("substitution", "deletion", "insertion")
    }
    for alignment in scored.alignments:
        for step in alignment:
            if step.kind != "hit":
                found[step.kind][step.reference, step.hypothesis] += 1
    return found


def spaceless(texts: Iterable[str]) -> bool:
    """Whether most letters are of scripts that do not write words, so that the CER says more.

    Example
    -------
    >>> spaceless(["今日はいい天気です"]), spaceless(["a fine day"])
    (True, False)
    """
    often = Counter(character for text in texts for character in text if character.isalpha())
    without = sum(
        n for character, n in often.items() if unicodedata.name(character, "").startswith(SPACELESS)
    )
    return 2 * without > often.total()


def _steps(reference: list[str], hypothesis: list[str], chunks: Iterable) -> Alignment:
    steps: list[Step] = []
    for chunk in chunks:
        left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            steps += [Step(token, None) for token in left]
        elif chunk.type == "insert":
            steps += [Step(None, token) for token in right]
        else:
            steps += map(Step, left, right)
    return steps


def _counts(alignment: Alignment) -> Counts:
    often = Counter(step.kind for step in alignment)
    return Counts(often["hit"], often["substitution"], often["deletion"], often["insertion"])
