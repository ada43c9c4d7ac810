"""Decoding piece by piece is decoding at once, and stable text never changes."""

from __future__ import annotations

import io
from random import Random

import pytest
import torch
from torch import Tensor

from w2v_plugin.beam import BeamSearch
from w2v_plugin.decoding import greedy_transcripts
from w2v_plugin.live import BeamDecoder, GreedyDecoder
from w2v_plugin.ngrams import ArpaLM
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


def on_path(frames: str) -> Tensor:
    """Logits that say these symbols; `.` is the blank, `?` a special one."""
    letters = vocabulary()
    names = [{".": "<pad>", "?": "<unk>"}.get(frame, frame) for frame in frames]
    sure = torch.tensor([9.0 + number % 3 for number in range(len(frames))], dtype=torch.float64)
    return sure[:, None] * torch.eye(len(letters))[[letters.lab2ind[name] for name in names]]


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


@pytest.mark.parametrize(
    "frames",
    [
        "A", ".", "|", "....", "||||", "AA", "A.A", "A|A", "|A|", "||A||B||", ".|.A.|.", "A?A",
        "AB.|", "|.AB", "A..B|.|.A", "??A??", "B.B.BB|B",
    ],
)  # fmt: skip
def test_greedy_cut_anywhere(frames: str) -> None:
    """Between repeated letters, within runs, at word boundaries: every way to cut is the same."""
    letters, logits = vocabulary(), on_path(frames)
    [expected] = greedy_transcripts(logits[None], torch.tensor([len(logits)]), letters)
    for cuts in range(2 ** (len(frames) - 1)):
        decoder, begin = GreedyDecoder(letters), 0
        for end in range(1, len(frames) + 1):
            if end == len(frames) or cuts >> (end - 1) & 1:
                decoder.read(logits[begin:end])
                begin = end
        alike(decoder.cut(), expected)


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


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("kind", ["plain", "hot words", "language model"])
def test_beam_in_pieces(kind: str, seed: int) -> None:
    """As the search over the whole: text, times, score, alternatives; and again after a cut."""
    random, search = Random(seed), search_of(kind)
    decoder = BeamDecoder(search, commit_s=1e6, n_best=3)
    for utterance in range(2):
        logits = random_logits(random.randint(1, 60), 100 * utterance + seed, scale=1.5)
        for piece in pieces(logits, random):
            decoder.read(piece)
        [expected] = search(logits[None], torch.tensor([len(logits)]), n_best=3)
        found = decoder.cut()
        assert found.text == expected.text
        assert found.score == pytest.approx(expected.score, rel=1e-9, abs=1e-9)  # order of sums
        assert [x.text for x in found.alternatives] == [x.text for x in expected.alternatives]
        if utterance == 0:
            alike(found, expected)


def search_of(kind: str) -> BeamSearch:
    """Also with what makes the end of a word matter: scores of whole words."""
    if kind == "plain":
        return BeamSearch(vocabulary())
    if kind == "hot words":
        return BeamSearch(vocabulary(), hot_words=("AB BA",))
    arpa = (
        "\\data\\\nngram 1=5\nngram 2=2\n\n\\1-grams:\n-99 <s> -0.1\n-0.2 </s>\n"
        "-0.5 AB -0.7\n-1.0 A\n-2.0 <unk>\n\n\\2-grams:\n-0.3 A AB\n-0.9 AB </s>\n\n\\end\\"
    )
    return BeamSearch(vocabulary(), lm=ArpaLM(io.StringIO(arpa)))


@pytest.mark.parametrize("kind", ["plain", "hot words", "language model"])
def test_beam_search_remembers_its_hypotheses_only(kind: str) -> None:
    """Scores of others, which are most, are forgotten; those of words are found again."""
    decoder = BeamDecoder(search_of(kind))
    for piece in random_logits(300, 0, scale=1.5).split(10):
        decoder.read(piece)
        assert len(decoder._scores) <= len(decoder._beams) and not decoder._part_scores
    assert len(decoder.cut().words) > 3


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


def test_hypotheses_may_differ_in_what_was_just_said() -> None:
    """Late in an utterance, too: age counts from its beginning."""
    letters = vocabulary()
    a, b, gap = (letters.lab2ind[x] for x in ("A", "B", "|"))
    logits = torch.full((400, len(letters)), -20.0)
    logits[:, letters.get_blank_index()] = 0.0
    logits[300, [a, b]] = torch.tensor([9.0, 8.9])
    logits[301, gap] = 20.0
    decoder = BeamDecoder(BeamSearch(letters), commit_s=4.0)
    for piece in logits.split(200):
        decoder.read(piece)
    assert decoder.read_so_far()[1] == 0
    assert decoder.read_so_far()[0].text == "A"


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
