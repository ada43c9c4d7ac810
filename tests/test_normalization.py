"""Normalization: every script comes out as its letters, and nothing is lost without being named."""

# ruff: noqa: RUF001 (letters that look alike are what this is about)

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from w2v_plugin.normalization import TextRules, split_units

ROOT = Path(__file__).resolve().parents[1]
SPEECH = Path(os.environ.get("W2V_SPEECH", ROOT.parent / "shared" / "speech"))

# as written -> as learned, with the default rules
TEXTS = {
    "german": (
        "„Größe“, sagte Émile’s Öl-Händler\u00a0–\u00a0leise!",
        "größe sagte émile's öl händler leise",
    ),
    "german decomposed": (unicodedata.normalize("NFD", "Müßig äße"), "müßig äße"),
    "capital sharp s": ("STRAẞE", "straße"),
    "english": ("Don’t! 'Tis rock 'n' roll...", "don't tis rock n roll"),
    "soft hyphen": ("Wort\u00adtrennung\u200b und\u2060", "worttrennung und"),
    "full width": ("ＡＢＣ　ｄ！", "abc d"),
    "ligature": ("ﬁnden, Schiﬀ", "finden schiff"),
    "greek": ("Ο ΔΡΌΜΟΣ· ΟΔΟΣ.", "ο δρόμος οδος"),
    "catalan": ("Col·lecció", "collecció"),
    "yoruba": (unicodedata.normalize("NFD", "Ọ́ṣun, ẹ̀kọ́"), unicodedata.normalize("NFC", "ọ́ṣun ẹ̀kọ́")),
    "malayalam": ("അവന്\u200d, കേണപ്പോള്\u200d ഫലിയ്\u200cക്കുന്നില്ല?", "അവൻ കേണപ്പോൾ ഫലിയ്ക്കുന്നില്ല"),
    "devanagari": ("वह पढ़ता है। क्या?", unicodedata.normalize("NFC", "वह पढ़ता है क्या")),
    "sinhala": ("ශ්\u200dරී ලංකා~", "ශ්රී ලංකා"),
    "bengali": ("হঠাত্\u200d।", "হঠাৎ"),
    "arabic": ("السَّلامُ\u200f عليكمـــ، أهلاً؟", "السَّلامُ عليكم أهلاً"),
    "arabic forms": ("ﻛﺘﺎﺏ", "كتاب"),
    "hebrew": ("שָׁלוֹם, עולם", unicodedata.normalize("NFC", "שָׁלוֹם עולם")),
    "thai": ("สวัสดีครับ น้ำ", "สวัสดีครับ น้ำ"),
    "japanese": ("今日は、ｶﾞｲﾄﾞの「コーヒー」。", "今日は ガイドの コーヒー"),
    "korean": (unicodedata.normalize("NFD", "안녕하세요!"), "안녕하세요"),
    "hawaiian": ("Hawaiʻi", "hawaiʻi"),
    "navajo": ("ʼAshkii tʼáá, «dinéʼ».", "ʼashkii t'áá dinéʼ"),
    "ukrainian": ("П\u02bcять, п\u2019ять, п'ять", "п'ять п'ять п'ять"),
    "emoji": ("Gut 👍🏽 so\ufe0f", "gut so"),
}
MARKS = "\u0301\u093c\u0d4d\u200d\u200c\u00ad\u0640\u064e\u0307\u3099"


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_many_scripts(name: str) -> None:
    """Written, and what a model learns of it; what is normalized stays as it is."""
    written, learned = TEXTS[name]
    rules = TextRules()
    assert rules.normalize(written) == learned
    assert rules.apply(learned).changes == Counter() and rules.normalize(learned) == learned
    assert rules.normalize(unicodedata.normalize("NFD", written)) == learned


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"case": "upper"},
        {"case": "keep", "inside": "'-"},
        {"language": "tr"},
        {"case": "upper", "language": "tr"},
        {"digits": "keep", "keep": "\u200c,", "inside": ""},
        {"maps": {"ש": "sh", "\u200b": " ", "&": " und "}, "drop": "。"},
    ],
    ids=str,
)
def test_what_is_normalized_stays(options: dict) -> None:
    """Idempotent, NFC, single spaces: for all texts, with marks and joiners where none belong."""
    rules = TextRules(**options)
    for written, _ in TEXTS.values():
        for position in range(0, len(written), 2):
            for mark in (*MARKS, "İ", "I", "ß", "'", "-", "7", "%", "ΐ", "\u02bc"):
                once = rules.normalize(written[:position] + mark + written[position:])
                assert rules.normalize(once) == once
                assert unicodedata.is_normalized("NFC", once) and " ".join(once.split()) == once


