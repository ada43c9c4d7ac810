"""Vocabularies made from texts: what they hold, how they are written, read and used."""

from __future__ import annotations

import io
import json
import unicodedata
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceTrainer
from speechbrain.inference.ASR import EncoderASR

from w2v_plugin.alignment import align
from w2v_plugin.beam import BeamSearch
from w2v_plugin.conversion import open_folder
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.decoding import greedy_transcripts
from w2v_plugin.folders import load_head, save_asr
from w2v_plugin.interfaces import Wav2Vec2ASR
from w2v_plugin.live import GreedyDecoder
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pieces import cut, piece_list, read_pieces, train_pieces
from w2v_plugin.text import CharVocabulary
from w2v_plugin.vocabularies import UNITS, build_vocabulary, read_vocabulary, vocabulary_file

YORUBA = [unicodedata.normalize("NFC", text) for text in ("ọ́kọ̀ ọkọ ọ̀kọ́", "kò kó ko", "ọ́ ọ")]
WORDS = {"banane": 9, "ananas": 8, "band": 5, "sand": 4, "das": 9, "es": 9, "nass": 3}
CPU = {"device": "cpu"}


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def pieces(request: pytest.FixtureRequest) -> CharVocabulary:
    texts = [" ".join([word] * count) for word, count in WORDS.items()]
    return build_vocabulary(texts, request.param, 12)


def ctc(outputs: int) -> Wav2Vec2CTC:
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    return Wav2Vec2CTC(Wav2Vec2(**shape, positions_kernel=8), vocab_size=outputs).eval()


def said(vocabulary: CharVocabulary, text: str) -> torch.Tensor:
    """(1, frames, vocab) logits of a model that is sure of a text: each token, then a blank."""
    path = [index for token in vocabulary.encode_text(text) for index in (token, 0)]
    return 20 * torch.eye(len(vocabulary))[path][None]


def test_characters_stand_by_frequency_behind_the_published_specials() -> None:
    """A letter with marks that do not compose is one; the order does not depend on chance."""
    vocabulary = build_vocabulary(YORUBA)
    specials = ["<pad>", "<s>", "</s>", "<unk>", "|"]
    assert [vocabulary.ind2lab[i] for i in range(5)] == specials
    assert vocabulary.letters[0] == "k" and len(vocabulary) == len(vocabulary.letters) + 5
    assert {"ọ", "o", "ò", "ó"} < set(vocabulary.letters)
    assert sum(len(letter) == 2 for letter in vocabulary.letters) == 2  # ọ́ ọ̀
    assert build_vocabulary(reversed(YORUBA)).lab2ind == vocabulary.lab2ind


@pytest.mark.parametrize("text", YORUBA)
def test_the_longest_letter_is_taken(text: str) -> None:
    vocabulary = build_vocabulary(YORUBA)
    tokens = vocabulary.encode_text(text)
    assert vocabulary.decode_tokens(tokens) == text
    marks = sum(unicodedata.combining(character) >= 200 for character in text)
    assert len(tokens) == len(text) - marks


def test_a_letter_without_its_mark_is_no_letter() -> None:
    """ọ is known and ọ́ is not: the mark is named instead of lost."""
    vocabulary = CharVocabulary(["ọ", "k"])
    assert vocabulary.unknown("kọ́") == ["\u0301"]
    with pytest.raises(ValueError, match="outside the vocabulary"):
        vocabulary.encode_text("kọ́")


@pytest.mark.parametrize("units", UNITS)
def test_files_bring_vocabularies_back(tmp_path: Path, units: str) -> None:
    """vocab.json as transformers reads it, pieces.model as sentencepiece does."""
    vocabulary = build_vocabulary([*WORDS, "ọ́ säße"], units, 14)
    name, content = vocabulary_file(vocabulary)
    (tmp_path / name).write_bytes(content)
    read = read_vocabulary(tmp_path / name)
    assert read.lab2ind == vocabulary.lab2ind and read.pieces == vocabulary.pieces
    assert read.encode_text("banane säße") == vocabulary.encode_text("banane säße")
    if units == "characters":
        assert json.loads(content)["<pad>"] == 0 and json.loads(content)["|"] == 4


def test_pieces_are_letters_as_others(pieces: CharVocabulary) -> None:
    """Words are cut, never joined; the boundary is a symbol of its own."""
    text = "das ananas band"
    tokens = pieces.encode_text(text)
    assert pieces.decode_tokens(tokens) == text and len(tokens) < len(text)
    assert pieces.lab2ind["|"] in tokens and not any(" " in piece for piece in pieces.letters)
    assert len(pieces.letters) == 12 and set("".join(WORDS)) <= set(pieces.letters)
    assert pieces.unknown("das haus, é") == [",", "h", "u", "é"]
    assert pieces.encode_known("é x")[0] == pieces.lab2ind["<unk>"]


