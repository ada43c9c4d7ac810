"""An evaluation for people: sections of text and tables, and the same in Markdown.

Sections come from the figures alone (`Evaluation.report`); score_pages.py makes a page of them and
adds pictures and alignments.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from w2v_plugin.markdown_tables import escaped, table
from w2v_plugin.scoring import METRICS

Report = dict[str, Any]
SPACE, CIRCLE, NOTHING = "␣", "◌", "-"


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, and a table if there are rows; all plain text."""

    title: str
    paragraphs: Sequence[str] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def sections(report: Report) -> Iterator[Section]:
    """What is to be said about one test set.

    Parameters
    ----------
    report : dict
        `Evaluation.report`.

    Example
    -------
    >>> from w2v_plugin.evaluation import Answers, Evaluation
    >>> from w2v_plugin.hypotheses import Reference
    >>> said = [Reference("a", "ann", "hello you"), Reference("b", "ben", "good bye")]
    >>> evaluation = Evaluation("test", said, [Answers("one", {"a": "hello", "b": "good bye"})])
    >>> found = list(sections(evaluation.report))
    >>> found[0].title, found[0].header[1], found[0].rows[0][1][:5]
    ('test', 'WER % [95 %]', '25.00')
    """
    yield Section(report["test"], [_data(report)], *_rates(report))
    if report["differences"]:
        yield Section("Differences", [DIFFERENCES.format(report["systems"][0]["system"])],
                      *_differences(report))  # fmt: skip
    yield Section("Words", [], *_words(report))
    yield Section("Systems", [], *_systems(report))
    for system in report["systems"]:
        yield from _notes(system)
    both = " / ".join(_metrics(report))
    yield Section(f"By speaker, {both} %", [], *_groups(report, "by_speaker"))
    yield Section(f"By length of the utterance, {both} %", [], *_groups(report, "by_length"))
    for system in report["systems"]:
        yield from _confusions(system)
    yield Section("How to read this", _reading(report))


DIFFERENCES = (
    "To {}, in points of percent; less is better. Where an interval leaves 0 out, other utterances "
    "(speakers) would most likely show the difference, too."
)


def markdown(parts: Iterable[Section], picture: str) -> str:
    """The sections as Markdown, with a picture after the first.

    Example
    -------
    >>> print(markdown([Section("t", ["Some text."], ["a", "b"], [["x|y", "1"]])], "e.png"))
    ## t
    <BLANKLINE>
    Some text.
    <BLANKLINE>
    | a | b |
    |---|---|
    | x\\|y | 1 |
    <BLANKLINE>
    ![Error rates](e.png)
    <BLANKLINE>
    """
    lines: list[str] = []
    for number, part in enumerate(parts):
        lines += [f"{'###' if number else '##'} {escaped(part.title)}", ""]
        for paragraph in part.paragraphs:
            lines += [escaped(paragraph), ""]
        if part.rows:
            lines += [*table(part.header, part.rows), ""]
        if not number:
            lines += [f"![Error rates]({picture})", ""]
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """Two decimals, and a dash where there is none.

    Example
    -------
    >>> percent(12.3456), percent(None)
    ('12.35', '-')
    """
    return NOTHING if value is None else f"{value:.2f}"


def rate(value: float, interval: Sequence[float] | None, form: str = ".2f") -> str:
    """A value with its interval, where there is one.

    Example
    -------
    >>> rate(1.5, [1.0, 2.0]), rate(1.5, None, "+.1f")
    ('1.50 [1.00, 2.00]', '+1.5')
    """
    text = format(value, form)
    return text if interval is None else f"{text} {bracket(interval, form)}"


def bracket(ends: Sequence[float] | None, form: str = ".2f") -> str:
    """An interval, or nothing.

    Example
    -------
    >>> bracket([1.0, 2.0]), bracket(None)
    ('[1.00, 2.00]', '-')
    """
    return NOTHING if ends is None else f"[{', '.join(format(end, form) for end in ends)}]"


def _data(report: Report) -> str:
    audio = f", {report['seconds'] / 60:.1f} min of audio" if report["seconds"] else ""
    empty = report["empty_references"]
    voices = report["speakers"]
    speakers = "speakers that are not told apart" if voices is None else _many(voices, "speaker")
    return (
        f"{_many(report['utterances'], 'utterance')} of {speakers}{audio}; "
        f"{_many(report['words'], 'word')}, {_many(report['characters'], 'character')} "
        "with the spaces between words"
        + (f"; {_many(empty, 'empty reference')}." if empty else ".")
    )


def _reading(report: Report) -> list[str]:
    case = {"upper": "in upper case", "lower": "in lower case", "kept": "with their case kept"}
    lead = {
        "WER": "",
        "CER": " This language is written without spaces between words: the CER counts, and the "
        "WER says little.",
    }
    return [
        "All counts are added up over the test set before they are divided. References and "
        f"hypotheses are compared {case[report['case']]}, in Unicode NFC, with everything else as "
        "it is: punctuation and unknown characters are errors. An utterance without a hypothesis "
        f"is deleted words.{lead[report['leads']]}",
        "WER and CER: substitutions, deletions and insertions by the length of the reference, "
        "what SpeechBrain's ErrorRateStats and jiwer give. SER: utterances with any error. MER "
        "(match error rate), WIL (word information lost): Morris et al., 2004. Intervals: "
        "bootstrap, 1: utterances drawn again (Bisani and Ney, 2004), 2: speakers drawn again, "
        "which is about speakers that were never heard; with few of them it is rough. p: matched "
        "pairs (Gillick and Cox, 1989), two-sided, on segments between words that both systems "
        "have right (MAPSSWE) for the WER, on utterances for the CER; not corrected for several "
        "comparisons, and blind to what utterances of a speaker share.",
    ]