def test_letters_and_marks_are_never_lost() -> None:
    """Category by category: what is a letter or a mark of a plain form comes out again."""
    rules = TextRules(case="keep")
    for code in range(0x300, 0x11000):
        character = chr(code)
        if unicodedata.category(character)[0] in "LM" and not unicodedata.decomposition(character):
            kept = rules.normalize(f"a{character}") != "a"
            assert kept or rules.apply(f"a{character}").changes, hex(code)


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({"language": "tr"}, "IŞIK İSTANBUL", "ışık istanbul"),
        ({"language": "tr-TR", "case": "upper"}, "ışık istanbul", "IŞIK İSTANBUL"),
        ({}, "İstanbul", "istanbul"),
        ({"case": "upper"}, "Straße", "STRAẞE"),
        ({"case": "upper"}, "οδός", "ΟΔΌΣ"),
        ({"case": "keep"}, "Größe!", "Größe"),
    ],
)
def test_case_keeps_one_letter_one_letter(options: dict, text: str, expected: str) -> None:
    assert TextRules(**options).normalize(text) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "it's l'été und auch so fort"),
        ({"inside": ""}, "its lété und auch so fort"),
        ({"inside": "'-"}, "it's l'été und auch so-fort"),
        ({"keep": ",/"}, "it's l'été, und/auch so fort"),
        ({"drop": "é", "maps": {"SO": "zu"}}, "it's l't und auch zu fort"),
    ],
)
def test_punctuation_is_a_choice(options: dict, expected: str) -> None:
    assert TextRules(**options).normalize("It's l’été, 'und/auch' so‐fort -") == expected


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("S3 & 20 %", "3&20%"),
        ("½ Ⅳ ² €", "½Ⅳ²€"),
        ("٣ ३", "٣३"),
        ("a=b", "="),
        ("[noise] <unk>", "[]<>"),
    ],
)
def test_what_is_read_aloud_is_handed_back(text: str, unread: str) -> None:
    """Not guessed and not dropped: it is still in the text."""
    found = TextRules(case="keep").apply(text)
    assert found.unread == unread and found.text == text
    assert TextRules(digits="keep").apply("S3 20 ३").unread == ""
    assert TextRules(digits="keep").apply("20 %").unread == "%"


def test_changes_are_counted() -> None:
    """Case and composition are none; each other difference is."""
    changes = TextRules(maps={"é": "e"}).apply("Éé’n – ﬁ ﬁ ന്\u200d\u200b").changes
    assert changes == {
        ("é", "e"): 2,
        ("\u2019", "'"): 1,
        ("\u2013", ""): 1,
        ("ﬁ", "fi"): 2,
        ("ന്\u200d", "ൻ"): 1,
        ("\u200b", ""): 1,
    }


def test_a_letter_that_looks_like_an_apostrophe_stays_where_it_is_one() -> None:
    """U+02BC: at the edges of words, and everywhere by `keep`; where it is dropped it is named."""
    assert TextRules(keep="\u02bc").normalize("ʼAshkii tʼáá dinéʼ") == "ʼashkii tʼáá dinéʼ"
    assert TextRules(inside="").apply("tʼáá").changes == {("\u02bc", ""): 1}


