"""Decoding while somebody speaks: what is said so far, and how much of it can still change.

Both decoders read frames as they come and are cut where an utterance ends. What they call stable
never changes and only grows:

    greedy   complete words. The last word may grow, but its letters do not change either: frames
             that were given out are never revised.
    beam     words that all hypotheses share. Hypotheses that differ for too long are dropped, all
             but the best one, so that stable text is never far behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

import torch
from speechbrain.decoders.ctc import CTCBeam, LMCTCBeam
from torch import Tensor

from w2v_plugin.alignment import spoken_posteriors
from w2v_plugin.beam import BeamSearch
from w2v_plugin.decoding import PathReader, log_posteriors
from w2v_plugin.frames import HOP, SAMPLE_RATE
from w2v_plugin.text import WORD_BOUNDARY, CharVocabulary
from w2v_plugin.transcripts import Transcript


@dataclass(frozen=True)
class LiveTranscript(Transcript):
    """A text that may still grow.

    Parameters
    ----------
    stable, tentative : str
        The part of `text` that will not change, and the rest.
    segment : int
        Number of the utterance, from 0; text begins anew with each.
    is_final : bool
        Whether the utterance is over: nothing is tentative then.
    audio_s : float
        Seconds of the stream that this is based on.
    compute_ms : float
        From the packet's arrival to this.

    Example
    -------
    >>> LiveTranscript("HELLO WOR", stable="HELLO", tentative="WOR").is_final
    False
    """

    stable: str = ""
    tentative: str = ""
    segment: int = 0
    is_final: bool = False
    audio_s: float = 0.0
    compute_ms: float = 0.0


class GreedyDecoder:
    """Best path, frame by frame.

    Parameters
    ----------
    vocabulary : CharVocabulary
        What the outputs mean. Without a word boundary among them, all that was said is stable.

    Example
    -------
    >>> decoder = GreedyDecoder(CharVocabulary())
    >>> decoder.read(9 * torch.eye(32)[[11, 10, 10, 4, 10]])  # H I I | I
    >>> transcript, stable = decoder.read_so_far()
    >>> transcript.text, stable, decoder.cut().text, decoder.read_so_far()[0].text
    ('HI I', 1, 'HI I', '')
    """

    def __init__(self, vocabulary: CharVocabulary) -> None:
        self.vocabulary = vocabulary
        self._spaced = WORD_BOUNDARY in vocabulary.lab2ind
        self._reader = PathReader(vocabulary)

    def read(self, logits: Tensor) -> None:
        """The next frames, (frames, vocab)."""
        log_probs = log_posteriors(logits)
        self._reader.read(log_probs.argmax(-1), log_probs)

    def read_so_far(self) -> tuple[Transcript, int]:
        """What was said in this utterance, and how many of its words are stable."""
        transcript = self._reader.transcript()
        return transcript, len(self._reader.words) if self._spaced else len(transcript.words)

    def cut(self) -> Transcript:
        """The utterance ends here; what follows is the next one."""
        transcript = self._reader.transcript()
        self._reader = PathReader(self.vocabulary, self._reader.frame)
        return transcript


class BeamDecoder:
    """Beam search that goes on.

    Parameters
    ----------
    search : BeamSearch
        Vocabulary, language model, hot words and widths.
    commit_s : float
        Seconds after which hypotheses must agree on a word.
    n_best : int
        Of finished utterances, see `BeamSearch`.

    Example
    -------
    >>> decoder = BeamDecoder(BeamSearch(CharVocabulary()))
    >>> decoder.read(9 * torch.eye(32)[[11, 10, 10, 4, 10]])
    >>> decoder.read_so_far()[0].text, decoder.cut().text
    ('HI I', 'HI I')
    """

    def __init__(self, search: BeamSearch, *, commit_s: float = 5.0, n_best: int = 1) -> None:
        self.search, self.n_best = search, n_best
        self.vocabulary = search.vocabulary
        self.patience = round(commit_s * SAMPLE_RATE / HOP)  # frames
        self._frame = 0  # where the utterance begins
        self._begin()

    def _begin(self) -> None:
        lm = self.search.searcher.lm
        self._beams = [CTCBeam("", "", "", "", None, None, [], (-1, -1), score=0.0)]
        self._scores = {} if lm is None else {("", False): (0.0, lm.get_start_state())}
        self._part_scores: dict[str, float] = {}
        self._log_probs: list[Tensor] = []  # of this utterance: its words are timed by them
        self._frames = 0

    def read(self, logits: Tensor) -> None:
        """The next frames, (frames, vocab)."""
        log_probs = spoken_posteriors(logits, self.vocabulary)
        self._log_probs.append(log_probs)
        self._beams = self.search.searcher.partial_decoding(
            log_probs.double().numpy(),
            len(log_probs),
            self._beams,
            self._scores,
            self._part_scores,
            processed_frames=self._frames,
        )
        self._frames += len(log_probs)
        self._commit()
        self._forget()

    def _forget(self) -> None:
        """What is known of texts that are no hypotheses any more."""
        if self._scores:
            self._scores = {
                key: self._scores[key] for key in {(b.text, False) for b in self._beams}
            }
        self._part_scores.clear()

    def _commit(self) -> None:
        """Drop hypotheses that differ from the best one in what is long past."""
        words, ends = self._beams[0].text.split(), [end for _, end in self._beams[0].text_frames]
        past = sum(end < self._frames - self.patience for end in ends)
        self._beams = [beam for beam in self._beams if beam.text.split()[:past] == words[:past]]

    def read_so_far(self) -> tuple[Transcript, int]:
        """What was said in this utterance, and how many of its words are stable."""
        best = self._beams[0]
        text = f"{best.text} {best.partial_word}"
        said = LMCTCBeam(**vars(best) | {"text": text}, lm_score=best.score)
        nth_words = zip(*(beam.text.split() for beam in self._beams), strict=False)
        shared = sum(1 for _ in takewhile(lambda words: len({*words}) == 1, nth_words))
        return self._transcript([said]), shared

    def cut(self) -> Transcript:
        """The utterance ends here; what follows is the next one."""
        found = self.search.searcher.finalize_decoding(
            self._beams, self._scores, self._part_scores, force_next_word=True, is_end=True
        )
        transcript = self._transcript(found, self.n_best)
        self._frame += self._frames
        self._begin()
        return transcript

    def _transcript(self, found: Iterable[LMCTCBeam], n_best: int = 1) -> Transcript:
        if not self._frames:
            return Transcript("")
        return self.search.transcript(found, torch.cat(self._log_probs), n_best, self._frame)
