"""Vocabularies as files: what recipes name and what the preparation of texts makes and writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from w2v_plugin.normalization import split_units
from w2v_plugin.pieces import KINDS, piece_list, pieces_file, read_pieces, train_pieces
from w2v_plugin.text import CharVocabulary

UNITS = ("characters", *KINDS)


def build_vocabulary(
    texts: Iterable[str], units: str = "characters", size: int = 500
) -> CharVocabulary:
    """The vocabulary of a corpus: special symbols as in the published one, then its letters.

    Parameters
    ----------
    texts : iterable of str
        Normalized, see `TextRules`; everything that they hold gets a token.
    units : {"characters", "unigram", "bpe"}
        Characters (see `split_units`) by their frequency, or pieces of words as sentencepiece
        finds them.
    size : int
        Number of pieces.

    Raises
    ------
    ValueError
        There is no text, or it cannot be cut into so many pieces.

    Example
    -------
    >>> build_vocabulary(["ọ́la", "lala"]).letters
    ['a', 'l', 'ọ́']
    """
    if units not in UNITS:
        raise ValueError(f"units={units!r}, expected one of {', '.join(UNITS)}.")
    words = Counter(word for text in texts for word in text.split())
    if not words:
        raise ValueError("No text to make a vocabulary of. Expected at least one word.")
    if units != "characters":
        pieces = train_pieces(words, size, units)
        return CharVocabulary(piece_list(pieces), pieces)
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for unit in split_units(word):
            counts[unit] += count
    return CharVocabulary(sorted(counts, key=lambda unit: (-counts[unit], unit)))


def read_vocabulary(path: str | Path | None = None) -> CharVocabulary:
    """The vocabulary of a file; without one, the published English letters.

    Parameters
    ----------
    path : str or Path, optional
        A vocab.json in transformers' format, or a pieces.model of sentencepiece.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It holds no vocabulary, or pieces that reach over spaces.

    Example
    -------
    >>> len(read_vocabulary())
    32
    """
    if path is None:
        return CharVocabulary()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such vocabulary. Expected the vocab.json or pieces.model that "
            "recipes/prepare/text.py writes, or null for the published English letters."
        )
    if path.suffix != ".model":
        vocabulary = CharVocabulary.from_vocab_json(path)
        vocabulary.fit(len(vocabulary), str(path))
        return vocabulary
    pieces = read_pieces(path)
    return CharVocabulary(piece_list(pieces), pieces)


def vocabulary_file(vocabulary: CharVocabulary) -> tuple[str, bytes]:
    """Name and content of the file that `read_vocabulary` reads.

    Parameters
    ----------
    vocabulary : CharVocabulary
        pieces.model if it has pieces, vocab.json if it has characters.

    Example
    -------
    >>> name, content = vocabulary_file(CharVocabulary("ab"))
    >>> name, list(json.loads(content))[4:]
    ('vocab.json', ['|', 'a', 'b'])
    """
    if vocabulary.pieces is not None:
        return "pieces.model", pieces_file(vocabulary.pieces)
    text = json.dumps(vocabulary.lab2ind, ensure_ascii=False, indent=1)
    return "vocab.json", f"{text}\n".encode()
