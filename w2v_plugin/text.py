"""Text <-> tokens.

The published English vocabulary: 32 symbols, `<pad>` (the CTC blank) first, `|` between words,
upper-case letters by frequency. Tokens of a checkpoint fine-tuned elsewhere keep their meaning.

A letter is what one token says: a character, a character with marks that Unicode does not compose
with it (Yoruba ọ́), or a piece of a word. Texts are cut into the longest letters that fit, words
of a vocabulary of pieces as their sentencepiece model cuts them; `|` is a symbol of its own in
all of them, so whatever decodes need not know which kind it has.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from speechbrain.dataio.encoder import CTCTextEncoder

from w2v_plugin.normalization import DOTLESS, DOTTED, change_case
from w2v_plugin.pieces import cut

BLANK, SPECIALS, WORD_BOUNDARY = "<pad>", ("<s>", "</s>", "<unk>"), "|"
ENGLISH = "ETAONIHSRDLUMWCFGYPBVK'XJQZ"
SPECIAL = re.compile(r"<.+>|\[.+\]")  # <unk>, </s>, [UNK], [PAD]: not text


def clean_text(text: str) -> str:
    """Unicode NFC and single spaces; letters, case and punctuation stay as they are.

    Example
    -------
    >>> clean_text("  two\\n words ")
    'two words'
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalize_text(text: str, letters: Iterable[str] = ENGLISH) -> str:
    """Unicode NFC, single spaces, and the case that the letters have.

    Letters with a dotless ı, or a capital İ, are Turkish or Azeri: they have the pairs ıI and iİ.

    Example
    -------
    >>> normalize_text("  don't  stop")
    "DON'T STOP"
    >>> normalize_text("Işık İstanbul", "abıiklnsşt")
    'ışık istanbul'
    """
    letters = "".join(letters)
    case, turkic = case_of(letters)
    text = clean_text(text)
    if case == "upper":
        text = text.replace("ß", "ẞ" if "ẞ" in letters else "SS")
    return change_case(text, case, turkic=turkic)


def case_of(letters: str) -> tuple[str, bool]:
    """The case that letters have, "keep" where they have both; and whether ı and i are two letters.

    Example
    -------
    >>> case_of("ABC'"), case_of("abç"), case_of("abcABC"), case_of("abı")
    (('upper', False), ('lower', False), ('keep', False), ('lower', True))
    """
    if letters == letters.upper():
        return "upper", DOTTED in letters
    return ("lower" if letters == letters.lower() else "keep"), DOTLESS in letters


