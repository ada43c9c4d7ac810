"""Vocabularies as files: what recipes name and what the preparation of texts writes."""

from __future__ import annotations

from pathlib import Path

from w2v_plugin.text import CharVocabulary


def read_vocabulary(path: str | Path | None = None) -> CharVocabulary:
    """The vocabulary of a file; without one, the published English letters.

    Parameters
    ----------
    path : str or Path, optional
        A vocab.json in transformers' format.

    Example
    -------
    >>> len(read_vocabulary())
    32
    """
    return CharVocabulary() if path is None else CharVocabulary.from_vocab_json(path)
