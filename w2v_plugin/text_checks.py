"""Signs that a text is not what it seems: wrong encodings, letters of a script that looks alike."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict

TOGETHER = {"CJK": "JAPANESE", "HIRAGANA": "JAPANESE", "KATAKANA": "JAPANESE"}  # in one word
READ_AS = ("cp1252", "latin-1")
# quotation marks, apostrophes, dashes: behind letters of sound texts, too (Spaß“ weiß… Strauß´)
BEHIND = "“”„«»…—·\u2018\u2019\u201a\u2039\u203a\u2013\u00b4\u00a0\u00ad"
# any other sign behind a letter, a capital amid a word, Ã where Portuguese has none
TELLING = re.compile(rf"[^\x00-\x7fÀ-ÖØ-ÿ{BEHIND}]|[a-zß-ÿ][À-Þ]|^Ã|Ã.\w")


def damage(text: str) -> str:
    """What shows that bytes were read in a wrong encoding; nothing where nothing does.

    Some sound words are UTF-8, too, if their characters are taken for bytes: ß” would be ߔ. They
    have nothing but closing punctuation behind their letters.

    Parameters
    ----------
    text : str
        As the corpus has it.

    Example
    -------
    >>> damage("schÃ¶n"), damage("schön"), damage("Spaß“")
    ('schÃ¶n looks like schön in UTF-8, read as cp1252', '', '')
    """
    if "\N{REPLACEMENT CHARACTER}" in text:
        return "a replacement character, which stands for what could not be read"
    composed = unicodedata.normalize("NFC", text)
    for word in re.split(r"[ \t\r\n]+", composed):  # Ã and a no-break space are à
        for encoding in READ_AS:
            try:
                meant = word.encode(encoding).decode()
            except UnicodeError:
                continue
            if meant != word and TELLING.search(word):
                return f"{word} looks like {meant} in UTF-8, read as {encoding}"
    return ""


def mixed_words(text: str) -> list[str]:
    """Words with letters of several scripts, and which.

    Cyrillic а looks like Latin a, and is another letter. The scripts of Japanese are one.

    Parameters
    ----------
    text : str
        Normalized.

    Example
    -------
    >>> mixed_words("m\\u0430ma mama")
    ['m\u0430ma (Latin mma, Cyrillic \u0430)']
    """
    found = []
    for word in text.split():
        scripts: defaultdict[str, str] = defaultdict(str)
        for letter in word:
            if name := script(letter):
                scripts[name] += letter
        if len(scripts) > 1:
            says = ", ".join(f"{name.capitalize()} {some}" for name, some in scripts.items())
            found.append(f"{word} ({says})")
    return found


def script(letter: str) -> str:
    """Name of a letter's script; nothing for marks and for what belongs to several.

    Example
    -------
    >>> script("ß"), script("'")
    ('LATIN', '')
    """
    if unicodedata.category(letter) not in ("Lu", "Ll", "Lt", "Lo"):
        return ""
    name = unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0]
    return TOGETHER.get(name, name)