def test_pieces_decode_align_and_search(pieces: CharVocabulary) -> None:
    """Greedy, live, beam and forced alignment know nothing of pieces, and need not."""
    text = "ananas es sand"
    logits = said(pieces, text)
    lengths = torch.tensor([logits.shape[1]])
    transcript = greedy_transcripts(logits, lengths, pieces)[0]
    assert transcript.text == text and [w.text for w in transcript.words] == text.split()
    assert "".join(c.text for c in transcript.characters) == text.replace(" ", "")
    live = GreedyDecoder(pieces)
    for frame in logits[0].split(1):
        live.read(frame)
    assert live.read_so_far()[0].text == text
    aligned = align(logits[0], text, pieces)
    assert [(w.text, w.start) for w in aligned.words] == [
        (w.text, w.start) for w in transcript.words
    ]
    assert BeamSearch(pieces, hot_words=["banane"])(logits, lengths)[0].text == text


def test_model_folders_keep_pieces(tmp_path: Path, pieces: CharVocabulary) -> None:
    """Our loaders, SpeechBrain's own, the converter and the next training read them again."""
    model = ctc(len(pieces))
    save_asr(tmp_path / "model", model, pieces)
    asr = Wav2Vec2ASR.from_hparams(source=tmp_path / "model", run_opts=CPU)
    text = "das ananas band"
    assert asr.tokenizer.encode_text(text) == pieces.encode_text(text)
    assert asr.tokenizer.pieces == pieces.pieces and asr.tokenizer.lab2ind == pieces.lab2ind
    wavs, lens = torch.randn(1, 8000), torch.ones(1)
    theirs = EncoderASR.from_hparams(
        source=str(tmp_path / "model"), savedir=str(tmp_path / "there"), run_opts=CPU
    )
    texts, _ = asr.transcribe_batch(wavs, lens)
    assert theirs.transcribe_batch(wavs, lens)[0] == texts
    vocabulary = open_folder(tmp_path / "model")[1]
    assert vocabulary is not None and vocabulary.pieces == pieces.pieces
    assert load_head(tmp_path / "model", ctc(len(pieces)), pieces)


def test_loading_characters_forgets_pieces(tmp_path: Path, pieces: CharVocabulary) -> None:
    CharVocabulary("ab").save(tmp_path / "tokenizer.ckpt")
    loaded = CharVocabulary(pieces.letters, pieces.pieces)
    loaded.load(tmp_path / "tokenizer.ckpt")
    assert loaded.pieces is None and loaded.encode_text("ab") == [5, 6]


def test_known_characters_are_encoded_and_others_named_unknown() -> None:
    """`|` in a text is no boundary, and without <unk> what is unknown is left out."""
    vocabulary = CharVocabulary("ab")
    assert vocabulary.encode_known("a|b é") == [5, 3, 6, 4, 3]
    assert CharVocabulary.from_symbols({"-": 0, "a": 1}, "-").encode_known("a ba") == [1, 1]
    bare = CharVocabulary.from_symbols({"-": 0, "a": 1}, "-")
    with pytest.raises(ValueError, match="outside the vocabulary"):
        bare.encode_text("a a")


@pytest.mark.parametrize(
    ("texts", "units", "size", "message"),
    [
        ([], "characters", 5, "No text to make a vocabulary of"),
        (["  "], "bpe", 5, "No text to make a vocabulary of"),
        (["abc"], "words", 5, "units='words', expected one of characters, unigram, bpe"),
        (["abcdefgh"], "unigram", 5, "No 5 pieces can be made of 1 different words with 8"),
        (["ab"], "bpe", 500, "and for fewer where words are few"),
    ],
)
def test_what_cannot_be_made_is_refused(
    texts: list[str], units: str, size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_vocabulary(texts, units, size)


def test_files_that_are_no_vocabulary_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.json: no such vocabulary"):
        read_vocabulary(tmp_path / "absent.json")
    (tmp_path / "pieces.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"pieces\.model: no sentencepiece model"):
        read_vocabulary(tmp_path / "pieces.model")
    with pytest.raises(ValueError, match="kind='words'"):
        train_pieces({"a": 1}, 5, "words")


def test_pieces_of_sentences_are_refused(tmp_path: Path) -> None:
    """As other toolkits make them: a piece holds the space before it."""
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["das band das es", "es das nass"] * 9),
        model_writer=written,
        vocab_size=11,
        minloglevel=2,
    )
    (tmp_path / "bpe.model").write_bytes(written.getvalue())
    assert read_pieces(tmp_path / "bpe.model")
    with pytest.raises(ValueError, match="pieces hold a space, such as '▁"):
        read_vocabulary(tmp_path / "bpe.model")


def test_every_word_is_cut_into_known_pieces() -> None:
    """Words of the training text, of other words, and of characters without a piece."""
    model = train_pieces(WORDS, 12, "bpe")
    known = set(piece_list(model))
    for word in (*WORDS, "sandbanane", "nas"):
        assert "".join(cut(model, word)) == word and set(cut(model, word)) <= known
    assert "".join(cut(model, "bäx")) == "bäx"
