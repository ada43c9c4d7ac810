"""Characters <-> tokens: fixed indices, exact round trips, nothing silently dropped."""

from __future__ import annotations

import json
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
        ("Straße", "ABCẞ", "STRAẞE"),
        ("Don't", "abc'", "don't"),
        ("MiXed", "aB", "MiXed"),
        (unicodedata.normalize("NFD", "é"), "é", "é"),
        ("", ENGLISH, ""),
        ("한국", "한국", "한국"),
        ("İstanbul Işık", "abiklnstuş", "istanbul işık"),
        ("İstanbul Işık", "abiıklnstuş", "istanbul ışık"),
        ("istanbul ışık", "ABİIKLNSTUŞ", "İSTANBUL IŞIK"),
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


def published(folder: Path, vocab: object, **files: object) -> Path:
    for name, content in {"vocab": vocab, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "vocab.json"


def test_one_vocabulary_per_language(tmp_path: Path) -> None:
    """As MMS has them; what the tokenizer added is written down for one language only."""
    nested = {"eng": {"<pad>": 0, "|": 1, "a": 2}, "fra": {"é": 0, "<pad>": 1, "|": 2, "ç": 3}}
    settings = {
        "target_lang": "eng",
        "pad_token": {"content": "<pad>"},
        "added_tokens_decoder": {"0": {"content": "<pad>"}, "1": {"content": "|"}},
    }
    path = published(tmp_path, nested, tokenizer_config=settings)
    assert CharVocabulary.from_vocab_json(path).lab2ind == nested["eng"]
    french = CharVocabulary.from_vocab_json(path, "fra")
    assert french.lab2ind == nested["fra"] and french.get_blank_index() == 1
    with pytest.raises(ValueError, match=r"none for language='deu'\. Choose one of eng, fra"):
        CharVocabulary.from_vocab_json(path, "deu")
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="one vocabulary per language, but none for language=None"):
        CharVocabulary.from_vocab_json(path)


@pytest.mark.parametrize(
    ("files", "blank"),
    [
        ({"config": {"pad_token_id": 2}}, 2),
        ({"tokenizer_config": {"pad_token": "_"}}, 3),
        ({"tokenizer_config": {"pad_token": "_"}, "config": {"pad_token_id": 0}}, 0),
        ({}, 1),
    ],
)
def test_the_blank_is_where_the_checkpoint_says(tmp_path: Path, files: dict, blank: int) -> None:
    path = published(tmp_path, {"a": 0, "[PAD]": 1, "b": 2, "_": 3}, **files)
    assert CharVocabulary.from_vocab_json(path).get_blank_index() == blank


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ({"a": 0, "b": 0}, "two symbols have the same index"),
        ({"a": 0, "b": 1}, "no CTC blank"),
        ({"a": 0, "b": "1"}, "expected one index per symbol"),
        ([1], "expected a JSON object, got a list"),
    ],
)
def test_bad_vocabularies_are_named(tmp_path: Path, vocab: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"vocab\.json: {message}"):
        CharVocabulary.from_vocab_json(published(tmp_path, vocab))
