"""A known text -> when each word and character of it was said (forced alignment).

The best of all CTC paths that say the text, found by torchaudio's Viterbi search. Surprising:
models also learn to say `|` before the first or after the last word. A path without it would have
to say something else there, which moves the first and the last character, so it is put around
the text where the model's own best path has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchaudio.functional import forced_align

from w2v_plugin.decoding import greedy, log_posteriors, path_transcript
from w2v_plugin.frames import HOP, SAMPLE_RATE
from w2v_plugin.text import WORD_BOUNDARY, CharVocabulary, ctc_frames
from w2v_plugin.transcripts import Transcript


def align(logits: Tensor, text: str, vocabulary: CharVocabulary) -> Transcript:
    """When the words and characters of a text were said, and how sure the model is of them.

    Parameters
    ----------
    logits : Tensor
        (frames, vocab) of one utterance, without padding, before or after log-softmax.
    text : str
        What was said; it is normalized as for training.
    vocabulary : CharVocabulary
        What the outputs mean.

    Returns
    -------
    Transcript
        `score` is the log-probability of the best path. A low confidence marks words that the
        audio does not hold.

    Raises
    ------
    ValueError
        The text has characters outside the vocabulary, or does not fit into the frames.

    Example
    -------
    >>> logits = 9 * torch.eye(32)[[0, 11, 10, 10, 0]]
    >>> align(logits, "Hi", CharVocabulary()).words[0].end
    0.08
    """
    tokens = vocabulary.encode_text(text)
    if (needed := ctc_frames(tokens)) > len(logits):
        raise ValueError(
            f"{text[:80]!r} needs {needed} frames at least ({needed * HOP / SAMPLE_RATE:.2f} s), "
            f"the audio has {len(logits)}. Give the text of this audio, or the whole audio."
        )
    log_probs = spoken_posteriors(logits, vocabulary)
    return path_transcript(best_path(log_probs, tokens, vocabulary), log_probs, vocabulary)


def spoken_posteriors(logits: Tensor, vocabulary: CharVocabulary) -> Tensor:
    """Log-posteriors, with all that is no text counted as blank: no text can ask for it.

    Parameters
    ----------
    logits : Tensor
        (..., vocab), before or after log-softmax.
    vocabulary : CharVocabulary
        Says which outputs are special symbols; outputs that it does not know are, too.

    Returns
    -------
    Tensor
        As `logits`, on the CPU; -inf for special symbols.

    Example
    -------
    >>> log_probs = spoken_posteriors(torch.zeros(1, 32), CharVocabulary())  # three specials
    >>> log_probs.exp()[0, :5] * 32
    tensor([4., 0., 0., 0., 1.])
    """
    log_probs = log_posteriors(logits)
    labels = [vocabulary.ind2lab.get(index) for index in range(log_probs.shape[-1])]
    silent = [i for i, label in enumerate(labels) if label is None or vocabulary.is_special(label)]
    total = log_probs[..., silent].logsumexp(-1)
    log_probs[..., silent] = -torch.inf
    log_probs[..., vocabulary.get_blank_index()] = total
    return log_probs


def best_path(log_probs: Tensor, tokens: Sequence[int], vocabulary: CharVocabulary) -> Tensor:
    """Most likely path that says `tokens`.

    Parameters
    ----------
    log_probs : Tensor
        (frames, vocab) log-posteriors on the CPU; at least `ctc_frames(tokens)` frames.
    tokens : sequence of int
        Without blanks.
    vocabulary : CharVocabulary
        Says which tokens are the blank and the word boundary.

    Returns
    -------
    Tensor
        (frames,) token of each frame. Finding it takes frames x (2 tokens + 1) bytes: about
        half a gigabyte for ten minutes of speech.

    Example
    -------
    >>> log_probs = (9 * torch.eye(32)[[0, 11, 10, 10, 4]]).log_softmax(-1)
    >>> best_path(log_probs, [11, 10], CharVocabulary()).tolist()
    [0, 11, 10, 10, 4]
    """
    blank = vocabulary.get_blank_index()
    boundary = [vocabulary.lab2ind.get(WORD_BOUNDARY)]
    said = greedy(log_probs[None], torch.tensor([len(log_probs)]), blank)[0]
    target = [*boundary * (said[:1] == boundary), *tokens, *boundary * (said[-1:] == boundary)]
    if ctc_frames(target) > len(log_probs):
        target = list(tokens)
    if not target:  # which torchaudio refuses
        return torch.full((len(log_probs),), blank)
    return forced_align(log_probs[None], torch.tensor([target]), blank=blank)[0][0]
