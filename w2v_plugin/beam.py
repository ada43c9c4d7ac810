"""Beam search over CTC paths, with a language model and words that are expected to be said.

The search is SpeechBrain's `CTCBeamSearcher`, which adds up all paths of a text. What it lacks is
added here: the end of a sentence is scored, lengths are whole frames, and n-best lists stay
diverse. What it is slow at is done again: each frame, with the same result. Its times and its
merged words are not used: it searches over one private character per token, so that a hypothesis
gives its tokens back, and each is aligned as alignment.py does.

A hypothesis scores

    log P(text | audio) + sum over words (alpha log P(word | history) + beta) + alpha log P(end)

and the boost per hot word; without a language model alpha and beta play no part.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from speechbrain.decoders.ctc import CTCBeam, CTCBeamSearcher
from torch import Tensor

from w2v_plugin.alignment import best_path, spoken_posteriors
from w2v_plugin.decoding import PathReader
from w2v_plugin.ngrams import END, NgramLM
from w2v_plugin.text import WORD_BOUNDARY, CharVocabulary, normalize_text
from w2v_plugin.transcripts import Transcript

PRIVATE = 0xF0000  # Unicode's private characters: 65 534 of them
State = tuple[Any, tuple[str, ...], float]  # of the language model; hot words begun; their credit
Extension = tuple[str, str, str]  # complete words, the word after them, the last frame's symbol


class BeamSearch:
    """Logits -> the likeliest texts, not the likeliest path.

    Parameters
    ----------
    vocabulary : CharVocabulary
        What the outputs mean.
    lm : NgramLM, optional
        From `load_ngrams`. Words are looked up as the vocabulary spells them; if it has one case
        only, also in lower case, in upper case and capitalized.
    hot_words : iterable of str
        Words and phrases that are likely to be said, known to `lm` or not.
    boost : float
        Added per hot word, in units of natural log-probability.
    beam : int
        Hypotheses that are kept per frame.
    alpha, beta : float
        Weight of the language model, and what each word adds.
    oov : float
        Added per word that `lm` does not know and that is no hot word.
    token_floor, beam_floor : float
        Log-posteriors below the first, except for the best of a frame, are taken for 0; so are
        hypotheses that are worse than the best by more than the second.

    Raises
    ------
    ValueError
        A hot word, or every word of `lm`, has characters outside the vocabulary.

    Example
    -------
    >>> import torch
    >>> search = BeamSearch(CharVocabulary(), hot_words=["hi"])
    >>> logits = 9 * torch.eye(32)[[0, 11, 10, 10, 0]][None]
    >>> search(logits, torch.tensor([5]))[0].text
    'HI'
    """

    def __init__(
        self,
        vocabulary: CharVocabulary,
        *,
        lm: NgramLM | None = None,
        hot_words: Iterable[str] = (),
        boost: float = 5.0,
        beam: int = 50,
        alpha: float = 0.5,
        beta: float = 1.5,
        oov: float = -10.0,
        token_floor: float = -5.0,
        beam_floor: float = -10.0,
    ) -> None:
        if beam < 1:
            raise ValueError(f"beam={beam}, expected at least 1: how many hypotheses to keep.")
        self.vocabulary = vocabulary
        blank = vocabulary.get_blank_index()
        symbols = [chr(PRIVATE + index) for index in range(max(vocabulary.ind2lab) + 1)]
        self.searcher = _Searcher(
            blank,
            symbols,
            # without word boundaries, one that is no boundary either
            space_token=symbols[vocabulary.lab2ind.get(WORD_BOUNDARY, blank)],
            beam_size=beam,
            beam_prune_logp=beam_floor,
            token_prune_min_logp=token_floor,
            prune_history=False,  # it would drop hypotheses that differ in early words only
            topk=beam,
        )
        hot = _HotWords(hot_words, vocabulary, boost)
        if lm is not None or hot.words:
            self.searcher.lm = _Scorer(vocabulary, lm, hot, (alpha, beta, oov))

    def __call__(self, logits: Tensor, frame_lengths: Tensor, n_best: int = 1) -> list[Transcript]:
        """Decode a batch.

        Parameters
        ----------
        logits : Tensor
            (batch, frames, vocab), before or after log-softmax.
        frame_lengths : Tensor
            (batch,) valid frames; what follows them is not read.
        n_best : int
            Texts per utterance at most: the best one and its `alternatives`.

        Returns
        -------
        list of Transcript
            One per utterance, with times and confidences of the best path that says the text.
        """
        if n_best < 1:
            raise ValueError(f"n_best={n_best}, expected at least 1.")
        log_probs = spoken_posteriors(logits, self.vocabulary)
        return [
            self._decode(row[:length], n_best)
            for row, length in zip(log_probs, frame_lengths.tolist(), strict=True)
        ]

    def _decode(self, log_probs: Tensor, n_best: int) -> Transcript:
        found = self.searcher.decode_log_probs(log_probs.double().numpy(), len(log_probs))
        return self.transcript(found, log_probs, n_best)

    def transcript(
        self, found: Iterable[Any], log_probs: Tensor, n_best: int = 1, frame: int = 0
    ) -> Transcript:
        """The best of the searcher's hypotheses (and others) for frames that begin at `frame`."""
        boundary = self.vocabulary.lab2ind.get(WORD_BOUNDARY)
        texts: dict[str, Transcript] = {}  # tokens may differ where the text does not
        for hypothesis in found:
            text = " ".join(hypothesis.text.split())
            tokens = [boundary if c == " " else ord(c) - PRIVATE for c in text]
            reader = PathReader(self.vocabulary, frame)
            reader.read(best_path(log_probs, tokens, self.vocabulary), log_probs)
            transcript = reader.transcript()
            texts.setdefault(transcript.text, replace(transcript, score=float(hypothesis.lm_score)))
            if len(texts) == n_best:
                break
        best, *others = texts.values()
        return replace(best, alternatives=tuple(others))