def _rates(report: Report) -> tuple[list[str], list[list[str]]]:
    metrics = _metrics(report)
    header = ["system"]
    for metric in metrics:
        header += [f"{metric} % [95 %]", "speakers [95 %]"]
    rows = []
    for system in report["systems"]:
        row = [system["system"]]
        for m in metrics:
            row += [rate(system[m], system[f"{m}_95"]), bracket(system[f"{m}_95_speakers"])]
        rows.append(row)
    return header, rows


def _words(report: Report) -> tuple[list[str], list[list[str]]]:
    """What became of the words, and the other measures."""
    kinds, measures = ("substitutions", "deletions", "insertions"), ("MER", "WIL", "SER")
    header = ["system", "right", *kinds, *(f"{name} %" for name in measures)]
    rows = []
    for system in report["systems"]:
        counts = [str(system["counts"]["words"][kind]) for kind in ("hits", *kinds)]
        rows.append([system["system"], *counts, *(percent(system[name]) for name in measures)])
    return header, rows


def _differences(report: Report) -> tuple[list[str], list[list[str]]]:
    header = ["system", "metric", "points [95 %]", "speakers [95 %]", "p", "segments"]
    order = {metric: place for place, metric in enumerate(_metrics(report))}
    found = sorted(report["differences"], key=lambda row: order[row["metric"]])
    return header, [
        [
            row["system"],
            row["metric"],
            rate(row["points"], row["points_95"], "+.2f"),
            bracket(row["points_95_speakers"], "+.2f"),
            p_value(row["p"]),
            str(row["segments"]),
        ]
        for row in found
    ]


def _systems(report: Report) -> tuple[list[str], list[list[str]]]:
    """Where they come from, as far as that is known."""
    rows = []
    for system in report["systems"]:
        how = system.get("decoding", {})
        decoding = ", ".join(v if k in ("on", "search") else f"{k} {v}" for k, v in how.items())
        seed = system.get("seed")
        row = [system["system"], system.get("source", ""), decoding]
        rows.append([*row, "" if seed is None else str(seed)])
    return ["system", "source", "decoding", "training seed"], rows


def _notes(system: Report) -> Iterator[Section]:
    """What a reader must know about one system."""
    name = system["system"]
    if system["unsayable"]:
        often = system["unsayable"].items()
        yield Section(
            f"{name}: characters without a symbol",
            [
                f"{name} has no symbol for these characters of the references, which are errors "
                "whatever it hears: "
                + ", ".join(f"{shown(c)} ({n})" for c, n in often)
                + ". Were they left out on purpose? Then leave them out of the references, too."
            ],
        )
    if system["unanswered"]:
        failed = system["failed"]
        rows = [[one, failed.get(one, "no text in the file")] for one in system["unanswered"]]
        count = _many(len(rows), "utterance")
        yield Section(
            f"{name}: {count} without a hypothesis",
            ["All of their words count as deleted."],
            ["ID", "reason"],
            rows,
        )


def _groups(report: Report, key: str) -> tuple[list[str], list[list[str]]]:
    """A row for each speaker or length, a column for each system."""
    metrics, systems = _metrics(report), report["systems"]
    unit = METRICS[metrics[0]]
    speakers = key == "by_speaker"
    header = ["speaker", "utterances", unit] if speakers else [unit, "utterances"]
    rows = []
    for those in zip(*(system[key] for system in systems), strict=True):
        first = those[0]
        name = [first["speaker"] or NOTHING] if speakers else [span(first["from"], first["to"])]
        row = [*name, str(first["utterances"]), *([str(first[unit])] if speakers else [])]
        rows.append(row + [" / ".join(percent(one[m]) for m in metrics) for one in those])
    return header + [system["system"] for system in systems], rows


def shown(text: str) -> str:
    r"""A word or character so that it can be seen: spaces, and marks that stand alone.

    Example
    -------
    >>> shown(" "), shown("\u0301") == "\u25cc\u0301", shown("word")
    ('␣', True, 'word')
    """
    if unicodedata.category(text[0])[0] == "M":
        return CIRCLE + text
    return SPACE if text == " " else text


def span(low: int, high: int) -> str:
    """A range of lengths.

    Example
    -------
    >>> span(3, 3), span(4, 9)
    ('3', '4-9')
    """
    return str(low) if low == high else f"{low}-{high}"


def _confusions(system: Report) -> Iterator[Section]:
    """Words and characters side by side: substitutions, deletions, insertions."""
    heads = ("taken for", "times", "deleted", "times", "inserted", "times")
    for unit, found in system["confusions"].items():
        columns = [
            [[f"{shown(a)} → {shown(b)}", str(n)] for a, b, n in found["substitution"]],
            [[shown(a), str(n)] for a, _, n in found["deletion"]],
            [[shown(b), str(n)] for _, b, n in found["insertion"]],
        ]
        depth = max(map(len, columns))
        padded = [column + [["", ""]] * (depth - len(column)) for column in columns]
        rows = [[*a, *b, *c] for a, b, c in zip(*padded, strict=True)]
        yield Section(f"{system['system']}: commonest errors, {unit}", [], heads, rows)


def _metrics(report: Report) -> list[str]:
    """The one that counts first."""
    return sorted(METRICS, key=lambda metric: metric != report["leads"])


def p_value(p: float | None) -> str:
    """As it is reported; None is that of too few segments.

    Example
    -------
    >>> p_value(0.01234), p_value(0.0), p_value(None)
    ('0.012', '< 0.001', 'too few segments')
    """
    if p is None:
        return "too few segments"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
