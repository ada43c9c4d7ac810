"""Weights of a language model in beam search: found on a development set.

logits, once ─ searches ─ beam search for each setting ─► word errors ─ tune ─► the best setting

A coarse grid first, because word errors have many small valleys; then steps of one weight up or
down as long as they help, and smaller ones. Searching is pure Python, so utterances are shared
out over processes.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from w2v_plugin.beam import BeamSearch
from w2v_plugin.ngrams import load_ngrams
from w2v_plugin.scoring import score
from w2v_plugin.text import CharVocabulary


@dataclass(frozen=True)
class Weights:
    """What `BeamSearch` weighs a language model with: see there."""

    alpha: float
    beta: float
    oov: float


GRID = [Weights(*values) for values in product((0.3, 0.7, 1.2), (0.0, 1.5, 3.0), (-10.0, -3.0))]
STEPS = {"alpha": 0.2, "beta": 0.75, "oov": 3.0}
HALVINGS = 1
UNITS = ("words", "characters")
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Trial:
    """A setting and how good it was: word errors first, then character errors."""

    weights: Weights
    word_errors: int
    character_errors: int

    @property
    def badness(self) -> tuple[int, int]:
        """Smaller is better."""
        return self.word_errors, self.character_errors


Decode = Callable[[Weights | None], Sequence[str]]


def tune(
    decode: Decode, references: Sequence[str], grid: Sequence[Weights] = GRID
) -> tuple[Weights, list[Trial]]:
    """The weights with the fewest word errors, and everything that was tried, in that order.

    Of several that are equally good, the one in their middle.

    Parameters
    ----------
    decode : callable
        Weights to texts, one per reference; see `searches`.
    references : sequence of str
        What was said.
    grid : sequence of Weights
        To begin with.

    Example
    -------
    >>> def decode(weights):  # best at alpha = 0.8
    ...     return ["a " * round(100 * abs(weights.alpha - 0.8))]
    >>> weights, trials = tune(decode, [""])
    >>> round(weights.alpha, 2), len(trials) < 50
    (0.8, True)
    """
    trials: dict[Weights, Trial] = {}
    bar = tqdm(desc="weights", unit="setting", disable=None)

    def badness(weights: Weights) -> tuple[int, int]:
        if weights not in trials:
            texts = decode(weights)
            errors = [score(references, texts, unit).total.errors for unit in UNITS]
            trials[weights] = Trial(weights, *errors)
            bar.update()
            bar.set_postfix_str(f"{min(t.word_errors for t in trials.values())} word errors")
        return trials[weights].badness

    with bar:
        best = min(grid, key=badness)
        for halving in range(HALVINGS + 1):
            while better := _better(best, badness, 0.5**halving):
                best = better
    least = trials[best].badness
    equal = [trial.weights for trial in trials.values() if trial.badness == least]
    return _central(equal), list(trials.values())


def _central(settings: Sequence[Weights]) -> Weights:
    """The one in the middle: away from the edge of where it goes well."""
    scaled = np.array([[getattr(w, name) / step for name, step in STEPS.items()] for w in settings])
    return settings[int(np.linalg.norm(scaled - scaled.mean(0), axis=1).argmin())]


def _better(
    best: Weights, badness: Callable[[Weights], tuple[int, int]], scale: float
) -> Weights | None:
    """The first better one a step away."""
    for name, step in STEPS.items():
        for sign in (1, -1):
            value = round(getattr(best, name) + sign * step * scale, 4)
            possible = name == "beta" or (value > 0 if name == "alpha" else value <= 0)
            if possible and badness(near := replace(best, **{name: value})) < badness(best):
                return near
    return None


class Searches:
    """Beam search of the same utterances again and again.

    Parameters
    ----------
    lm : Path
        ARPA file.
    vocabulary : CharVocabulary
        What the outputs mean.
    logits : sequence of ndarray
        (frames, vocab) of each utterance.
    beam : int
        See `BeamSearch`.
    """

    def __init__(
        self, lm: Path, vocabulary: CharVocabulary, logits: Sequence[Logits], beam: int
    ) -> None:
        self.lm, self.vocabulary = load_ngrams(lm), vocabulary
        self.logits, self.beam = logits, beam
        self.weights: Weights | None = None
        self.search = BeamSearch(vocabulary, beam=beam)

    def text(self, weights: Weights | None, index: int) -> str:
        """Of one utterance; weights None: without the language model."""
        if weights != self.weights:
            options = {} if weights is None else {"lm": self.lm, **asdict(weights)}
            self.search = BeamSearch(self.vocabulary, beam=self.beam, **options)
            self.weights = weights
        logits = torch.from_numpy(self.logits[index])[None]
        return self.search(logits, torch.tensor([logits.shape[1]]))[0].text


@contextmanager
def searches(
    lm: Path, vocabulary: CharVocabulary, logits: Sequence[Tensor], *, beam: int, workers: int
) -> Iterator[Decode]:
    """A function from weights to the texts of all utterances, with processes behind it.

    Parameters
    ----------
    lm, vocabulary, beam
        See `Searches`.
    logits : sequence of Tensor
        (frames, vocab) of each utterance.
    workers : int
        Processes; 1: this one.
    """
    arrays = [frames.numpy() for frames in logits]
    numbers = range(len(arrays))
    if workers == 1:
        alone = Searches(lm, vocabulary, arrays, beam)
        yield lambda weights: [alone.text(weights, number) for number in numbers]
        return
    share = max(1, len(arrays) // (8 * workers))
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), _begin, (lm, vocabulary, arrays, beam)
    )

    def decode(weights: Weights | None) -> list[str]:
        with _quiet_births():
            texts = pool.map(partial(_text, weights), numbers, chunksize=share)
        return list(texts)

    try:
        yield decode
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C shall not wait for the rest


@contextmanager
def _quiet_births() -> Iterator[None]:
    """Processes that start meanwhile are deaf to Ctrl-C until `_begin`, and say nothing of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_own: Searches  # of a process


def _begin(*arguments: Any) -> None:
    global _own
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(1)
    _own = Searches(*arguments)


def _text(weights: Weights | None, number: int) -> str:
    return _own.text(weights, number)