class _Searcher(CTCBeamSearcher):
    """SpeechBrain's search, several times as fast, and it asks for the end of the sentence."""

    def partial_decoding(
        self,
        log_probs: NDArray[np.floating],
        wav_len: int,
        beams: list[CTCBeam],
        words: dict[tuple[str, bool], tuple[float, State]],
        parts: dict[str, float],
        processed_frames: int = 0,
    ) -> list[CTCBeam]:
        """The next frames; beams are made only of what is kept."""
        for frame, row in enumerate(log_probs[:wav_len].tolist(), start=processed_frames):
            ranked = [
                (score + self._lm_score(new, parent, words, parts), new, parent, score)
                for new, (score, parent) in self._extensions(row, beams).items()
            ]
            floor = max(ranked, key=itemgetter(0))[0] + self.beam_prune_logp
            kept = [found for found in ranked if found[0] >= floor]
            kept = heapq.nlargest(self.beam_size, kept, key=itemgetter(0))
            beams = [self._extended(parent, new, score, frame) for _, new, parent, score in kept]
        return beams

    def _extensions(
        self, row: list[float], beams: list[CTCBeam]
    ) -> dict[Extension, tuple[float, CTCBeam]]:
        """What one frame makes of the beams; paths to the same are added up."""
        best, floor = max(row), self.token_prune_min_logp
        found: dict[Extension, tuple[float, CTCBeam]] = {}
        for token, (symbol, log_prob) in enumerate(zip(self.vocab_list, row, strict=False)):
            if log_prob <= floor and log_prob < best:
                continue
            for beam in beams:
                text, part = beam.text, beam.partial_word
                if token == self.blank_index or symbol == beam.last_token:
                    pass
                elif token == self.space_index:
                    text, part = f"{text} {part}" if text and part else text or part, ""
                else:
                    part += symbol
                new, score = (text, part, symbol), beam.score + log_prob
                if new in found:
                    score = _log_add(score, found[new][0])
                found[new] = score, beam
        return found

    def _lm_score(
        self,
        new: Extension,
        parent: CTCBeam,
        words: dict[tuple[str, bool], tuple[float, State]],
        parts: dict[str, float],
    ) -> float:
        if self.lm is None:
            return 0.0
        text, part, _ = new
        known = words.get((text, False))
        if known is None:
            before, state = words[parent.text, False]
            score, state = self.lm.score(state, parent.partial_word)
            known = words[text, False] = before + score, state
        if not part:
            return known[0]
        if part not in parts:
            parts[part] = self.lm.score_partial_token(part)
        return known[0] + parts[part]

    def _extended(self, beam: CTCBeam, new: Extension, score: float, frame: int) -> CTCBeam:
        """With the frames of its words, as SpeechBrain counts them."""
        text, part, symbol = new
        past, (start, end) = beam.text_frames, beam.partial_frames
        if symbol == self.vocab_list[self.blank_index]:
            pass
        elif symbol == beam.last_token:
            end = frame + 1
        elif not part:  # a boundary
            past = [*past, (start, end)] if beam.partial_word else past
            start = end = -1
        else:
            start, end = frame if start < 0 else start, frame + 1
        return CTCBeam(text, "", "", part, symbol, None, past, (start, end), score=score)

    def finalize_decoding(self, beams: list, words: dict, parts: dict, **options: bool) -> list:
        found = super().finalize_decoding(beams, words, parts, **options)
        if self.lm is not None:
            for hypothesis in found:
                hypothesis.lm_score += self.lm.end(words[hypothesis.text, False][1])
        return self.sort_beams(found)


