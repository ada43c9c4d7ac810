"""Manifests and plain texts -> sentences that a language model is made of.

Words are spelled as the acoustic model says them, and its vocabulary decides which it can say. A
word that it cannot say stands in the sentence as `<unk>`: its neighbors were no neighbors of each
other. Sentences that an evaluation asks for are left out, or its figures would be worth nothing.
"""

from __future__ import annotations

import gzip
import unicodedata
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from w2v_plugin.errors import BadManifest
from w2v_plugin.kneser_ney import UNK
from w2v_plugin.manifests import read_manifest
from w2v_plugin.normalization import GLOTTAL, TextRules, is_invisible
from w2v_plugin.text import CharVocabulary, case_of, normalize_text

SHOWN = 5  # of the words that cannot be said


@dataclass
class LMText:
    """Sentences, and what became of the text; `print` it.

    Parameters
    ----------
    sentences : list of list of str
        Words, `<unk>` among them.
    words : int
        That can be said.
    unknown : Counter of str
        Words that cannot be said, and how often they occur.
    shared : int
        Sentences left out because evaluation asks for them.
    """

    sentences: list[list[str]] = field(default_factory=list)
    words: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    shared: int = 0

    def __str__(self) -> str:
        lines = [f"text: {len(self.sentences)} sentences, {self.words} words"]
        if self.unknown:
            share = self.unknown.total() / (self.words + self.unknown.total())
            examples = ", ".join(word for word, _ in self.unknown.most_common(SHOWN))
            lines.append(
                f"{self.unknown.total()} words ({share:.1%}) have characters outside the model's "
                f"vocabulary and count as unknown, as {examples}"
            )
        if self.shared:
            lines.append(f"{self.shared} sentences left out: --dev or --test say the same")
        return "\n".join(lines)


def read_lm_text(
    paths: Iterable[str | Path], vocabulary: CharVocabulary, without: Collection[str] = ()
) -> LMText:
    """Sentences of files.

    Parameters
    ----------
    paths : iterable of str or Path
        Manifests (.csv), whose texts are taken as they are, for training took them so; or plain
        texts, a sentence a line, perhaps compressed (.gz), whose punctuation is removed.
    vocabulary : CharVocabulary
        Case, and what can be said.
    without : collection of str
        Normalized sentences to leave out.

    Raises
    ------
    BadManifest
        A manifest or a text cannot be read; file and line are named.
    ValueError
        No word of a text can be said.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "news.txt")
    ...     _ = path.write_text("Hello, world!\\nGood bye.\\n42 cats\\n")
    ...     text = read_lm_text([path], CharVocabulary(), without={"GOOD BYE"})
    >>> text.sentences, text.shared, dict(text.unknown)
    ([['HELLO', 'WORLD'], ['<unk>', 'CATS']], 1, {'42': 1})
    """
    found, sayable = LMText(), _Sayable(vocabulary)
    for path in map(Path, paths):
        words, shared, lines = found.words, found.shared, 0
        for line in _lines(path, vocabulary):
            lines += 1
            if line in without:
                found.shared += 1
                continue
            found.sentences.append([word if sayable[word] else UNK for word in line.split()])
            found.unknown.update(word for word in line.split() if not sayable[word])
            found.words += sum(word != UNK for word in found.sentences[-1])
        if not lines:
            raise ValueError(f"{path}: there is no text in it.")
        if found.words == words and found.shared == shared:
            raise ValueError(
                f"{path}: no word can be spelled with the letters of the model, "
                f"{' '.join(vocabulary.letters)[:100]}. Give a text in its language."
            )
    if not found.words:
        raise ValueError(
            f"All {found.shared} sentences are left out: --dev or --test say the same, so that "
            "error rates would be worth nothing. Give other texts."
        )
    return found


def punctuation(vocabulary: CharVocabulary) -> str:
    """Characters of the vocabulary that are neither letters nor marks nor digits.

    Example
    -------
    >>> punctuation(CharVocabulary())
    "'"
    """
    characters = sorted(set("".join(vocabulary.letters)))
    return "".join(c for c in characters if unicodedata.category(c)[0] not in "LMN")


class _Sayable(dict[str, bool]):
    """Whether a word has only characters of the vocabulary; each is looked at once."""

    def __init__(self, vocabulary: CharVocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def __missing__(self, word: str) -> bool:
        self[word] = not self.vocabulary.unknown(word)
        return self[word]


def _lines(path: Path, vocabulary: CharVocabulary) -> Iterator[str]:
    """Normalized sentences, none of them empty."""
    letters = "".join(vocabulary.letters)
    if path.suffix.lower() == ".csv":
        texts = (normalize_text(row["wrd"], letters) for row in read_manifest(path))
    else:
        case, turkic = case_of(letters)
        language = "tr" if turkic else ""
        keep = "".join(
            c for c in letters if is_invisible(c) or (c == GLOTTAL and "'" not in letters)
        )
        inside = punctuation(vocabulary)
        rules = TextRules(case=case, language=language, inside=inside, keep=keep)
        texts = (rules.normalize(line) for line in _plain(path))
    return filter(None, texts)


def _plain(path: Path) -> Iterator[str]:
    """Lines, each decoded on its own so that an error names the right one."""
    number = 0
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadManifest(
            f"{path}:{max(number, 1)}: not UTF-8 text: {error}. Expected a sentence a line, plain "
            "or compressed with gzip and named .gz."
        ) from error
