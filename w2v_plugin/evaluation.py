"""A test set and what systems made of it: all figures that a paper reports.

References ─┐
Answers of every system ─┴ normalized alike ─ scoring, significance ─► Evaluation.report

Nothing is dropped. An utterance without an answer counts as all its words deleted, characters that
a system has no symbol for as errors, and words said into an empty reference as insertions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from w2v_plugin.errors import BadManifest
from w2v_plugin.hypotheses import Reference
from w2v_plugin.scoring import METRICS, UNITS, Counts, Scored, confusions, score, spaceless
from w2v_plugin.significance import GOOD, ends, intervals, mapsswe
from w2v_plugin.text import CharVocabulary, normalize_text

SHOWN = 20  # confusions of each kind
DECIMALS = 6  # of what reports round to fewer
BINS = 5  # of utterances by length, with about as many each


@dataclass(frozen=True)
class Answers:
    """What one system said to a test set.

    Parameters
    ----------
    system : str
        Its name.
    texts : mapping of str to str
        By ID of the utterance; those that lack were not understood.
    vocabulary : CharVocabulary, optional
        What it can say; not known of texts from elsewhere.
    failed : mapping of str to str
        Why there is no answer, by ID.
    about : mapping of str to Any
        Where it comes from and how it decoded, for the report.
    """

    system: str
    texts: Mapping[str, str]
    vocabulary: CharVocabulary | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def alphabet(self) -> str:
        """The letters that tell which case its texts have."""
        if self.vocabulary is None:
            return "".join(sorted(set("".join(self.texts.values()))))
        return "".join(self.vocabulary.letters)


@dataclass(frozen=True)
class Evaluation:
    """Systems on a test set, scored; `report` holds the figures.

    Parameters
    ----------
    name : str
        Of the test set.
    references : sequence of Reference
        What was said.
    answers : sequence of Answers
        At least one; the others are compared with the first.
    repeats, seed : int
        Of the bootstrap, see `resampled_rates`.

    Raises
    ------
    BadManifest
        No reference has a word, so that there are no error rates.

    Example
    -------
    >>> said = [Reference("a", "ann", "hello you"), Reference("b", "ben", "good bye")]
    >>> evaluation = Evaluation("test", said, [Answers("one", {"a": "HELLO", "b": "GOOD BYE"})])
    >>> evaluation.report["systems"][0]["WER"], evaluation.report["case"]
    (25.0, 'upper')
    """

    name: str
    references: Sequence[Reference]
    answers: Sequence[Answers]
    repeats: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not any(reference.text.split() for reference in self.references):
            raise BadManifest(
                f"{self.name}: none of {len(self.references)} references has a word, so there is "
                "no error rate. Give transcribed utterances."
            )

    @cached_property
    def letters(self) -> str:
        """Those whose case all texts are compared in."""
        return common_letters(answers.alphabet for answers in self.answers)

    @cached_property
    def texts(self) -> list[str]:
        """References as they are compared."""
        return [normalize_text(reference.text, self.letters) for reference in self.references]

    @cached_property
    def hypotheses(self) -> list[list[str]]:
        """(systems, utterances) as they are compared; empty where there is no answer."""
        ids = [reference.id for reference in self.references]
        return [
            [normalize_text(answers.texts.get(name, ""), self.letters) for name in ids]
            for answers in self.answers
        ]

    @cached_property
    def scored(self) -> dict[str, list[Scored]]:
        """Alignments of every system, by unit."""
        return {unit: [score(self.texts, said, unit) for said in self.hypotheses] for unit in UNITS}

    @cached_property
    def leads(self) -> str:
        """The metric that says more about this language: WER, or CER without spaces."""
        return "CER" if spaceless(self.texts) else "WER"

    @cached_property
    def report(self) -> dict[str, Any]:
        """All figures, as in `results.json`: small, nothing by utterance."""
        seconds = sum(reference.seconds for reference in self.references)
        totals = {unit: self.scored[unit][0].total.reference for unit in UNITS}
        speakers = {reference.speaker for reference in self.references}
        systems = [self._system(index) for index in range(len(self.answers))]
        differences = []
        for metric, unit in METRICS.items():
            voices = [reference.speaker for reference in self.references]
            counts = np.stack([scored.array for scored in self.scored[unit]])
            draws = intervals(counts, voices, self.repeats, self.seed)
            for kind, drawn in draws.items():
                for index, system in enumerate(systems):
                    of_one = None if drawn is None else drawn[:, index]
                    system[f"{metric}_{kind}"] = ends(of_one)
            differences += [self._difference(i, metric, draws) for i in range(1, len(systems))]
        return {
            "test": self.name,
            "utterances": len(self.references),
            "speakers": None if "" in speakers else len(speakers),
            "seconds": round(seconds, 1) if seconds else None,
            **totals,
            "empty_references": self.texts.count(""),
            "leads": self.leads,
            "case": {"AA": "upper", "aa": "lower"}.get(normalize_text("aA", self.letters), "kept"),
            "systems": systems,
            "differences": differences,
        }

    def _system(self, index: int) -> dict[str, Any]:
        answers, words = self.answers[index], self.scored["words"][index]
        totals = {unit: self.scored[unit][index].total for unit in UNITS}
        wrong = sum(map(str.__ne__, self.texts, self.hypotheses[index]))
        ids = [reference.id for reference in self.references]
        return {
            "system": answers.system,
            **answers.about,
            "WER": round(totals["words"].error_rate, DECIMALS),
            "CER": round(totals["characters"].error_rate, DECIMALS),
            "MER": round(words.total.mer, DECIMALS),
            "WIL": round(words.total.wil, DECIMALS),
            "SER": round(100 * wrong / len(ids), DECIMALS),
            "counts": {unit: asdict(total) for unit, total in totals.items()},
            "unanswered": [name for name in ids if name not in answers.texts],
            "failed": dict(answers.failed),
            "unsayable": unsayable(self.texts, answers.vocabulary),
            "confusions": {unit: commonest(self.scored[unit][index]) for unit in UNITS},
            "by_speaker": self._by_speaker(index),
            "by_length": self._by_length(index),
        }

    def _difference(self, index: int, metric: str, draws: Mapping[str, Any]) -> dict[str, Any]:
        unit = METRICS[metric]
        first, other = self.scored[unit][0], self.scored[unit][index]
        gaps = {kind: None if d is None else d[:, index] - d[:, 0] for kind, d in draws.items()}
        good = GOOD if metric == "WER" else math.inf  # characters of an utterance hang together
        count, p = mapsswe(first.alignments, other.alignments, good)
        return {
            "system": self.answers[index].system,
            "other": self.answers[0].system,
            "metric": metric,
            "points": round(other.total.error_rate - first.total.error_rate, DECIMALS),
            **{f"points_{kind}": ends(gap) for kind, gap in gaps.items()},
            "segments": count,
            "p": p,
        }

    def _by_speaker(self, index: int) -> list[dict[str, Any]]:
        """Speakers by name."""
        order = sorted(range(len(self.references)), key=lambda i: self.references[i].speaker)
        groups = groupby(order, lambda i: self.references[i].speaker)
        return [{"speaker": name, **self._rates(index, [*those])} for name, those in groups]

    def _by_length(self, index: int) -> list[dict[str, Any]]:
        """Utterances from short to long, in words, or characters where those say more."""
        lengths = self.scored[METRICS[self.leads]][index].array[:, 1]
        rows = []
        for low, high in length_bins(lengths):
            those = np.flatnonzero((lengths >= low) & (lengths <= high)).tolist()
            rows.append({"from": low, "to": high, **self._rates(index, those)})
        return rows

    def _rates(self, index: int, those: Sequence[int]) -> dict[str, Any]:
        """Error rates of some utterances together; None where they have no words."""
        found: dict[str, Any] = {"utterances": len(those)}
        for metric, unit in METRICS.items():
            counts = self.scored[unit][index].counts
            total = sum((counts[i] for i in those), Counts())
            found[unit] = total.reference
            found[metric] = round(total.error_rate, DECIMALS) if total.reference else None
        return found


def common_letters(alphabets: Iterable[str]) -> str:
    """The alphabet whose case (see `normalize_text`) all texts of a comparison get.

    The first that knows one case only: a system cannot be blamed for capitals that it was never
    taught, and all are to be compared with the same references.

    Example
    -------
    >>> common_letters(["aAbB", "AB"])
    'AB'
    """
    known = list(alphabets)
    return next((a for a in known if a in (a.upper(), a.lower())), known[0])


def unsayable(texts: Iterable[str], vocabulary: CharVocabulary | None) -> dict[str, int]:
    """Characters of texts that a system has no symbol for, and how often they occur.

    Example
    -------
    >>> unsayable(["naïve, no, ..."], CharVocabulary("naive"))
    {'.': 3, ',': 2, 'o': 1, 'ï': 1}
    """
    if vocabulary is None:
        return {}
    often: Counter[str] = Counter()
    for text in texts:
        wanted = normalize_text(text, vocabulary.letters)
        often.update({character: wanted.count(character) for character in vocabulary.unknown(text)})
    return dict(often.most_common())


def commonest(scored: Scored) -> dict[str, list[list[Any]]]:
    """The most frequent errors of each kind: reference, hypothesis, how often.

    Example
    -------
    >>> commonest(score(["a b", "a"], ["x b", "x"]))["substitution"]
    [['a', 'x', 2]]
    """
    return {
        kind: [[*pair, count] for pair, count in often.most_common(SHOWN)]
        for kind, often in confusions(scored).items()
    }


def length_bins(lengths: np.ndarray) -> list[tuple[int, int]]:
    """First and last length of groups with about as many utterances each; 0 is one of its own.

    Example
    -------
    >>> length_bins(np.array([0, 1, 1, 2, 3, 4, 5, 6, 7, 8]))
    [(0, 0), (1, 1), (2, 3), (4, 5), (6, 7), (8, 8)]
    """
    some = np.sort(lengths[lengths > 0])
    bins = [(0, 0)] if len(some) < len(lengths) else []
    tops = sorted({int(part[-1]) for part in np.array_split(some, BINS) if len(part)})
    low = 1 if not len(some) else int(some[0])
    for top in tops:
        bins.append((low, top))
        low = top + 1
    return bins
