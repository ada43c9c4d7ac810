"""Word n-gram language models for beam search: ARPA files, and KenLM's binary files.

ARPA files (plain or gzip) are read by SpeechBrain and stay in Python dictionaries: right for some
hundred thousand n-grams. For millions, make a binary file with KenLM's `build_binary`; it needs
the optional package kenlm (`pip install "w2v_plugin[lm]"`).

Surprising: SpeechBrain's `read_arpa` never returns on a file that ends within a section, and does
not compare the counts of the header, so both are done here.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TextIO

from speechbrain.lm.arpa import read_arpa
from speechbrain.lm.ngram import BackoffNgramLM

START, END, UNKNOWN = "<s>", "</s>", ("<unk>", "<UNK>")
GZIP, KENLM = b"\x1f\x8b", b"mmap lm "  # first bytes of a file
DECODING = {"alpha": float, "beta": float, "oov": float, "beam": int}  # what is tuned, see beam.py


class NgramLM(Protocol):
    """A word language model with states; scores are natural logarithms."""

    words: Collection[str]  # all that it knows, without special symbols; empty if it cannot say

    def __contains__(self, word: str) -> bool:
        """Whether the model knows a word."""

    def start(self) -> Any:
        """State at the beginning of a sentence."""

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """Log-probability of any word, or `</s>`, after `state`, and the next state."""


def load_ngrams(path: str | Path, words: Iterable[str] = ()) -> NgramLM:
    r"""Read a language model, whatever the name of the file.

    Parameters
    ----------
    path : str or Path
        ARPA, plain or compressed with gzip, or a binary file of KenLM.
    words : iterable of str
        The words of a binary file, which itself holds only hashes of them (an ARPA file says them).
        Without them a search sees that a word is unknown only at its end, and finds far worse
        texts.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ImportError
        A binary file, and kenlm is not installed.
    ValueError
        The file is broken or of another kind.

    Example
    -------
    >>> import tempfile
    >>> arpa = "\\data\\\nngram 1=1\n\n\\1-grams:\n-1.0 HI\n\n\\end\\"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "lm.arpa")
    ...     _ = path.write_text(arpa)
    ...     lm = load_ngrams(path)
    >>> "HI" in lm, round(lm.score(lm.start(), "HI")[0], 3)
    (True, -2.303)
    """
    path = Path(path).expanduser()
    with path.open("rb") as file:
        head = file.read(len(KENLM))
    if head == KENLM:
        return KenLM(path, words)
    opened = gzip.open if head.startswith(GZIP) else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            return ArpaLM(file)
    except (ValueError, IndexError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: not a whole ARPA file: {error}. Expected \\data\\ with counts, the n-grams "
            "of every order, \\end\\; fetch or write it again."
        ) from error


def load_decoding(path: str | Path, words: Iterable[str] = ()) -> dict[str, Any]:
    r"""Options of `BeamSearch` for a language model, with the weights that were tuned for it.

    Parameters
    ----------
    path : str or Path
        Folder that recipes/language_model.py wrote, or a file for `load_ngrams`, which has no
        weights.
    words : iterable of str
        See `load_ngrams`.

    Returns
    -------
    dict
        `lm`, and for a folder `alpha`, `beta`, `oov` and `beam`.

    Raises
    ------
    FileNotFoundError, ImportError, ValueError
        As `load_ngrams`; also if the folder is not complete.

    Example
    -------
    >>> import tempfile
    >>> arpa = "\\data\\\nngram 1=1\n\n\\1-grams:\n-1.0 HI\n\n\\end\\"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "lm.arpa").write_text(arpa)
    ...     weights = '{"alpha": 0.7, "beta": 1.0, "oov": -5.0, "beam": 50}'
    ...     _ = Path(folder, "decoding.json").write_text(weights)
    ...     options = load_decoding(folder)
    >>> options["alpha"], "HI" in options["lm"]  # asr.decode_with(**options)
    (0.7, True)
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return {"lm": load_ngrams(path, words)}
    weights = path / "decoding.json"
    try:
        tuned = json.loads(weights.read_text(encoding="utf-8"))
        options = {name: kind(tuned[name]) for name, kind in DECODING.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: no folder of recipes/language_model.py that is complete: decoding.json "
            f"cannot be read ({type(error).__name__}: {error}). Run the recipe again, or name an "
            "ARPA file."
        ) from error
    return {"lm": load_ngrams(path / "lm.arpa", words), **options}