class _Scorer:
    """What the searcher asks about words: language model and hot words, as one score."""

    def __init__(
        self,
        vocabulary: CharVocabulary,
        lm: NgramLM | None,
        hot: _HotWords,
        weights: tuple[float, float, float],
    ) -> None:
        self.lm, self.hot = lm, hot
        self.alpha, self.beta, self.oov = weights
        self.labels = {PRIVATE + index: label for index, label in vocabulary.ind2lab.items()}
        letters = "".join(vocabulary.letters)
        self.one_case = letters in (letters.upper(), letters.lower())
        words = () if lm is None else lm.words
        self.words = sorted({normalize_text(word, letters) for word in words})
        if self.words and not any(set(letters).issuperset(word) for word in self.words):
            raise ValueError(
                f"None of the {len(self.words)} words of the language model, such as "
                f"{self.words[0]!r}, can be spelled with {letters}. Use one of this language."
            )

    def get_start_state(self) -> State:
        return None if self.lm is None else self.lm.start(), (), 0.0

    def score(
        self, state: State, word: str, is_last_word: bool = False
    ) -> tuple[float, State]:  # the searcher never says which word is the last
        """Of a whole word."""
        word = word.translate(self.labels)
        lm_state, begun, credit = state
        score, begun, credit = self.hot.step(begun, credit, word)
        if self.lm is not None:
            form = self._lookup(self.lm, word)
            known = form in self.lm or word in self.hot.words
            log_prob, lm_state = self.lm.score(lm_state, form)
            score += self.alpha * log_prob + self.beta + (0.0 if known else self.oov)
        return score, (lm_state, begun, credit)

    def score_partial_token(self, part: str) -> float:
        """Of the beginning of a word, in place of what `score` will say at its end."""
        part = part.translate(self.labels)
        if hot := _completion(self.hot.words, part):
            return self.hot.boost * len(part) / len(hot)
        return self.oov if self.words and not _completion(self.words, part) else 0.0

    def end(self, state: State) -> float:
        """Of the end of the sentence; hot phrases that were only begun lose their credit."""
        lm_state, _, credit = state
        return (self.alpha * self.lm.score(lm_state, END)[0] if self.lm else 0.0) - credit

    def _lookup(self, lm: NgramLM, word: str) -> str:
        """The form that the language model knows."""
        forms = (word, word.lower(), word.upper(), word.capitalize()) if self.one_case else ()
        return next((form for form in forms if form in lm), word)


class _HotWords:
    """Words and phrases that earn a boost for each of their words.

    A phrase earns it word by word, so that pruning does not lose it before its end, and pays back
    if it is not finished.
    """

    def __init__(self, phrases: Iterable[str], vocabulary: CharVocabulary, boost: float) -> None:
        phrases = [phrases] if isinstance(phrases, str) else list(phrases)
        for phrase in phrases:
            if unknown := vocabulary.unknown(phrase):
                raise ValueError(
                    f"Hot words {phrase!r} have characters outside the vocabulary: "
                    f"{' '.join(unknown)}. Spell them with {''.join(vocabulary.letters)}."
                )
        split = [tuple(normalize_text(phrase, vocabulary.letters).split()) for phrase in phrases]
        self.whole = set(split)
        self.begun = {phrase[:n] for phrase in split for n in range(1, len(phrase) + 1)}
        self.words = sorted({word for phrase in split for word in phrase})
        self.boost = boost

    def step(
        self, begun: tuple[str, ...], credit: float, word: str
    ) -> tuple[float, tuple[str, ...], float]:
        """Score of a word after the words `begun`; what is begun then, and not yet earned."""
        now = (*begun, word)
        while now and now not in self.begun:
            now = now[1:]
        go_on = len(now) > len(begun)
        due = credit + self.boost if go_on else self.boost * len(now)
        return due - credit, now, 0.0 if now in self.whole else due


def _completion(words: list[str], part: str) -> str | None:
    """The first word of a sorted list that begins like this."""
    place = bisect_left(words, part)
    return words[place] if place < len(words) and words[place].startswith(part) else None


def _log_add(a: float, b: float) -> float:
    """Logarithm of the sum of two exponentials."""
    low, high = (a, b) if a < b else (b, a)
    return high if high == -math.inf else high + math.log1p(math.exp(low - high))
