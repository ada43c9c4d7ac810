"""Forced alignment: the best of all paths that say the text, and clear refusals."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from w2v_plugin.alignment import align, best_path, spoken_posteriors
from w2v_plugin.decoding import greedy_transcripts, path_transcript
from w2v_plugin.text import CharVocabulary


def vocabulary(blank: int = 0) -> CharVocabulary:
    """Five outputs: the blank anywhere, A, B, the word boundary and a special symbol."""
    labels = ["A", "B", "|", "<unk>"]
    labels.insert(blank, "<pad>")
    letters = CharVocabulary(())
    letters.lab2ind = {label: index for index, label in enumerate(labels)}
    letters.ind2lab = dict(enumerate(labels))
    return letters


def paths(frames: int, tokens: int) -> list[tuple[int, ...]]:
    return list(product(range(tokens), repeat=frames))


@pytest.mark.parametrize("blank", [0, 3])
@pytest.mark.parametrize("text", ["A", "AB", "AA", "A B", "ABA", "B BA", ""])
def test_the_path_is_the_best_of_all(text: str, blank: int) -> None:
    """Of the 4^6 paths over six frames, in float64, one that says the text and is likeliest."""
    letters = vocabulary(blank)
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    logits[:, letters.lab2ind["|"]] -= 3  # not the likeliest at either end
    log_probs = spoken_posteriors(logits, letters)
    silent = {blank, letters.lab2ind["<unk>"]}
    best = -torch.inf
    for path in paths(6, 5):
        if path_transcript(torch.tensor(path), log_probs, letters).text != text:
            continue
        said = [letters.ind2lab[t] for t in path if t not in silent]
        if "|" in (said[:1] + said[-1:]):
            continue  # with `|` around the text: the next test
        best = max(best, sum(log_probs[i, t].item() for i, t in enumerate(path)))
    transcript = align(logits, text, letters)
    assert transcript.text == text
    assert transcript.score == pytest.approx(best, abs=1e-12)  # order of the sum


@pytest.mark.parametrize("path", ["|AA-B|", "|A", "B||", "-A|B-", "|A|B-|"])
def test_its_own_text_is_aligned_as_it_was_heard(path: str) -> None:
    """With `|` at the ends where the model says it."""
    letters = vocabulary()
    tokens = torch.tensor([letters.lab2ind["<pad>" if c == "-" else c] for c in path])
    logits = torch.rand(len(path), 5, dtype=torch.float64) + 9 * torch.eye(5)[tokens]
    [heard] = greedy_transcripts(logits[None], torch.tensor([len(path)]), letters)
    aligned = align(logits, heard.text, letters)
    assert [(c.text, c.start, c.end) for c in aligned.characters] == [
        (c.text, c.start, c.end) for c in heard.characters
    ]


def test_an_edge_that_does_not_fit_is_left_out() -> None:
    """Three frames for three characters, though the model says `|` first."""
    letters = vocabulary()
    logits = 9 * torch.eye(5)[[letters.lab2ind[c] for c in "|AB"]]
    assert align(logits, "BAB", letters).text == "BAB"


def test_special_symbols_count_as_blank() -> None:
    letters = vocabulary()
    logits = torch.randn(4, 7)  # two outputs more than labels
    p = spoken_posteriors(logits, letters).exp()
    before = logits.softmax(-1)
    torch.testing.assert_close(p.sum(-1), torch.ones(4))
    torch.testing.assert_close(p[:, 0], before[:, [0, 4, 5, 6]].sum(-1))
    torch.testing.assert_close(p[:, 1:4], before[:, 1:4])
    assert not p[:, 4:].any()


def test_what_was_not_said_has_a_low_confidence() -> None:
    letters = vocabulary()
    logits = 9 * torch.eye(5)[[0, 1, 0, 3, 0, 1, 0]]  # A | A
    first, second = align(logits, "A B", letters).words
    assert first.confidence > 0.99 and second.confidence < 0.01


def test_a_text_that_does_not_fit_is_refused() -> None:
    """Two equal characters need a blank between them."""
    letters = vocabulary()
    assert align(torch.zeros(3, 5), "AA", letters).text == "AA"
    with pytest.raises(ValueError, match=r"'AA' needs 3 frames at least \(0\.06 s\), .* has 2"):
        align(torch.zeros(2, 5), "AA", letters)


def test_a_text_of_other_characters_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the vocabulary: ! C"):
        align(torch.zeros(9, 5), "AC!", vocabulary())


def test_a_vocabulary_without_words() -> None:
    letters = CharVocabulary(())
    letters.lab2ind = {"<pad>": 0, "A": 1}
    letters.ind2lab = {0: "<pad>", 1: "A"}
    log_probs = (9 * torch.eye(2)[[1, 0, 1]]).log_softmax(-1)
    assert best_path(log_probs, [1, 1], letters).tolist() == [1, 0, 1]
