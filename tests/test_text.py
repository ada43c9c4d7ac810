"""Characters <-> tokens: fixed indices, exact round trips, nothing silently dropped."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from w2v_plugin.text import ENGLISH, CharVocabulary, ctc_frames, normalize_text


def test_the_english_vocabulary_is_the_published_one() -> None:
    """facebook/wav2vec2-base-960h, index by index."""
    vocabulary = CharVocabulary()
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    assert [vocabulary.ind2lab[i] for i in range(len(vocabulary))] == symbols
    assert vocabulary.get_blank_index() == 0 and vocabulary.letters == list(ENGLISH)


@pytest.mark.parametrize(
    ("text", "letters", "expected"),
    [
        ("  a \t b\n", "ABC", "A B"),
        ("Straße", "ABC", "STRASSE"),
        ("Don't", "abc'", "don't"),
        ("MiXed", "aB", "MiXed"),
        (unicodedata.normalize("NFD", "é"), "é", "é"),
        ("", ENGLISH, ""),
        ("한국", "한국", "한국"),
    ],
)
def test_texts_get_the_case_of_the_letters(text: str, letters: str, expected: str) -> None:
    """NFC, single spaces; letters of both cases leave the text as it is."""
    assert normalize_text(text, letters) == expected


@pytest.mark.parametrize(
    ("letters", "text"),
    [
        (ENGLISH, "IT'S A ZOO"),
        ("abcäß", "aß bä"),
        ("가나", "나 가"),
        (["ch", "a"], "a a"),
        ("A", ""),
    ],
)
def test_decoding_undoes_encoding(letters: str, text: str) -> None:
    """For every normalized text over the letters; as list and as tensor."""
    vocabulary = CharVocabulary(letters)
    tokens = vocabulary.encode_text(text)
    assert vocabulary.decode_tokens(tokens) == text
    assert vocabulary.decode_tokens(torch.tensor(tokens, dtype=torch.long)) == text
    assert vocabulary.get_blank_index() not in tokens


def test_special_symbols_are_no_text() -> None:
    """They vanish; word boundaries at the ends and in a row make no spaces."""
    assert CharVocabulary().decode_tokens([4, 4, 1, 7, 3, 4, 0, 4, 7, 2, 4]) == "A A"


@pytest.mark.parametrize(("text", "unknown"), [("a-b", "-"), ("ok | 1", "1 |"), ("<pad>", "< >")])
def test_characters_without_a_token_are_named(text: str, unknown: str) -> None:
    """Also `|` and the spelling of special symbols: a text cannot smuggle in a blank."""
    vocabulary = CharVocabulary()
    assert vocabulary.unknown(text) == unknown.split()
    with pytest.raises(ValueError, match=f"outside the vocabulary: {unknown}".replace("|", r"\|")):
        vocabulary.encode_text(text)


def test_saved_vocabularies_come_back(tmp_path: Path) -> None:
    """SpeechBrain's own text format, with awkward letters, into a vocabulary of another size."""
    vocabulary = CharVocabulary(["'", "=", "ä", "한", '"'])
    vocabulary.save(tmp_path / "vocabulary.txt")
    other = CharVocabulary()
    other.load(tmp_path / "vocabulary.txt")
    assert other.lab2ind == vocabulary.lab2ind and other.letters == vocabulary.letters
    assert other.get_blank_index() == 0
    assert other.decode_tokens(vocabulary.encode_text("ä'= 한")) == "ä'= 한"


def test_batches_decode_row_by_row() -> None:
    """`decode_ndim` as SpeechBrain's recipes use it: lists of characters."""
    rows = CharVocabulary().decode_ndim([[7, 4, 0], [5]])
    assert rows == [["A", " ", ""], ["E"]]


@pytest.mark.parametrize("tokens", [[], [5], [5, 5], [5, 6, 5], [5, 5, 5, 6, 6]])
def test_ctc_frames_is_the_fewest_that_have_a_path(tokens: list[int]) -> None:
    """CTC itself is the judge: infinite loss with one frame less, finite with exactly these."""
    needed = ctc_frames(tokens)
    log_probs = torch.full((max(needed, 1), 1, 8), 1 / 8).log()
    for frames in range(1, needed + 1):
        lengths = torch.tensor([frames]), torch.tensor([len(tokens)])
        loss = F.ctc_loss(log_probs[:frames], torch.tensor([tokens]), *lengths)
        assert bool(loss.isfinite()) == (frames == needed)