class CharVocabulary(CTCTextEncoder):
    """Letters and special symbols with fixed indices; a SpeechBrain label encoder.

    Parameters
    ----------
    letters : str or sequence of str
        The characters or pieces of words, in the order of their indices (5 and up).
    pieces : str, optional
        The sentencepiece model that cuts words into them, see `train_pieces`; without it, the
        longest letters that fit are taken. Saved and loaded with the rest.

    Example
    -------
    >>> vocabulary = CharVocabulary()
    >>> len(vocabulary), vocabulary.encode_text("a cat")
    (32, [7, 4, 19, 7, 6])
    >>> vocabulary.decode_tokens([7, 4, 19, 7, 6])
    'A CAT'
    >>> CharVocabulary(["o", "ọ", "ọ́"]).encode_text("ọ́ọo")
    [7, 6, 5]
    """

    def __init__(self, letters: Sequence[str] = ENGLISH, pieces: str | None = None) -> None:
        super().__init__()
        self.pieces = pieces
        for label in (BLANK, *SPECIALS, WORD_BOUNDARY, *letters):
            self.add_label(label)
        self.blank_label = BLANK
        self.ignore_len()  # loading a file may change the length

    @classmethod
    def from_symbols(cls, symbols: Mapping[str, int], blank: str) -> CharVocabulary:
        """Vocabulary in which every symbol keeps its index.

        Parameters
        ----------
        symbols : mapping of str to int
            Symbols and their indices.
        blank : str
            The symbol that is the CTC blank.

        Example
        -------
        >>> vocabulary = CharVocabulary.from_symbols({"-": 0, "|": 1, "a": 2}, blank="-")
        >>> vocabulary.decode_tokens([2, 1, 2])
        'a a'
        """
        vocabulary = cls(())
        vocabulary.lab2ind = dict(symbols)
        vocabulary.ind2lab = {index: label for label, index in symbols.items()}
        vocabulary.blank_label = blank
        return vocabulary

    @classmethod
    def from_vocab_json(cls, path: str | Path, language: str | None = None) -> CharVocabulary:
        """Vocabulary of a transformers checkpoint; every symbol keeps its index.

        Parameters
        ----------
        path : str or Path
            `vocab.json`. Read from beside it, if there: `config.json` (`pad_token_id` is the
            blank), `tokenizer_config.json` and `added_tokens.json`.
        language : str, optional
            Which one of a file that holds one vocabulary per language (MMS); None for the
            `target_lang` of `tokenizer_config.json`.

        Raises
        ------
        ValueError
            No such language, two symbols with one index, or no blank.

        Example
        -------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "vocab.json")
        ...     _ = path.write_text('{"a": 0, "|": 1, "b": 2, "[PAD]": 3}')
        ...     vocabulary = CharVocabulary.from_vocab_json(path)
        >>> vocabulary.get_blank_index(), vocabulary.decode_tokens([0, 1, 2])
        (3, 'a b')
        """
        path = Path(path)
        settings = read_json(path.with_name("tokenizer_config.json"))
        tokens = _published_tokens(path, settings, language or settings.get("target_lang"))
        blank = read_json(path.with_name("config.json")).get("pad_token_id")
        if blank is None:
            names = (_content(settings.get("pad_token")), BLANK, "[PAD]")
            blank = next((tokens[name] for name in names if name in tokens), None)
        labels = [label for label, index in tokens.items() if index == blank]
        if not labels:
            raise ValueError(
                f"{path}: no CTC blank: pad_token_id={blank} is not among the {len(tokens)} "
                "indices. Put the right pad_token_id into the config.json beside it."
            )
        return cls.from_symbols(tokens, labels[0])

    def fit(self, outputs: int, source: str) -> None:
        """Hold against a head with that many outputs: each needs a symbol, each letter an output.

        Special symbols beyond the head, which some tokenizers add, are dropped: it cannot say
        them.

        Parameters
        ----------
        outputs : int
            Of the CTC head.
        source : str
            Where the vocabulary comes from, for the message.

        Raises
        ------
        ValueError
            They do not belong together.

        Example
        -------
        >>> vocabulary = CharVocabulary.from_symbols({"-": 0, "a": 1, "<s>": 2}, blank="-")
        >>> vocabulary.fit(2, "an example")
        >>> len(vocabulary)
        2
        """
        silent = [label for label, index in self.lab2ind.items() if index >= outputs]
        nameless = sorted(set(range(outputs)) - set(self.ind2lab))
        letters = [label for label in silent if not self.is_special(label)]
        if nameless or letters or self.blank_label in silent:
            kind, wrong = ("symbol", nameless) if nameless else ("output", silent)
            raise ValueError(
                f"{source}: {len(self.lab2ind)} symbols for {outputs} outputs of the head; "
                f"without {'a' if nameless else 'an'} {kind}: {', '.join(map(str, wrong))}. "
                "Give it the vocabulary that the head was trained with."
            )
        for label in silent:
            del self.ind2lab[self.lab2ind.pop(label)]

    @property
    def letters(self) -> list[str]:
        """The characters, without special symbols, in the order of their indices."""
        return [
            label
            for _, label in sorted(self.ind2lab.items())
            if label != WORD_BOUNDARY and not self.is_special(label)
        ]

    def is_special(self, label: str) -> bool:
        """Whether a label is the blank or in angle or square brackets: never part of a text."""
        return label == self.blank_label or SPECIAL.fullmatch(label) is not None

    def units(self, text: str) -> list[str]:
        """Letters of the normalized text, and on their own: spaces, and characters without a token.

        Example
        -------
        >>> CharVocabulary(["ch", "c", "a"]).units("ach c!")
        ['a', 'ch', ' ', 'c', '!']
        """
        letters = self.letters
        text = normalize_text(text, letters)
        if self.pieces is None:
            longest_first = sorted(letters, key=len, reverse=True)
            return re.findall("|".join([*map(re.escape, longest_first), "."]), text, re.DOTALL)
        known = set(letters)
        units: list[str] = []
        for word in text.split():
            units += [" "] * bool(units)
            for piece in cut(self.pieces, word):
                units += [piece] if piece in known else piece
        return units

    def unknown(self, text: str) -> list[str]:
        """Characters of the normalized text that have no token, sorted.

        Example
        -------
        >>> CharVocabulary().unknown("naïve, 2")
        [',', '2', 'Ï']
        """
        return sorted(set(self.units(text)) - self._tokens().keys())

    def encode_text(self, text: str) -> list[int]:
        """Tokens of a text; ValueError if a character has none."""
        tokens, units = self._tokens(), self.units(text)
        if unknown := sorted(set(units) - tokens.keys()):
            raise ValueError(
                f"{text!r} has characters outside the vocabulary: {' '.join(unknown)}. "
                "Spell them out, or build a vocabulary that has them."
            )
        return [tokens[unit] for unit in units]

    def encode_known(self, text: str) -> list[int]:
        """As `encode_text`, with `<unk>` (if there is one) for characters that have no token.

        For texts that are only compared with what a model says: what it cannot say is an error
        of the model, not a reason to leave the utterance out.

        Example
        -------
        >>> CharVocabulary().encode_known("a 2")
        [7, 4, 3]
        """
        tokens = self._tokens()
        nothing = self.lab2ind.get("<unk>", self.lab2ind.get("[UNK]"))
        found = (tokens.get(unit, nothing) for unit in self.units(text))
        return [token for token in found if token is not None]

    def _tokens(self) -> dict[str, int]:
        """Of everything that texts consist of."""
        tokens = {letter: self.lab2ind[letter] for letter in self.letters}
        boundary = self.lab2ind.get(WORD_BOUNDARY)
        return tokens if boundary is None else tokens | {" ": boundary}

    def decode_tokens(self, tokens: Iterable[int]) -> str:
        """Text of collapsed tokens (no blanks, no repeats); special symbols are dropped."""
        return " ".join("".join(self.decode_ndim(tokens)).split())

    def load(self, path: str | Path) -> None:
        """As in `CTCTextEncoder`, but a damaged file is an error wherever it is loaded from.

        SpeechBrain's loaders take a ValueError for "there is no such file" and go on with the
        vocabulary that was there before, so it must be another one.
        """
        try:
            super().load(path)
        except (ValueError, SyntaxError) as error:
            raise RuntimeError(
                f"{path}: damaged, no vocabulary can be read from it. Copy it again from the "
                "folder that training wrote."
            ) from error

    def _get_extras(self) -> dict[str, Any]:
        extras = super()._get_extras()
        return extras if self.pieces is None else {**extras, "pieces": self.pieces}

    def _set_extras(self, extras: dict[str, Any]) -> None:
        super()._set_extras(extras)
        self.pieces = extras.get("pieces")

    def decode_ndim(self, x: Any) -> Any:
        """As in `CTCTextEncoder`, but with a space for `|` and nothing for special symbols."""
        label = super().decode_ndim(x)
        if label == WORD_BOUNDARY:
            return " "
        return "" if isinstance(label, str) and self.is_special(label) else label