def test_joiners_stay_where_they_are_orthography() -> None:
    """Persian and Sinhala by `keep`, Khmer's spaces without width by a map."""
    assert TextRules(keep="\u200c").normalize("می\u200cروم") == "می\u200cروم"
    assert TextRules(keep="\u200d").normalize("ශ්\u200dරී") == "ශ්\u200dරී"
    assert TextRules(maps={"\u200b": " "}).normalize("ខ្មែរ\u200bភាសា") == "ខ្មែរ ភាសា"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"case": "title"}, "case='title', expected one of lower, upper, keep"),
        ({"digits": "drop"}, "digits='drop', expected one of"),
        ({"keep": "|"}, "cannot be kept: it stands between words"),
        ({"maps": {"a": "ab"}}, "'a'='ab': the result would be changed again"),
        ({"maps": {"a": "b", "B": "c"}}, "'a'='b': the result would be changed again"),
        ({"maps": {"": "b"}}, "''='b'"),
    ],
)
def test_rules_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextRules(**options)


@pytest.mark.parametrize(
    ("text", "units"),
    [
        (unicodedata.normalize("NFC", "Ọ́lá"), ["Ọ́", "l", "á"]),
        ("ɛ̃ t͡s", ["ɛ̃", " ", "t͡", "s"]),
        (unicodedata.normalize("NFC", "क़लम"), ["क़", "ल", "म"]),
        ("കാക്ക", ["ക", "ാ", "ക", "്", "ക"]),
        ("سَّ", list("سَّ")),
        ("กี่", list("กี่")),
        ("か゚", ["か゚"]),
        (" ́a", [" ", "́", "a"]),
    ],
)
def test_units_keep_marks_where_the_script_needs_it(text: str, units: list[str]) -> None:
    assert split_units(text) == units and "".join(split_units(text)) == text


@pytest.mark.parametrize(
    ("text", "expected", "unread"),
    [
        ("Anfang 2001 wurde", "anfang zweitausendeins wurde", ""),
        ("(12) Leute, 20 Mark.", "zwölf leute zwanzig mark", ""),
        ("Bis 7.", "bis sieben", ""),
        ("In Bonn 10 500 Menschen", "in bonn 10 500 menschen", "10500"),
        ("1 234 567, 10\u00a0500, 10\u202f500", "1 234 567 10 500 10 500", "12345671050010500"),
        ("Tel. 12 34 56, 2 Kinder", "tel 12 34 56 zwei kinder", "123456"),
        ("5, 300 und 7", "fünf dreihundert und sieben", ""),
        ("1984, 3,5 am 3. Mai S3 007", "1984 3 5 am 3 mai s3 007", "19843533007"),
    ],
)
def test_whole_numbers_are_spelled(text: str, expected: str, unread: str) -> None:
    """Only those that are read in one way: no years, decimals, ordinals, names."""
    pytest.importorskip("num2words", reason="the extra `numbers` is not installed")
    found = TextRules(digits="spell", language="de").apply(text)
    assert (found.text, found.unread) == (expected, unread)
    with pytest.raises(ValueError, match="language='xx'"):
        TextRules(digits="spell", language="xx")


@pytest.mark.parametrize(
    ("folder", "letters", "unread"),
    [
        ("german_kerstin_opus", set("abcdefghijklmnopqrstuvwxyzäöüß'ʻ 01235"), 4),
        ("malayalam_smc_opus", {chr(code) for code in range(0xD02, 0xD80)} | {" "}, 0),
    ],
)
def test_real_transcripts(folder: str, letters: set[str], unread: int) -> None:
    """Only letters are left; every word of letters is one word still."""
    root = SPEECH / folder
    if not root.is_dir():
        pytest.skip(f"{root} is absent; W2V_SPEECH names a folder of real speech")
    lines = (root / "manifest.tsv").read_text(encoding="utf-8").splitlines()[1:]
    found = [TextRules().apply(line.split("\t")[4]) for line in lines]
    assert set("".join(each.text for each in found)) <= letters
    assert sum(bool(each.unread) for each in found) == unread
    assert all(TextRules().normalize(each.text) == each.text for each in found)
