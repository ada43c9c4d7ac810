"""Pieces of words, found by sentencepiece in the words of a corpus: fewer, longer letters.

Pieces are trained on words, not on sentences, so that none reaches over a space: the boundary
between words stays a symbol of its own, as it is with characters, and times of words, live text
and beam search work on pieces as they are. A model is kept as text (base64), so that it fits into
the same file as the vocabulary; `read_pieces` and `pieces_file` exchange it with sentencepiece's
own `.model` files.

Surprising: sentencepiece cuts between code points, so a letter and its mark may fall into two
pieces.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

SPACE = "\u2581"  # what sentencepiece writes for one
KINDS = ("unigram", "bpe")


def train_pieces(words: Mapping[str, int], size: int, kind: str = "unigram") -> str:
    """Find pieces that words are made of.

    Parameters
    ----------
    words : mapping of str to int
        Words of the training text, and how often each occurs.
    size : int
        How many pieces; every character of the words is one of them.
    kind : {"unigram", "bpe"}
        Kudo's unigram language model (2018), or byte-pair encoding (Sennrich et al., 2016).

    Returns
    -------
    str
        The model, for `cut` and `CharVocabulary`.

    Raises
    ------
    ValueError
        The words have more characters than `size`, or too few words for so many pieces.

    Example
    -------
    >>> model = train_pieces({"banana": 9, "bandana": 5, "ananas": 7}, 7, "bpe")
    >>> cut(model, "banana")
    ['b', 'an', 'ana']
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}, expected one of {', '.join(KINDS)}.")
    written = io.BytesIO()
    lines = (f"{word}\t{count}" for word, count in sorted(words.items()))
    try:
        SentencePieceTrainer.train(
            sentence_iterator=lines,
            input_format="tsv",
            model_writer=written,
            model_type=kind,
            vocab_size=size + 1,  # and one for what is unknown
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            split_by_unicode_script=False,  # Japanese words mix three
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        characters = len(set("".join(words)))
        raise ValueError(
            f"No {size} pieces can be made of {len(words)} different words with {characters} "
            f"characters. Ask for more than {characters}, and for fewer where words are few. "
            f"(sentencepiece: {str(error).rpartition('] ')[2]})"
        ) from error
    return base64.b64encode(written.getvalue()).decode()


def cut(model: str, word: str) -> list[str]:
    """The pieces of a word; characters that the model does not know are left as they are.

    Example
    -------
    >>> cut(train_pieces({"ab": 3, "b": 5}, 3, "bpe"), "abxb")
    ['ab', 'x', 'b']
    """
    return _processor(model).encode(word, out_type=str)


def piece_list(model: str) -> list[str]:
    """All pieces, in the order of sentencepiece.

    Raises
    ------
    ValueError
        Some hold the space before the word, as in models made from sentences.

    Example
    -------
    >>> piece_list(train_pieces({"ab": 3, "b": 5}, 3, "bpe"))
    ['ab', 'b', 'a']
    """
    known = _processor(model)
    ids = [i for i in range(known.get_piece_size()) if not known.is_unknown(i)]
    pieces = [known.id_to_piece(i) for i in ids if not (known.is_control(i) or known.is_byte(i))]
    if joined := [piece for piece in pieces if SPACE in piece]:
        raise ValueError(
            f"{len(joined)} of {len(pieces)} pieces hold a space, such as {joined[0]!r}: they were "
            "made from sentences. Expected pieces of words, as recipes/prepare/text.py makes them."
        )
    return pieces


def read_pieces(path: str | Path) -> str:
    """The model in a `.model` file of sentencepiece; ValueError if it is none."""
    model = base64.b64encode(Path(path).read_bytes()).decode()
    try:
        _processor(model)
    except RuntimeError as error:
        raise ValueError(f"{path}: no sentencepiece model. Copy it again, or make it.") from error
    return model


def pieces_file(model: str) -> bytes:
    """Content of the `.model` file that sentencepiece reads, too."""
    return base64.b64decode(model)


@lru_cache(maxsize=8)
def _processor(model: str) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=pieces_file(model))