def ctc_frames(tokens: Sequence[int] | Sequence[str]) -> int:
    """Fewest frames in which CTC can say `tokens`: one each, and a blank between repeats.

    Example
    -------
    >>> ctc_frames([5, 6, 6])
    4
    """
    return len(tokens) + sum(a == b for a, b in pairwise(tokens))


def _published_tokens(
    path: Path, settings: Mapping[str, Any], language: str | None
) -> dict[str, int]:
    """Symbols and indices of a vocab.json and of what transformers adds to it elsewhere."""
    tokens = dict(read_json(path))
    languages = [name for name, entry in tokens.items() if isinstance(entry, dict)]
    if languages:
        if language not in languages:
            raise ValueError(
                f"{path}: one vocabulary per language, but none for language={language!r}. "
                f"Choose one of {', '.join(sorted(languages))}."
            )
        tokens = dict(tokens[language])
    added = {
        _content(token): int(index)
        for index, token in settings.get("added_tokens_decoder", {}).items()
    } | dict(read_json(path.with_name("added_tokens.json")))
    # those of a nested file are written down once, for the language it was saved with
    tokens.update({k: v for k, v in added.items() if not (languages and k in tokens)})
    if not all(isinstance(index, int) for index in tokens.values()):
        raise ValueError(f"{path}: expected one index per symbol, or per symbol of each language.")
    if len(set(tokens.values())) < len(tokens):
        raise ValueError(f"{path}: two symbols have the same index. Give each its own.")
    delimiter = _content(settings.get("word_delimiter_token"))
    if delimiter in tokens and WORD_BOUNDARY not in tokens:
        tokens[WORD_BOUNDARY] = tokens.pop(delimiter)
    return tokens


def _content(token: Any) -> Any:
    """A symbol that may be written as an object."""
    return token["content"] if isinstance(token, dict) else token


def read_json(path: Path) -> Mapping[str, Any]:
    """A file's object; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}). Copy or download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(content).__name__}.")
    return content
