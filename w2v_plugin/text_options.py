"""Options of commands that prepare texts: rules, units, and what training shall not have."""

from __future__ import annotations

import argparse
from typing import Any

from w2v_plugin.normalization import CASES, DIGITS, TextRules, read_maps
from w2v_plugin.pieces import KINDS


def add_text_options(add: Any) -> None:
    """Add them by `add_argument` of a parser."""
    add("--apart-texts", action="store_true", help="train on no text of dev or test")
    add("--case", choices=CASES, default="lower", help="of all letters (default lower)")
    add("--inside", default="'", metavar="CHARS", help="punctuation kept in words (default ')")
    add("--keep", default="", metavar="CHARS", help="characters kept everywhere (default none)")
    add("--drop", default="", metavar="CHARS", help="characters dropped everywhere (default none)")
    add("--map", action="append", default=[], metavar="OLD=NEW", help="write NEW; repeatable")
    add("--digits", choices=DIGITS, default="refuse", help="what to do about them (default refuse)")
    add("--text-language", default="", metavar="CODE", help="tr, az: their i; for --digits spell")
    add("--units", choices=["characters", *KINDS], default="characters", help="what a token says")
    add("--size", type=_count, default=500, metavar="N", help="number of pieces (default 500)")
    add(
        "--min-count",
        type=_count,
        default=3,
        metavar="N",
        help="utterances of a letter (default 3)",
    )


def text_choices(options: argparse.Namespace) -> dict[str, Any]:
    """What `prepare_texts` is to be called with.

    Raises
    ------
    ValueError
        A rule cannot be, such as `--map` without "=".

    Example
    -------
    >>> parser = argparse.ArgumentParser()
    >>> add_text_options(parser.add_argument)
    >>> choices = text_choices(parser.parse_args(["--case", "upper", "--map", "&=und"]))
    >>> choices["rules"].case, choices["units"], choices["apart"]
    ('upper', 'characters', False)
    """
    rules = TextRules(
        case=options.case,
        language=options.text_language,
        inside=options.inside,
        keep=options.keep,
        drop=options.drop,
        digits=options.digits,
        maps=read_maps(options.map),
    )
    return {
        "rules": rules,
        "units": options.units,
        "size": options.size,
        "min_count": options.min_count,
        "apart": options.apart_texts,
    }


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)
