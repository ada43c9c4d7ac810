"""Any script's transcripts -> what a CTC model learns to say.

Corpora write for readers: capitals, quotation marks, digits, invisible characters that select a
glyph. A model hears none of it. `TextRules` say what stays, what is written differently and what
is dropped; every change can be counted, and what nobody can know (how "1984" was read) is
handed back instead of guessed.

Letters are told by Unicode's categories, letters *and marks* (L, M): vowel signs and viramas of
Indic scripts are marks, and patterns such as `\\w` lose them.

Surprising, all on purpose:

- Malayalam chillus in their old spelling (consonant, virama, zero-width joiner) become the atomic
  letters of Unicode 5.1, which sound and look the same, and so does Bengali khanda ta. What is left
  of the joiners (ZWJ, ZWNJ) only selects a glyph and is dropped; where it is orthography (Persian
  ZWNJ, Sinhala ZWJ) put it into `keep`.
- ß in upper case is ẞ, not SS, and İ in lower case is i, without the dot apart that Unicode's own
  lower case leaves: one letter stays one letter.
- U+02BC becomes an apostrophe between letters, as Ukrainian and English use it, and stays at the
  edges of words, for it is a consonant of Navajo and others: put it into `keep` there.
- Texts without spaces (Thai, Japanese) stay without: a "word" is what stands between two spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

CASES, DIGITS = ("lower", "upper", "keep"), ("refuse", "keep", "spell")
DOTLESS, DOTTED = "ı", "İ"
ZWNJ, ZWJ = "\u200c", "\u200d"
APOSTROPHES, HYPHENS = "\u2019\u2018\u201b\u0060\u00b4", "\u2010\u2011"
GLOTTAL = "\u02bc"  # an apostrophe in words of Ukrainian and English, a consonant of Navajo
WRITTEN = str.maketrans(dict.fromkeys(APOSTROPHES, "'") | dict.fromkeys(HYPHENS, "-"))
CHILLUS = dict(zip("ണനരലളക", "ൺൻർൽൾൿ", strict=True))
ATOMIC = {f"{letter}\u0d4d{ZWJ}": chillu for letter, chillu in CHILLUS.items()}
ATOMIC["\u09a4\u09cd" + ZWJ] = "\u09ce"  # Bengali khanda ta
GLYPHS = ("<wide>", "<narrow>", "<initial>", "<medial>", "<final>", "<isolated>")
LIGATURES = range(0xFB00, 0xFB18)  # Latin and Armenian; Thai sara am is <compat>, too, but a letter
INVISIBLE = {"\u0640", "\u034f", *map(chr, range(0xFE00, 0xFE10))}  # tatweel, variation selectors
JOINED = "'·\u05f3\u05f4"  # leave no space where they are dropped: dont, collecció
READ_ALOUD = "%‰&@#§°№"  # with the categories of numbers, currencies and mathematics (<, =, +)
TAGS = "[]{}"  # of transcribers: [noise]
# a number between spaces and quotation marks, without decimal point and ordinal's; no year, and not
# beside another number: 10 500
ALONE = re.compile(
    r"""(?<![^\s("'„“»«])(?<!\d\s)(?!1[1-9]\d\d\b)(?:0|[1-9]\d{0,5})"""
    r"""(?!\s+\d)(?=[,;:!?)"'“”»«]*(?:\s|$)|\.$)""",
    re.ASCII,
)
MARKS_OF_LETTERS = (1, 7, 8)  # combining classes below 200: overlay, nukta, kana voicing


def change_case(text: str, case: str, *, turkic: bool = False) -> str:
    """In "upper" or "lower" case; İ becomes i without the dot apart that Unicode leaves.

    Example
    -------
    >>> change_case("İI", "lower"), change_case("İI", "lower", turkic=True)
    ('ii', 'iı')
    """
    if case == "lower":
        text = text.replace("I", DOTLESS) if turkic else text
        return text.replace(DOTTED, "i").lower()
    if case == "upper":
        return (text.replace("i", DOTTED) if turkic else text).upper()
    return text


@dataclass(frozen=True)
class Normalized:
    """What became of a text.

    Parameters
    ----------
    text : str
        As a model can learn it, except for `unread`.
    changes : Counter of (str, str)
        What was written differently, or as "" dropped, and how often; case and what is canonically
        equivalent do not count.
    unread : str
        Characters that are read nobody knows how: digits, currencies, %, and the brackets of tags
        such as [noise] and <unk>. They are still in the text.
    """

    text: str
    changes: Counter[tuple[str, str]]
    unread: str


@dataclass(frozen=True)
class TextRules:
    """How texts are normalized.

    Parameters
    ----------
    case : {"lower", "upper", "keep"}
        Of all letters.
    language : str
        ISO code; "tr" and "az" have i/İ and ı/I, and `digits="spell"` needs it.
    inside : str
        Punctuation that is kept between two letters, apostrophe ' and hyphen - for example
        (typographic ones are written alike). Elsewhere it is dropped, and where it is not in here
        an apostrophe disappears (dont) and a hyphen separates two words.
    keep, drop : str
        Characters that are kept, or dropped, wherever they are: Arabic points for example.
    digits : {"refuse", "keep", "spell"}
        "refuse": they are `unread`, for one does not know how they were said. "keep": digits
        are letters. "spell": whole numbers that stand alone become words, by the library
        num2words, as cardinal numbers; years from 1100 to 1999, numbers beside numbers
        (10 500) and anything else stay unread.
    maps : mapping of str to str
        What to write instead, longest first, in the case of the text; "" drops it.

    Raises
    ------
    ValueError
        An unknown option, or a map whose result it would change again.

    Example
    -------
    >>> TextRules().normalize("„Ich weiß’s\\u00ad nicht“, sagte O’Neill – leise.")
    "ich weiß's nicht sagte o'neill leise"
    >>> TextRules(inside="'-", case="upper").normalize("Weißenburg-Süd")
    'WEIẞENBURG-SÜD'
    >>> TextRules(maps={"&": " und "}).apply("A & B, 3 %").unread
    '3%'
    """

    case: str = "lower"
    language: str = ""
    inside: str = "'"
    keep: str = ""
    drop: str = ""
    digits: str = "refuse"
    maps: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (("case", CASES), ("digits", DIGITS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}, expected one of {', '.join(known)}."
                )
        if "|" in self.keep or "|" in self.inside:
            raise ValueError('"|" cannot be kept: it stands between words. Map it to something.')
        if self.digits == "spell":
            number_words(1, self.language)  # says now what it lacks
        for found, written in self._maps.items():
            if not found.strip(" ") or self._mapped(written, Counter()) != written:
                raise ValueError(
                    f"map {found!r}={written!r}: the result would be changed again. Expected "
                    "something to find, and what no map changes."
                )

    def normalize(self, text: str) -> str:
        """The text as a model can learn it; see `apply` for what was done to it."""
        return self.apply(text).text

    def apply(self, text: str) -> Normalized:
        """Normalize a text and say what was done.

        Parameters
        ----------
        text : str
            Unicode, in any normalization form.

        Example
        -------
        >>> TextRules().apply("Wait…").changes
        Counter({('…', ''): 1})
        """
        changes: Counter[tuple[str, str]] = Counter()
        text = self._visible(_plain_forms(text, changes), changes)
        text = self._mapped(self._cased(text), changes)
        if self.digits == "spell":
            text = self._spelled(text, changes)
        return self._only_letters(text, changes)

    @cached_property
    def _maps(self) -> dict[str, str]:
        """As they meet the text: in its case, with plain characters."""

        def alike(part: str) -> str:
            return self._cased(_plain_forms(part, Counter()))

        asked = {**dict.fromkeys(self.drop, ""), **self.maps}
        return {alike(found): alike(written) for found, written in asked.items()}

    def _visible(self, text: str, changes: Counter[tuple[str, str]]) -> str:
        """Without characters that nobody sees, unless somebody asks for them."""
        asked = {*self.keep, *"".join(self._maps)}
        for character in {c for c in text if is_invisible(c)} - asked - {ZWJ}:
            changes[character, ""] += text.count(character)
            text = text.replace(character, "")
        for old, atomic in ATOMIC.items():
            if count := text.count(old):
                changes[old, atomic] += count
                text = text.replace(old, atomic)
        if ZWJ in text and ZWJ not in asked:
            changes[ZWJ, ""] += text.count(ZWJ)
            text = text.replace(ZWJ, "")
        return unicodedata.normalize("NFC", text)

    def _cased(self, text: str) -> str:
        turkic = self.language.split("-")[0] in ("tr", "az")
        text = text.replace("ß", "ẞ") if self.case == "upper" else text
        text = change_case(text, self.case, turkic=turkic)
        return unicodedata.normalize("NFC", text)

    def _mapped(self, text: str, changes: Counter[tuple[str, str]]) -> str:
        if not self._maps:
            return text

        def written(match: re.Match[str]) -> str:
            changes[match[0], self._maps[match[0]]] += 1
            return self._maps[match[0]]

        longest_first = sorted(self._maps, key=len, reverse=True)
        text = re.sub("|".join(map(re.escape, longest_first)), written, text)
        return unicodedata.normalize("NFC", text)

    def _spelled(self, text: str, changes: Counter[tuple[str, str]]) -> str:
        def words(match: re.Match[str]) -> str:
            spelled = self._cased(number_words(int(match[0]), self.language))
            changes[match[0], spelled] += 1
            return spelled

        return ALONE.sub(words, text)

    def _only_letters(self, text: str, changes: Counter[tuple[str, str]]) -> Normalized:
        """Without punctuation; what is read aloud stays, and is named."""
        written, unread = [], []
        plain = text.translate(WRITTEN)
        for before, original, c, after in zip(
            " " + plain, text, plain, plain[1:] + " ", strict=False
        ):
            between = is_letter(before) and is_letter(after)
            kept = original if original in self.keep else c
            if kept in self.keep or (c in self.inside and between):
                pass
            elif c.isspace():
                written.append(" ")
                continue
            elif is_read_aloud(c):
                unread += [c] * (self.digits != "keep" or not c.isdecimal())
            elif unicodedata.category(c)[0] not in "LM":
                kept = "" if c in JOINED else " "
            if kept != original:
                changes[original, kept.strip()] += 1
            written.append(kept)
        text = self._apostrophes("".join(written), changes)
        text = unicodedata.normalize("NFC", " ".join(text.split()))
        return Normalized(text, changes, "".join(unread))

    def _apostrophes(self, text: str, changes: Counter[tuple[str, str]]) -> str:
        """`GLOTTAL` between two other letters as what it is there."""
        if GLOTTAL not in text or GLOTTAL in self.keep:
            return text
        letters = [is_letter(c) and c != GLOTTAL for c in f" {text} "]
        meant = "'" if "'" in self.inside else ""
        written = [
            meant if c == GLOTTAL and before and after else c
            for before, c, after in zip(letters, text, letters[2:], strict=False)
        ]
        if count := text.count(GLOTTAL) - written.count(GLOTTAL):
            changes[GLOTTAL, meant] += count
        return "".join(written)


def is_letter(character: str) -> bool:
    """Whether it may stand inside a word: letter, mark or number."""
    return unicodedata.category(character)[0] in "LMN"


def is_read_aloud(character: str) -> bool:
    """Whether it is said in words that the text does not tell (2, €, %), or is no word ([, <)."""
    category = unicodedata.category(character)
    if category in ("Sc", "Sm"):
        return character != "~"
    return category[0] == "N" or character in READ_ALOUD or character in TAGS


def is_invisible(character: str) -> bool:
    """Whether it only tells how to show its neighbours: controls, joiners, bidi marks, tatweel."""
    category = unicodedata.category(character)
    return (category in ("Cc", "Cf") and not character.isspace()) or character in INVISIBLE


def split_units(text: str) -> list[str]:
    """What one token says each, when a vocabulary of characters is made.

    Characters; marks that Unicode does not compose with their letter stay with it (combining
    classes from 200, and nukta), for they make another letter of it. Vowel signs, viramas, points
    and tone marks of the Indic scripts, Thai, Arabic and Hebrew are sounds of their own, and units.

    Parameters
    ----------
    text : str
        Normalized.

    Example
    -------
    >>> split_units("ọ́ko"), split_units("കാ")
    (['ọ́', 'k', 'o'], ['ക', 'ാ'])
    """
    units: list[str] = []
    for character in text:
        mark = unicodedata.combining(character)
        if units and units[-1] != " " and (mark >= 200 or mark in MARKS_OF_LETTERS):
            units[-1] += character
        else:
            units.append(character)
    return units


def number_words(number: int, language: str) -> str:
    """A cardinal number in words, by the library num2words; ValueError without it or for it."""
    try:
        from num2words import num2words
    except ImportError as error:
        raise ValueError(
            'digits="spell" needs num2words: pip install "w2v_plugin[numbers]"'
        ) from error
    try:
        return num2words(number, lang=language).replace("-", " ")
    except NotImplementedError as error:
        raise ValueError(
            f"num2words cannot spell numbers in language={language!r}. Expected a code that it "
            'knows, such as "de"; or choose digits="refuse".'
        ) from error


def _plain_forms(text: str, changes: Counter[tuple[str, str]]) -> str:
    """NFC; full-width letters, Arabic presentation forms and ligatures as what they stand for."""
    text = unicodedata.normalize("NFC", text)
    for character in set(text) - {"\u3000"}:  # a wide space is one
        form = unicodedata.decomposition(character).partition(" ")[0]
        if form in GLYPHS or ord(character) in LIGATURES:
            plain = unicodedata.normalize("NFKC", character).strip()
            changes[character, plain] += text.count(character)
            text = text.replace(character, plain)
    return unicodedata.normalize("NFC", text)


def read_maps(pairs: Iterable[str]) -> dict[str, str]:
    """OLD=NEW of a command line as a dictionary; what is to be found may be "=" itself.

    Example
    -------
    >>> read_maps(["é=e", "==equals", "*="])
    {'é': 'e', '=': 'equals', '*': ''}
    """
    maps: dict[str, str] = {}
    for pair in pairs:
        equals = pair.find("=", 1)
        if equals < 0:
            raise ValueError(f"--map {pair!r}, expected OLD=NEW, or OLD= to drop it.")
        found, written = pair[:equals], pair[equals + 1 :]
        if maps.setdefault(found, written) != written:
            raise ValueError(f"--map {pair!r}: {found!r} is already written as {maps[found]!r}.")
    return maps
