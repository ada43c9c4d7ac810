"""Greedy decoding: the most likely path, collapsed, up to the last valid frame; times of a path."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch

from w2v_plugin.decoding import greedy, greedy_transcripts, path_transcript
from w2v_plugin.text import CharVocabulary


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("frames", [1, 5, 200])
def test_repeats_merge_and_then_blanks_go(blank: int, frames: int) -> None:
    """Against itertools.groupby, on random paths with many repeats."""
    path = torch.randint(0, 3, (20, frames), generator=torch.Generator().manual_seed(0))
    logits = 10 * torch.nn.functional.one_hot(path, 4).float() + torch.rand(20, frames, 4)
    lengths = torch.randint(0, frames + 1, (20,), generator=torch.Generator().manual_seed(1))
    expected = [
        [token for token, _ in groupby(row[:length].tolist()) if token != blank]
        for row, length in zip(path, lengths.tolist(), strict=True)
    ]
    assert greedy(logits, lengths, blank) == expected
    assert greedy(logits.log_softmax(-1), lengths, blank) == expected


@pytest.mark.parametrize(
    ("path", "tokens"),
    [
        ([1, 1, 0, 1], [1, 1]),  # a blank separates repeats
        ([1, 2, 1], [1, 2, 1]),
        ([0, 0, 0], []),
        ([0, 1, 0], [1]),
        ([], []),
    ],
)
def test_known_paths(path: list[int], tokens: list[int]) -> None:
    logits = torch.eye(3)[torch.tensor(path, dtype=torch.long)][None]
    assert greedy(logits, torch.tensor([len(path)])) == [tokens]


def test_what_follows_the_utterance_is_not_read() -> None:
    """Not even NaN; and the boundary is exact: one frame more says one token more."""
    logits = torch.eye(4)[torch.tensor([[1, 2, 3, 1]])]
    logits[0, 3] = float("nan")
    assert greedy(logits, torch.tensor([2])) == [[1, 2]]
    assert greedy(logits, torch.tensor([3])) == [[1, 2, 3]]


def test_lengths_must_match_the_batch() -> None:
    with pytest.raises(ValueError, match="zip"):
        greedy(torch.zeros(2, 3, 4), torch.tensor([3]))


def vocabulary(blank: int = 0) -> CharVocabulary:
    """Five outputs: the blank anywhere, A, B, the word boundary and a special symbol."""
    labels = ["A", "B", "|", "<unk>"]
    labels.insert(blank, "<pad>")
    letters = CharVocabulary(())
    letters.lab2ind = {label: index for index, label in enumerate(labels)}
    letters.ind2lab = dict(enumerate(labels))
    return letters


def on_path(path: str, letters: CharVocabulary) -> tuple[torch.Tensor, torch.Tensor]:
    """A path, written with `-` for the blank and `?` for `<unk>`, and random posteriors for it."""
    labels = [{"-": "<pad>", "?": "<unk>"}.get(c, c) for c in path]
    tokens = torch.tensor([letters.lab2ind[label] for label in labels], dtype=torch.long)
    logits = torch.rand(len(path), 5, dtype=torch.float64) + 9 * torch.eye(5)[tokens]
    return tokens, logits.log_softmax(-1)


@pytest.mark.parametrize("blank", [0, 2, 4])
def test_the_text_is_that_of_greedy(blank: int) -> None:
    """On paths of all kinds: blanks, repeats, doubled and outer boundaries, special symbols."""
    letters = vocabulary(blank)
    logits = torch.randn(50, 40, 5, generator=torch.Generator().manual_seed(0))
    lengths = torch.randint(0, 41, (50,), generator=torch.Generator().manual_seed(1))
    tokens = greedy(logits, lengths, blank)
    found = greedy_transcripts(logits, lengths, letters)
    assert [t.text for t in found] == [letters.decode_tokens(row) for row in tokens]
    for transcript in found:
        assert " ".join(w.text for w in transcript.words) == transcript.text
        letters_said = "".join(c.text for c in transcript.characters)
        assert letters_said == transcript.text.replace(" ", "")


def test_times_are_those_of_the_frames() -> None:
    letters = vocabulary()
    path, log_probs = on_path("-AA-B||?B-", letters)
    transcript = path_transcript(path, log_probs, letters)
    times = [(c.text, c.start, c.end) for c in transcript.characters]
    assert times == [("A", 0.02, 0.06), ("B", 0.08, 0.1), ("B", 0.16, 0.18)]
    words = [(w.text, w.start, w.end) for w in transcript.words]
    assert words == [("AB", 0.02, 0.1), ("B", 0.16, 0.18)]


def test_confidence_is_the_peak_of_a_character_and_their_product_in_a_word() -> None:
    letters = vocabulary()
    path, log_probs = on_path("AA-B", letters)
    transcript = path_transcript(path, log_probs, letters)
    p = log_probs.exp()
    a, b = p[:2, path[0]].max().item(), p[3, path[3]].item()
    assert [c.confidence for c in transcript.characters] == [a, b]
    assert transcript.words[0].confidence == a * b
    best = log_probs.gather(1, path[:, None]).sum().item()
    assert transcript.score == pytest.approx(best, abs=1e-12)  # order of the sum


def test_posteriors_in_half_precision_and_with_gradients() -> None:
    """What a model gives outside of the interfaces; the same as in float32 beforehand."""
    logits = torch.randn(1, 9, 5, requires_grad=True)
    half = logits.bfloat16()
    lengths = torch.tensor([9])
    expected = greedy_transcripts(half.detach().float(), lengths, vocabulary())
    assert greedy_transcripts(half, lengths, vocabulary()) == expected


def test_transcripts_do_not_read_what_follows_either() -> None:
    logits = torch.randn(1, 9, 5)
    expected = greedy_transcripts(logits[:, :5], torch.tensor([5]), vocabulary())
    logits[:, 5:] = float("nan")
    assert greedy_transcripts(logits, torch.tensor([5]), vocabulary()) == expected


def test_no_frames_no_words() -> None:
    [transcript] = greedy_transcripts(torch.zeros(1, 0, 5), torch.tensor([0]), vocabulary())
    assert transcript.text == "" and transcript.words == () and transcript.score == 0.0
