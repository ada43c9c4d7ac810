"""Beam search: on small lattices it equals the sum over all paths, scored as its formula says."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from functools import partial
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from speechbrain.decoders.ctc import CTCBeam, CTCBeamSearcher

from w2v_plugin.beam import BeamSearch
from w2v_plugin.decoding import greedy_transcripts, path_transcript
from w2v_plugin.ngrams import ArpaLM
from w2v_plugin.text import CharVocabulary

ALL = {"beam": 10_000, "token_floor": -torch.inf, "beam_floor": -torch.inf}  # no pruning


def vocabulary(labels: str = "-AB|?") -> CharVocabulary:
    """Outputs in this order; `-` for the blank, `?` for `<unk>`."""
    names = [{"-": "<pad>", "?": "<unk>"}.get(c, c) for c in labels]
    letters = CharVocabulary(())
    letters.lab2ind = {label: index for index, label in enumerate(names)}
    letters.ind2lab = dict(enumerate(names))
    return letters


def lattice(frames: int = 5, seed: int = 0, tokens: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, frames, tokens, dtype=torch.float64, generator=generator)


def brute_force(logits: torch.Tensor, letters: CharVocabulary) -> dict[str, float]:
    """Log-probability of every text: all paths, with all their boundaries and special symbols."""
    log_probs = logits[0].log_softmax(-1)
    total: dict[str, float] = defaultdict(float)
    for path in product(range(logits.shape[-1]), repeat=logits.shape[1]):
        picked = torch.tensor(path)
        transcript = path_transcript(picked, log_probs, letters)
        total[transcript.text] += math.exp(transcript.score)
    return {text: math.log(p) for text, p in total.items()}


def language_model(word: float = -0.5, end: float = -0.25) -> ArpaLM:
    return ArpaLM(
        io.StringIO(
            f"\\data\\\nngram 1=5\nngram 2=2\n\n\\1-grams:\n-99 <s> -0.125\n{end} </s>\n"
            f"{word} ab -0.75\n-1.0 a\n-2.0 <unk>\n\n\\2-grams:\n-0.3 a ab\n-0.9 ab </s>\n\n\\end\\"
        )
    )


@pytest.mark.parametrize("labels", ["-AB|?", "A?|B-"])
@pytest.mark.parametrize("seed", range(3))
def test_without_pruning_it_is_the_sum_over_all_paths(labels: str, seed: int) -> None:
    letters = vocabulary(labels)
    logits = lattice(seed=seed)
    expected = sorted(brute_force(logits, letters).items(), key=lambda item: -item[1])
    [best] = BeamSearch(letters, **ALL)(logits, torch.tensor([5]), n_best=10_000)
    found = [(t.text, t.score) for t in (best, *best.alternatives)]
    assert len(found) == len(expected)
    for (text, score), (other, log_prob) in zip(found, expected, strict=True):
        # a sum of exponentials of up to 3125 paths
        assert text == other and score == pytest.approx(log_prob, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_language_model_and_hot_words_are_added_as_the_formula_says(seed: int) -> None:
    """Every text of the lattice, rescored by hand; the model is in lower case."""
    letters, lm = vocabulary(), language_model()
    alpha, beta, oov, boost = 0.7, 0.3, -2.0, 1.5
    hot = ["B", "A AB"]  # a word that the model does not know, and a phrase
    search = BeamSearch(
        letters, lm=lm, hot_words=hot, boost=boost, alpha=alpha, beta=beta, oov=oov, **ALL
    )
    logits = lattice(seed=seed)
    expected = {}
    for text, log_prob in brute_force(logits, letters).items():
        state, score, words = lm.start(), log_prob, text.split()
        for word in words:
            log_word, state = lm.score(state, word.lower())
            known = word in ("A", "AB", "B")
            score += alpha * log_word + beta + (0 if known else oov) + boost * (word == "B")
        for pair in pairwise(words):
            score += 2 * boost * (pair == ("A", "AB"))
        expected[text] = score + alpha * lm.score(state, "</s>")[0]
    [best] = search(logits, torch.tensor([5]), n_best=10_000)
    found = {t.text: t.score for t in (best, *best.alternatives)}
    assert found.keys() == expected.keys()
    for text, score in found.items():
        assert score == pytest.approx(expected[text], abs=1e-12), text
    assert "A AB" in found and list(found.values()) == sorted(found.values(), reverse=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"beam": 4}, {"beam": 9, "token_floor": -1.0}])
@pytest.mark.parametrize("lm", [None, language_model()])
def test_frames_are_searched_as_speechbrain_does_it(seed: int, options: dict, lm: Any) -> None:
    """Texts, scores and frames of words are equal, whatever is pruned, also when it goes on."""
    searcher = BeamSearch(vocabulary(), lm=lm, hot_words=["AB"], **options).searcher
    log_probs = (3 * lattice(frames=24, seed=seed)[0]).log_softmax(-1).numpy()
    found = []
    for search in (searcher.partial_decoding, partial(CTCBeamSearcher.partial_decoding, searcher)):
        beams = [CTCBeam("", "", "", "", None, None, [], (-1, -1), score=0.0)]
        words, parts = {("", False): (0.0, searcher.lm.get_start_state())}, {}
        for start in (0, 10):
            piece = log_probs[start:][: 10 if start == 0 else 14]
            beams = search(piece, len(piece), beams, words, parts, processed_frames=start)
        found.append(beams)
    for ours, theirs in zip(*found, strict=True):
        for name in ("text", "partial_word", "last_token", "text_frames", "partial_frames"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.score == pytest.approx(theirs.score, rel=1e-12)  # sums of 24 logarithms


def test_pruning_finds_no_worse_text_than_greedy() -> None:
    """Its own text's sum over all paths is at least that of the greedy one's."""
    letters = vocabulary()
    for seed in range(5):
        logits = 2 * lattice(seed=seed)
        probabilities = brute_force(logits, letters)
        [beam] = BeamSearch(letters, beam=8)(logits, torch.tensor([5]))
        [greedy] = greedy_transcripts(logits, torch.tensor([5]), letters)
        assert probabilities[beam.text] >= probabilities[greedy.text]
        assert beam.score <= probabilities[beam.text] + 1e-12  # pruned paths are missing


def test_n_best_is_sorted_and_distinct() -> None:
    [best] = BeamSearch(vocabulary())(lattice(frames=30, seed=4), torch.tensor([30]), n_best=10)
    found = [best, *best.alternatives]
    assert len({t.text for t in found}) == 10
    assert [t.score for t in found] == sorted((t.score for t in found), reverse=True)
    assert all(other.words and not other.alternatives for other in best.alternatives)


def test_times_are_those_of_the_best_path() -> None:
    letters = vocabulary()
    tokens = [letters.lab2ind["<pad>" if c == "-" else c] for c in "|AA-B|-B-|"]
    logits = 9 * torch.eye(5, dtype=torch.float64)[tokens][None]
    [greedy] = greedy_transcripts(logits, torch.tensor([10]), letters)
    [beam] = BeamSearch(letters)(logits, torch.tensor([10]))
    assert [(w.text, w.start, w.end) for w in beam.words] == [
        (w.text, w.start, w.end) for w in greedy.words
    ]


def test_lengths_are_frames_and_the_rest_is_not_read() -> None:
    search, logits = BeamSearch(vocabulary()), lattice(frames=9)
    alone = search(logits[:, :7], torch.tensor([7]))
    logits[:, 7:] = float("nan")
    assert search(torch.cat([logits, logits]), torch.tensor([7, 7])) == alone * 2
    assert search(logits, torch.tensor([0]))[0].text == ""


@pytest.mark.parametrize("hot_words", [["AB"], "AB", ["ab"], ["AB BA"]])
def test_hot_words_are_preferred(hot_words: list[str] | str) -> None:
    """A lattice that is almost undecided between AA | BA and AB | BA."""
    letters = vocabulary()
    logits = 4.0 * torch.eye(5)[[1, 0, 1, 3, 2, 1]][None]
    logits[0, 2, 2] = logits[0, 2, 1] - 0.5
    lengths = torch.tensor([6])
    assert BeamSearch(letters)(logits, lengths)[0].text == "AA BA"
    assert BeamSearch(letters, hot_words=hot_words, boost=2)(logits, lengths)[0].text == "AB BA"


def test_a_hot_phrase_that_is_not_finished_earns_nothing() -> None:
    letters = vocabulary()
    logits = 4.0 * torch.eye(5)[[1, 0, 1, 3, 2, 1]][None]
    logits[0, 2, 2] = logits[0, 2, 1] - 0.5
    lengths = torch.tensor([6])
    for phrase in ("AB AB", "AB BA BA"):
        [found] = BeamSearch(letters, hot_words=[phrase], boost=2)(logits, lengths)
        assert found.text == "AA BA"


@pytest.mark.parametrize(("word", "text"), [(-0.01, "AB"), (-9.0, "A")])
def test_the_language_model_decides_where_the_sound_does_not(word: float, text: str) -> None:
    letters = vocabulary()
    logits = 6.0 * torch.eye(5)[[1, 0]][None]
    logits[0, 1, 2] = logits[0, 1, 0] - 0.1  # B or silence
    lm = language_model(word=word, end=-0.01)
    assert BeamSearch(letters, lm=lm)(logits, torch.tensor([2]))[0].text == text


def test_a_vocabulary_without_words() -> None:
    letters = vocabulary("-AB")
    logits = lattice(tokens=3)
    expected = brute_force(logits, letters)
    [best] = BeamSearch(letters, **ALL)(logits, torch.tensor([5]))
    assert best.text == max(expected, key=lambda text: expected[text])


def test_more_outputs_than_labels() -> None:
    """They say nothing, as special symbols."""
    letters, logits = vocabulary("-AB|"), lattice(tokens=6)
    [best] = BeamSearch(letters, **ALL)(logits, torch.tensor([5]), n_best=10_000)
    total = sum(math.exp(t.score) for t in (best, *best.alternatives))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_what_cannot_be_searched_is_refused() -> None:
    letters = vocabulary()
    with pytest.raises(ValueError, match=r"'B C' have characters outside the vocabulary: C"):
        BeamSearch(letters, hot_words=["A", "B C"])
    with pytest.raises(ValueError, match="beam=0"):
        BeamSearch(letters, beam=0)
    with pytest.raises(ValueError, match="n_best=0"):
        BeamSearch(letters)(lattice(), torch.tensor([5]), n_best=0)
    with pytest.raises(ValueError, match=r"None of the 2 words .* 'C'.* can be spelled with XYZ"):
        words = language_model()
        words.words = ["c", "d"]
        BeamSearch(vocabulary("-XYZ|"), lm=words)
