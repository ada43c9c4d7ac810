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
    scores = log_probs.gather(1, path[:, None])[:, 0]
    tokens, counts = torch.unique_consecutive(path, return_counts=True)
    words: list[list[Span]] = [[]]
    frame, blank = 0, vocabulary.get_blank_index()
    for token, count in zip(tokens.tolist(), counts.tolist(), strict=True):
        text = "" if token == blank else vocabulary.decode_ndim(token)
        if text.isspace():
            words.append([])
        elif text:
            peak = scores[frame : frame + count].max().exp().item()
            words[-1].append(Span(text, _seconds(frame), _seconds(frame + count), peak))
        frame += count
    spans = tuple(_word(characters) for characters in words if characters)
    return Transcript(
        " ".join(word.text for word in spans),
        spans,
        tuple(character for characters in words for character in characters),
        scores.sum().item(),
    )


def _seconds(frame: int) -> float:
    return frame * HOP / SAMPLE_RATE


def _word(characters: list[Span]) -> Span:
    return Span(
        "".join(character.text for character in characters),
        characters[0].start,
        characters[-1].end,
        math.prod(character.confidence for character in characters),
    )
