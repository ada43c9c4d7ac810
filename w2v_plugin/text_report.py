"""What the preparation of a corpus' texts did to them, for people and for programs.

Nothing is lost without a line here: what was written differently and dropped, how often, with an
example; which utterances were left out and why; what of the other manifests a model cannot say.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from w2v_plugin.markdown_tables import table
from w2v_plugin.normalization import TextRules

SHOWN, ALL = 20, 100  # of a kind, of an alphabet; everything is in the .json and .tsv
REMEDIES = {
    "damaged": "read in a wrong encoding somewhere on the way: mend the manifest's texts",
    "unread": "digits, symbols, [tags], said nobody knows how: --digits, --map or --drop",
    "rare": "in too few utterances to be learned: --min-count, --map or --drop",
    "empty": "nothing is left of the text",
    "unknown": "not in the training text",
    "elsewhere": "dev or test have the same text, and it shall not be known there",
    "too long": "more units than frames of 20 ms: a wrong text, most likely",
}


@dataclass(frozen=True)
class Remark:
    """Something about an utterance.

    Parameters
    ----------
    source : str
        "file:line" of the manifest.
    id : str
        Of the utterance.
    kind : str
        A key of `REMEDIES`, or "unknown".
    reason : str
        What was found.
    text : str
        The text as the corpus has it.
    """

    source: str
    id: str
    kind: str
    reason: str
    text: str


@dataclass(frozen=True)
class Change:
    """What was written differently, or dropped (`written` is empty), with the first place."""

    found: str
    written: str
    times: int
    source: str
    before: str
    after: str


@dataclass(frozen=True)
class Part:
    """A manifest that was written, and the one it was made of."""

    path: Path
    source: Path
    utterances: int
    seconds: float
    listed: int
    listed_seconds: float


@dataclass(frozen=True)
class TextReport:
    """What `prepare_texts` did; `print` it.

    Parameters
    ----------
    rules : TextRules
        How texts were normalized.
    vocabulary : Path
        vocab.json or pieces.model.
    letters : dict of str to (int, int)
        What the vocabulary has: how often in the training text, and in how many utterances.
    parts : list of Part
        The manifests, the one for training first.
    changes : list of Change
        The most frequent first.
    left_out : list of Remark
        Utterances of the training manifest that cannot be learned from.
    unsayable : list of Remark
        Utterances of the others that a model cannot say, or not all of; they are kept.
    mixed : list of Remark
        Words with letters of two scripts, in any manifest.
    warnings : list of str
        What else looks wrong.
    """

    rules: TextRules
    vocabulary: Path
    letters: dict[str, tuple[int, int]]
    parts: list[Part]
    changes: list[Change]
    left_out: list[Remark]
    unsayable: list[Remark]
    mixed: list[Remark]
    warnings: list[str]

    @property
    def manifests(self) -> list[Path]:
        """What was written, the training manifest first."""
        return [part.path for part in self.parts]

    @property
    def kept(self) -> int:
        """Utterances to train with."""
        return self.parts[0].utterances

    @property
    def lost(self) -> int:
        """Utterances of the training manifest that were left out."""
        return len(self.left_out)

    def __str__(self) -> str:
        return "\n".join(self._summary())

    def _summary(self) -> list[str]:
        train, *others = self.parts
        folder = self.vocabulary.parent
        lines = [f"{train.path}: {self.kept} of {train.listed} utterances, {hours(train.seconds)}"]
        if self.left_out:
            lines[0] += f"; {self.lost} left out (see {folder / 'left_out.tsv'}):"
        for kind, count in Counter(remark.kind for remark in self.left_out).most_common():
            lines.append(f"  {count} {kind} ({REMEDIES[kind]})")
        for part in others:
            there = [r for r in self.unsayable if r.source.rpartition(":")[0] == str(part.source)]
            empty = sum(remark.kind == "empty" for remark in there)
            line = f"{part.path}: all {part.utterances} utterances, {hours(part.seconds)}"
            if unsayable := len(there) - empty:
                line += f"; {unsayable} that the model cannot say completely, counted as errors"
            if empty:
                line += f"; {empty} without letters, which training's error rates leave out"
            lines.append(line)
        kind = "letters" if self.vocabulary.suffix == ".json" else "pieces"
        lines.append(f"{self.vocabulary}: {len(self.letters)} {kind}: {_short(self.letters, ALL)}")
        dropped = [c.found for c in self.changes if not c.written and not _has_letter(c.found)]
        letters = [c.found for c in self.changes if not c.written and _has_letter(c.found)]
        mapped = [f"{c.found}={c.written}" for c in self.changes if c.written]
        for what, some in (
            *(("Dropped", dropped), ("Dropped letters", letters)),
            ("Written differently", mapped),
        ):
            if some:
                lines.append(f"{what}: {_short(map(visible, some))}")
        if self.mixed:
            lines.append(f"{len(self.mixed)} words mix scripts, such as {self.mixed[0].reason}")
        return lines + self.warnings + [f"Everything in {folder / 'text_report.md'}"]

    def to_json(self, circumstances: Mapping[str, object]) -> str:
        """All of it, for programs; the circumstances of the run stand in front."""
        content: dict[str, Any] = {**circumstances, **asdict(self)}
        content["rules"]["maps"] = dict(self.rules.maps)
        return json.dumps(content, ensure_ascii=False, indent=1, default=str) + "\n"

    def to_markdown(self) -> str:
        """For people, with examples."""
        letters = [
            (f"`{unit}`", name(unit), times, utterances)
            for unit, (times, utterances) in self.letters.items()
        ]
        changes = [
            (
                *(visible(c.found), name(c.found), visible(c.written) or "-", c.times, c.source),
                *(visible(c.before), visible(c.after)),
            )
            for c in self.changes
        ]
        sections = [
            "# Texts\n\n" + "\n".join(f"    {line}" for line in self._summary()) + "\n",
            _section("Left out of training", ("utterance", "why", "text"), _rows(self.left_out)),
            _section("Cannot be said", ("utterance", "why", "text"), _rows(self.unsayable)),
            _section("Mixed scripts", ("utterance", "word", "text"), _rows(self.mixed)),
            _section(
                "Changed",
                ("found", "name", "written", "times", "first", "before", "after"),
                changes,
            ),
            _section("Vocabulary", ("unit", "name", "times", "utterances"), letters, len(letters)),
        ]
        return "\n".join(filter(None, sections))


def hours(seconds: float) -> str:
    """For people: 1.25 h, or 40.0 s."""
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.1f} s"


def name(unit: str) -> str:
    """What Unicode calls the characters of a unit, or of the beginning of a long one.

    Example
    -------
    >>> name("ß")
    'LATIN SMALL LETTER SHARP S'
    """
    names = [unicodedata.name(c, f"U+{ord(c):04X}") for c in unit[:4]]
    return " + ".join(names) + (" ..." if len(unit) > 4 else "")


def visible(text: str) -> str:
    """With code points for what nobody sees.

    Example
    -------
    >>> visible("a\\u200db")
    'a<U+200D>b'
    """
    return "".join(
        f"<U+{ord(c):04X}>" if unicodedata.category(c)[0] in "CZ" and c != " " else c for c in text
    )


def _has_letter(text: str) -> bool:
    return any(unicodedata.category(character)[0] == "L" for character in text)


def _short(units: Iterable[str], shown: int = SHOWN) -> str:
    units = list(units)
    return " ".join(units[:shown]) + (" ..." if len(units) > shown else "")


def _rows(remarks: Sequence[Remark]) -> list[tuple[str, ...]]:
    return [(f"{r.source} {r.id}", f"{r.kind}: {r.reason}", visible(r.text)) for r in remarks]


def _section(
    title: str, header: Sequence[str], rows: Sequence[Sequence[object]], shown: int = SHOWN
) -> str:
    """A table, or nothing."""
    if not rows:
        return ""
    lines = [f"## {title} ({len(rows)})", "", *table(header, rows[:shown])]
    if len(rows) > shown:
        lines += ["", f"... and {len(rows) - shown} more, see text_report.json"]
    return "\n".join(lines) + "\n"
