"""Logits -> tokens and times: greedy CTC (best path; merge repeats, then drop blanks).

A path names one token per frame. `path_transcript` reads text, times and confidences from a path
of any origin: the best one here, the best of a given text in alignment.py and beam.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from w2v_plugin.frames import HOP, SAMPLE_RATE
from w2v_plugin.text import CharVocabulary
from w2v_plugin.transcripts import Span, Transcript


def greedy(logits: Tensor, frame_lengths: Tensor, blank: int = 0) -> list[list[int]]:
    """Most likely token per frame, collapsed.

    Parameters
    ----------
    logits : Tensor
        (batch, frames, vocab), before or after softmax.
    frame_lengths : Tensor
        (batch,) valid frames; what follows them is not read.
    blank : int
        Index of the CTC blank.

    Returns
    -------
    list of list of int
        Tokens of each utterance.

    Example
    -------
    >>> logits = torch.eye(3)[[1, 1, 0, 1, 2, 2]][None]
    >>> greedy(logits, torch.tensor([5]))
    [[1, 1, 2]]
    """
    best = logits.argmax(-1).cpu()
    tokens = []
    for row, length in zip(best, frame_lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(row[:length])
        tokens.append(merged[merged != blank].tolist())
    return tokens


def greedy_transcripts(
    logits: Tensor, frame_lengths: Tensor, vocabulary: CharVocabulary
) -> list[Transcript]:
    """The text of `greedy` with times and confidences; `score` is the log-probability of the path.

    Parameters
    ----------
    logits : Tensor
        (batch, frames, vocab), before or after log-softmax.
    frame_lengths : Tensor
        (batch,) valid frames; what follows them is not read.
    vocabulary : CharVocabulary
        What the outputs mean.

    Returns
    -------
    list of Transcript
        One per utterance.

    Example
    -------
    >>> logits = 9 * torch.eye(32)[[0, 24, 10, 10, 0, 4, 0, 7]][None]  # <pad> ' I I <pad> | ...
    >>> greedy_transcripts(logits, torch.tensor([8]), CharVocabulary())[0].words[1].start
    0.14
    """
    log_probs = log_posteriors(logits)
    return [
        path_transcript(row[:length].argmax(-1), row[:length], vocabulary)
        for row, length in zip(log_probs, frame_lengths.tolist(), strict=True)
    ]


def log_posteriors(logits: Tensor) -> Tensor:
    """Log-softmax over the vocabulary, on the CPU, in float32 or better.

    Example
    -------
    >>> log_posteriors(torch.zeros(1, 4, dtype=torch.float16)).exp()
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    return logits.detach().to(exact).log_softmax(-1).cpu()


def path_transcript(path: Tensor, log_probs: Tensor, vocabulary: CharVocabulary) -> Transcript:
    """Text, times and confidences along one path.

    A run of equal tokens is one character. Frame t stands for the 20 ms from 0.02 t, so a run of
    the frames a to b lasts from 0.02 a to 0.02 (b + 1) seconds. A word lasts from its first to its
    last character.

    The confidence of a character is its highest posterior among its frames: CTC says it at its
    peak and leaves the rest to the blank. That of a word is their product, for one wrong character
    makes a wrong word. Laptev and Ginsburg (*Fast Entropy-Based Methods of Word-Level Confidence
    Estimation for End-to-End Automatic Speech Recognition*, 2022) compare such aggregations.
    Models are surer than they should be: the numbers rank words, they are no error rates.

    Parameters
    ----------
    path : Tensor
        (frames,) token of each frame.
    log_probs : Tensor
        (frames, vocab) log-posteriors, on the CPU.
    vocabulary : CharVocabulary
        What the outputs mean; special symbols are skipped.

    Returns
    -------
    Transcript
        Its score is the log-probability of the path.

    Example
    -------
    >>> path = torch.tensor([0, 11, 11, 10])
    >>> path_transcript(path, torch.zeros(4, 32).log_softmax(-1), CharVocabulary()).words[0]
    Span(text='HI', start=0.02, end=0.08, confidence=0.0009765625)
    """
    reader = PathReader(vocabulary)
    reader.read(path, log_probs)
    return reader.transcript()


class PathReader:
    """As `path_transcript`, of a path that comes piece by piece: where it is cut does not matter.

    Parameters
    ----------
    vocabulary : CharVocabulary
        What the outputs mean; special symbols are skipped.
    frame : int
        Number of the first frame, from which times count.

    Example
    -------
    >>> reader, log_probs = PathReader(CharVocabulary()), torch.zeros(6, 32).log_softmax(-1)
    >>> path = torch.tensor([11, 10, 10, 4, 10, 0])  # H I I | I <pad>
    >>> reader.read(path[:2], log_probs[:2])
    >>> reader.words, reader.transcript().text
    ([], 'HI')
    >>> reader.read(path[2:], log_probs[2:])
    >>> [word.end for word in reader.words], reader.transcript().text
    ([0.06], 'HI I')
    """

    def __init__(self, vocabulary: CharVocabulary, frame: int = 0) -> None:
        self.vocabulary, self.frame = vocabulary, frame
        self.score = 0.0
        self.words: list[Span] = []  # complete: a boundary was heard
        self.characters: list[Span] = []  # of those
        self.open: list[Span] = []  # characters of the last word, of which there may be more
        self._token = vocabulary.get_blank_index()  # of the last frame

    def read(self, path: Tensor, log_probs: Tensor) -> None:
        """The next frames: (frames,) tokens and (frames, vocab) log-posteriors, on the CPU."""
        scores = log_probs.gather(1, path[:, None])[:, 0]
        tokens, counts = torch.unique_consecutive(path, return_counts=True)
        for token, count in zip(tokens.tolist(), counts.tolist(), strict=True):
            peak = scores[:count].max().exp().item()
            self.score += scores[:count].sum().item()
            self._read_run(token, count, peak)
            scores = scores[count:]

    def _read_run(self, token: int, count: int, peak: float) -> None:
        start, end = _seconds(self.frame), _seconds(self.frame + count)
        blank = self.vocabulary.get_blank_index()
        text = "" if token == blank else self.vocabulary.decode_ndim(token)
        if text.isspace():
            self._end_word()
        elif text and token == self._token and self.open:  # went on after a cut
            last = self.open.pop()
            peak = max(peak, last.confidence)
            self.open.append(Span(text, last.start, end, peak))
        elif text:
            self.open.append(Span(text, start, end, peak))
        self.frame += count
        self._token = token

    def _end_word(self) -> None:
        if self.open:
            self.words.append(_word(self.open))
            self.characters += self.open
            self.open = []

    def transcript(self) -> Transcript:
        """What was read so far, the last word as far as it goes."""
        words = (*self.words, *([_word(self.open)] if self.open else []))
        text = " ".join(word.text for word in words)
        return Transcript(text, words, (*self.characters, *self.open), self.score)


def _seconds(frame: int) -> float:
    return frame * HOP / SAMPLE_RATE


def _word(characters: list[Span]) -> Span:
    return Span(
        "".join(character.text for character in characters),
        characters[0].start,
        characters[-1].end,
        math.prod(character.confidence for character in characters),
    )