class ArpaLM:
    r"""Backoff n-grams from a text file in ARPA format.

    A word that the file does not have is its `<unk>`; without one, it is taken for the rarest word.

    Parameters
    ----------
    file : TextIO
        Open for reading.

    Raises
    ------
    ValueError, EOFError
        The file is broken.

    Example
    -------
    >>> import io
    >>> arpa = "\\data\\\nngram 1=1\n\n\\1-grams:\n-1.0 HI\n\n\\end\\"
    >>> lm = ArpaLM(io.StringIO(arpa))
    >>> lm.words
    ['HI']
    """

    def __init__(self, file: TextIO) -> None:
        counts, ngrams, backoffs = read_arpa(_never_ending(file))
        if list(counts) != list(range(1, len(counts) + 1)):
            raise ValueError(f"orders {list(counts)}, expected 1 and up")
        for order, count in counts.items():
            if (found := sum(map(len, ngrams[order].values()))) != count:
                raise ValueError(f"{found} {order}-grams, the header says {count}")
        self._unigrams = ngrams[1][()]
        self.words: Collection[str] = [
            word for word in self._unigrams if word not in (START, END, *UNKNOWN)
        ]
        if not self.words:
            raise ValueError("it has no words")
        known = [word for word in UNKNOWN if word in self._unigrams]
        self._unknown = known[0] if known else min(self.words, key=self._unigrams.__getitem__)
        self._model = BackoffNgramLM(ngrams, backoffs)

    def __contains__(self, word: str) -> bool:
        """Whether the file has a word."""
        return word in self._unigrams

    def start(self) -> tuple[str, ...]:
        """State at the beginning of a sentence."""
        return (START,) if START in self else ()

    def score(self, state: tuple[str, ...], word: str) -> tuple[float, tuple[str, ...]]:
        """See `NgramLM`; a file without `</s>` says nothing of where sentences end."""
        if word not in self:
            if word == END:
                return 0.0, state
            word = self._unknown
        state = (*state, word)[-self._model.top_order :]
        return self._model.logprob(word, state[:-1]) * math.log(10), state


class KenLM:
    """A binary file of KenLM, read by the optional package of that name.

    Parameters
    ----------
    path : Path
        Written by KenLM's `build_binary`.
    words : iterable of str
        Candidates; those that the file has are its `words`.

    Raises
    ------
    ImportError
        kenlm is not installed.
    """

    def __init__(self, path: Path, words: Iterable[str] = ()) -> None:
        try:
            import kenlm
        except ImportError as error:
            raise ImportError(
                f"{path} is a binary file of KenLM, and the package kenlm is not installed. "
                'Install it (pip install "w2v_plugin[lm]"), or give the ARPA file.'
            ) from error
        self._new_state = kenlm.State
        try:
            self._model = kenlm.Model(str(path))
        except OSError as error:
            raise ValueError(f"{path}: kenlm cannot read it: {error}") from error
        self.words: Collection[str] = [word for word in words if word in self._model]

    def __contains__(self, word: str) -> bool:
        """Whether the file has a word."""
        return word in self._model

    def start(self) -> Any:
        """State at the beginning of a sentence."""
        state = self._new_state()
        self._model.BeginSentenceWrite(state)
        return state

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """See `NgramLM`."""
        after = self._new_state()
        return self._model.BaseScore(state, word, after) * math.log(10), after


def _never_ending(file: TextIO) -> Iterator[str]:
    """The lines, and an error instead of the end that `read_arpa` would wait for."""
    yield from file
    raise EOFError("it ends too early")
