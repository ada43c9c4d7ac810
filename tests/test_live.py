"""Decoding piece by piece is decoding at once, and stable text never changes."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import Tensor

from w2v_plugin.beam import BeamSearch
from w2v_plugin.decoding import greedy_transcripts
from w2v_plugin.live import BeamDecoder, GreedyDecoder
from w2v_plugin.text import CharVocabulary
from w2v_plugin.transcripts import Transcript


def vocabulary() -> CharVocabulary:
    return CharVocabulary("AB")  # <pad> <s> </s> <unk> | A B, in some order


def random_logits(frames: int, seed: int, scale: float = 4.0) -> Tensor:
    """Runs, blanks and boundaries; `scale` says how sure."""
    generator = torch.Generator().manual_seed(seed)
    size = len(vocabulary())
    tokens = torch.randint(size, (frames,), generator=generator)
    tokens = torch.where(torch.rand(frames, generator=generator) < 0.4, tokens.roll(1), tokens)
    noise = torch.rand(frames, size, dtype=torch.float64, generator=generator)
    return noise + scale * torch.eye(size, dtype=torch.float64)[tokens]


def pieces(logits: Tensor, random: Random) -> list[Tensor]:
    cuts = sorted(random.randint(0, len(logits)) for _ in range(random.randint(0, 9)))
    ends = [*cuts, len(logits)]
    return [logits[a:b] for a, b in zip([0, *cuts], ends, strict=True) if b > a]


def alike(found: Transcript, expected: Transcript) -> None:
    """Equal but for the order of sums."""
    assert found.text == expected.text
    for mine, theirs in zip(found.words, expected.words, strict=True):
        assert (mine.text, mine.start, mine.end) == (theirs.text, theirs.start, theirs.end)
        assert mine.confidence == pytest.approx(theirs.confidence, rel=1e-9)
    assert found.characters == expected.characters
    assert found.score == pytest.approx(expected.score, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(50))
def test_greedy_in_pieces(seed: int) -> None:
    """Same words, times, confidences, score; a run that is cut is one character."""
    random = Random(seed)
    logits = random_logits(random.randint(1, 80), seed)
    decoder = GreedyDecoder(vocabulary())
    for piece in pieces(logits, random):
        decoder.read(piece)
    [expected] = greedy_transcripts(logits[None], torch.tensor([len(logits)]), vocabulary())
    alike(decoder.read_so_far()[0], expected)
    alike(decoder.cut(), expected)
    assert decoder.read_so_far() == (Transcript("", score=0.0), 0)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_stable_text_only_grows(kind: str, seed: int) -> None:
    """Up to the final text, whatever comes; with beam search, although the rest changes."""
    random, letters = Random(seed), vocabulary()
    logits = random_logits(120, seed, scale=1.5)
    decoder = GreedyDecoder(letters) if kind == "greedy" else BeamDecoder(BeamSearch(letters))
    before: list[str] = []
    for piece in pieces(logits, random):
        decoder.read(piece)
        transcript, stable = decoder.read_so_far()
        words = [word.text for word in transcript.words]
        assert words[: len(before)] == before
        before = words[:stable]
    final = decoder.cut()
    assert [word.text for word in final.words][: len(before)] == before
    assert kind == "beam" or len(before) > 0


def test_greedy_letters_never_change() -> None:
    """Also those of the word that is not finished: it grows."""
    random, decoder, before = Random(0), GreedyDecoder(vocabulary()), ""
    for piece in pieces(random_logits(200, 0, scale=1.5), random):
        decoder.read(piece)
        text = decoder.read_so_far()[0].text
        assert text.startswith(before)
        before = text


def test_without_word_boundaries_all_is_stable() -> None:
    letters = vocabulary()
    del letters.lab2ind["|"]
    decoder = GreedyDecoder(letters)
    decoder.read(9 * torch.eye(len(letters.ind2lab))[[letters.lab2ind["A"], letters.lab2ind["B"]]])
    transcript, stable = decoder.read_so_far()
    assert stable == len(transcript.words) == 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("hot", [(), ("AB BA",)])
def test_beam_in_pieces(seed: int, hot: tuple[str, ...]) -> None:
    """As the search over the whole: text, times, score, alternatives."""
    random, search = Random(seed), BeamSearch(vocabulary(), hot_words=hot)
    logits = random_logits(random.randint(1, 60), seed, scale=1.5)
    decoder = BeamDecoder(search, commit_s=1e6, n_best=3)
    for piece in pieces(logits, random):
        decoder.read(piece)
    [expected] = search(logits[None], torch.tensor([len(logits)]), n_best=3)
    found = decoder.cut()
    alike(found, expected)
    assert [x.text for x in found.alternatives] == [x.text for x in expected.alternatives]


def test_hypotheses_must_agree_in_time() -> None:
    """Two readings of one frame, and then nothing that tells them apart."""
    letters = vocabulary()
    a, b, gap = (letters.lab2ind[x] for x in ("A", "B", "|"))
    blank = letters.get_blank_index()
    logits = torch.full((400, len(letters)), -20.0)
    logits[:, blank] = 0.0
    logits[0, [a, b]] = torch.tensor([9.0, 8.9])
    logits[1, gap] = 20.0
    for at in range(10, 400, 10):  # blanks alone would be skipped, with no harm
        logits[at, [a, gap][at // 10 % 2]] = 20.0
    for commit_s, expected in ((5.0, True), (100.0, False)):
        decoder = BeamDecoder(BeamSearch(letters), commit_s=commit_s)
        decoder.read(logits[:200])
        assert decoder.read_so_far()[1] == 0
        decoder.read(logits[200:])
        assert (decoder.read_so_far()[1] > 0) == expected
        assert decoder.cut().text.startswith("A ")


@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_times_count_from_the_beginning_of_the_stream(kind: str) -> None:
    """Not from that of the utterance."""
    letters = vocabulary()
    decoder = GreedyDecoder(letters) if kind == "greedy" else BeamDecoder(BeamSearch(letters))
    said = 9 * torch.eye(len(letters))[[letters.lab2ind[x] for x in ("A", "|", "B")]]
    decoder.read(said)
    first = decoder.cut()
    decoder.read(said)
    second = decoder.cut()
    assert (first.words[0].start, second.words[0].start) == (0.0, 0.06)
    assert first.text == second.text == "A B"


@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_nothing_was_read(kind: str) -> None:
    letters = vocabulary()
    decoder = GreedyDecoder(letters) if kind == "greedy" else BeamDecoder(BeamSearch(letters))
    assert decoder.read_so_far()[0].text == decoder.cut().text == ""
