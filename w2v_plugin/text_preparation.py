"""Manifests with the corpus' own texts -> manifests, vocabulary and report for a CTC model.

    train, also ─ rules ─► texts ─ what cannot be learned ─► left_out.tsv
                             └─ units ─► vocabulary ─► what cannot be said of the others

Texts to train with lose the utterances that would teach something wrong or cannot be learned; those
to validate and test with lose none, for a test without its hard utterances flatters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from w2v_plugin.circumstances import circumstances
from w2v_plugin.errors import BadManifest
from w2v_plugin.frames import SAMPLE_RATE, frame_lengths
from w2v_plugin.manifests import read_manifest, table, write_files
from w2v_plugin.normalization import Normalized, TextRules, split_units
from w2v_plugin.text import CharVocabulary, ctc_frames
from w2v_plugin.text_checks import damage, mixed_words
from w2v_plugin.text_report import REMEDIES, Change, Part, Remark, TextReport
from w2v_plugin.vocabularies import build_vocabulary, vocabulary_file

SHOWN_REASONS = 5  # in an error message


@dataclass
class Line:
    """An utterance of a manifest, and what becomes of it."""

    source: str
    row: dict[str, Any]
    normalized: Normalized
    kind: str = ""  # why it cannot be used
    reason: str = ""

    @property
    def text(self) -> str:
        return self.normalized.text

    def remark(self) -> Remark:
        return Remark(self.source, self.row["ID"], self.kind, self.reason, self.row["wrd"])


def prepare_texts(
    train: str | Path,
    out: str | Path,
    *,
    also: Sequence[str | Path] = (),
    rules: TextRules | None = None,
    units: str = "characters",
    size: int = 500,
    min_count: int = 3,
    apart: bool = False,
) -> TextReport:
    """Normalize the texts of manifests and make the vocabulary that the first one needs.

    Parameters
    ----------
    train : str or Path
        Manifest to train with. Utterances are left out whose text is damaged, has digits or
        symbols that are read nobody knows how, or rare characters, is empty, or longer than the
        audio has frames.
    out : str or Path
        Folder for manifests of the same names, vocab.json or pieces.model, text_report.md and
        .json, left_out.tsv. All are written at the end, or none.
    also : sequence of str or Path
        Manifests to validate and test with. All of their utterances are kept; what a model
        cannot say of them is reported, and counts as errors.
    rules : TextRules, optional
        How texts are normalized.
    units : {"characters", "unigram", "bpe"}
        See `build_vocabulary`.
    size : int
        Of a vocabulary of pieces.
    min_count : int
        Utterances in which a character must be to be learned.
    apart : bool
        Leave out of training the texts that are in `also`, too: speakers often read the same
        prompts, and a test on known sentences flatters.

    Raises
    ------
    BadManifest
        A manifest is malformed, no UTF-8, would be overwritten, or nothing is left to train with.
    ValueError
        The words cannot be cut into so many pieces.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = Path(folder, "train.csv")
    ...     text = "ID,duration,wav,spk_id,wrd\\na,2.0,a.wav,eva,Ja!\\nb,2.0,b.wav,eva,3 %\\n"
    ...     _ = manifest.write_text(text)
    ...     report = prepare_texts(manifest, Path(folder, "text"), min_count=1)
    >>> list(report.letters), report.left_out[0].reason
    (['a', 'j'], '3 %')
    """
    out, rules = Path(out), rules or TextRules()
    paths = [Path(path) for path in (train, *also)]
    _refuse_names(paths, out)
    parts = {path: [_line(path, row, rules) for row in _progress(path)] for path in paths}
    lines, *others = parts.values()
    if apart:
        _judge_shared(lines, others)
    if units == "characters":
        _judge_length(lines, split_units)
    _judge_rare(lines, min_count)
    vocabulary = build_vocabulary((line.text for line in _left(paths[0], lines)), units, size)
    for part in others:
        _judge_unknown(part, vocabulary)
    for part in parts.values():
        _judge_length(part, vocabulary.units)
    kept = dict(zip(paths, [_left(paths[0], lines), *others], strict=True))
    name, content = vocabulary_file(vocabulary)
    report = TextReport(
        rules=rules,
        vocabulary=out / name,
        letters=_letters(vocabulary, kept[paths[0]]),
        parts=[_part(path, out, kept[path], parts[path]) for path in paths],
        changes=_changes(line for part in parts.values() for line in part),
        left_out=[line.remark() for line in lines if line.kind],
        unsayable=[line.remark() for part in others for line in part if line.kind],
        mixed=[remark for part in kept.values() for line in part for remark in _mixed(line)],
        warnings=_warnings(parts),
    )
    files = {out / path.name: _manifest(part) for path, part in kept.items()}
    stale = dict.fromkeys((out / "vocab.json", out / "pieces.model"))
    write_files(stale | files | {out / name: content} | _report_files(out, report))
    return report


def _progress(path: Path) -> Iterable[dict[str, Any]]:
    return tqdm(read_manifest(path), desc=path.name, disable=None, leave=False)


def _refuse_names(paths: Sequence[Path], out: Path) -> None:
    for path in paths:
        if (out / path.name).resolve() == path.resolve():
            raise BadManifest(f"{path}: would be overwritten. Write to another folder than {out}.")
    if twice := [name for name, n in Counter(path.name for path in paths).items() if n > 1]:
        raise BadManifest(f"Two manifests are called {twice[0]}, but go to one folder. Rename one.")


def _line(path: Path, row: dict[str, Any], rules: TextRules) -> Line:
    """Normalized, and judged by its text alone."""
    line = Line(f"{path}:{row.pop('line')}", row, rules.apply(row["wrd"]))
    if damaged := damage(row["wrd"]):
        line.kind, line.reason = "damaged", damaged
    elif line.normalized.unread:
        line.kind, line.reason = "unread", " ".join(line.normalized.unread)
    elif not line.text:
        line.kind, line.reason = "empty", "no letters"
    return line


def _usable(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if not line.kind]


def _left(path: Path, lines: Sequence[Line]) -> list[Line]:
    """Those to train with; BadManifest if there are none."""
    if kept := _usable(lines):
        return kept
    kinds = Counter(line.kind for line in lines).most_common()
    counts = "; ".join(f"{count} {kind}: {REMEDIES[kind]}" for kind, count in kinds)
    head = f"{path}: none of {len(lines)} texts can be learned ({counts}). The first ones:"
    some = [
        f"  {line.source} {line.row['ID']}: {line.kind}: {line.reason};"
        for line in lines[:SHOWN_REASONS]
    ]
    raise BadManifest("\n".join([head, *some]))


def _judge_shared(lines: Iterable[Line], others: Iterable[Sequence[Line]]) -> None:
    """Leave out what dev and test say, too."""
    places = {line.text: line.source for part in others for line in part}
    for line in _usable(lines):
        if line.text in places:
            line.kind, line.reason = "elsewhere", f"the text of {places[line.text]}, too"


def _judge_length(lines: Iterable[Line], units: Callable[[str], list[str]]) -> None:
    """CTC says one unit per frame at most, and a blank between equal ones."""
    for line in _usable(lines):
        needed = ctc_frames(units(line.text))
        frames = frame_lengths(round(line.row["duration"] * SAMPLE_RATE))
        if needed > frames:
            line.kind = "too long"
            line.reason = f"needs {needed} frames, the audio has {frames}"


def _judge_rare(lines: Sequence[Line], min_count: int) -> None:
    """Leave out until every unit is in `min_count` utterances of those that remain."""
    units = {id(line): set(split_units(line.text)) - {" "} for line in _usable(lines)}
    while True:
        kept = _usable(lines)
        counts = Counter(unit for line in kept for unit in units[id(line)])
        rare = {unit for unit, count in counts.items() if count < min_count}
        if not rare:
            return
        for line in kept:
            if found := sorted(units[id(line)] & rare):
                line.kind, line.reason = "rare", " ".join(found)


def _judge_unknown(lines: Iterable[Line], vocabulary: CharVocabulary) -> None:
    for line in _usable(lines):
        if unknown := vocabulary.unknown(line.text):
            line.kind, line.reason = "unknown", " ".join(unknown)


def _letters(vocabulary: CharVocabulary, lines: Iterable[Line]) -> dict[str, tuple[int, int]]:
    times: Counter[str] = Counter()
    utterances: Counter[str] = Counter()
    for line in lines:
        units = vocabulary.units(line.text)
        times.update(units)
        utterances.update(set(units))
    return {letter: (times[letter], utterances[letter]) for letter in vocabulary.letters}


def _changes(lines: Iterable[Line]) -> list[Change]:
    found: dict[tuple[str, str], Change] = {}
    for line in lines:
        for change, times in line.normalized.changes.items():
            first = found.setdefault(
                change, Change(*change, 0, line.source, line.row["wrd"], line.text)
            )
            found[change] = replace(first, times=first.times + times)
    return sorted(found.values(), key=lambda change: -change.times)


def _mixed(line: Line) -> list[Remark]:
    return [
        Remark(line.source, line.row["ID"], "mixed", reason, line.row["wrd"])
        for reason in mixed_words(line.text)
    ]


def _warnings(parts: dict[Path, list[Line]]) -> list[str]:
    """What is in two places where it should be in one."""
    found = []
    (train, lines), *others = parts.items()
    listed: dict[str, Line] = {}
    for line in lines:
        first = listed.setdefault(line.row["wav"], line)
        if first is not line:
            found.append(f"{line.source}: {line.row['wav']} is already listed at {first.source}")
    learned = _usable(lines)
    speakers = {line.row["spk_id"] for line in learned} - {""}
    wavs, texts = {line.row["wav"] for line in learned}, {line.text for line in learned}
    for path, other in others:
        if shared := sorted(speakers & {line.row["spk_id"] for line in other}):
            some = ", ".join(shared[:SHOWN_REASONS])
            found.append(f"{path}: speakers that are in {train}, too: {len(shared)} ({some})")
        if heard := [line.source for line in other if line.row["wav"] in wavs]:
            found.append(f"{heard[0]}: recordings that are in {train}, too: {len(heard)}")
        if said := [line.source for line in other if line.text in texts]:
            count = f"{len(said)} of {len(other)}"
            found.append(f"{said[0]}: texts that are in {train}, too: {count}")
    return found


def _part(path: Path, out: Path, kept: Sequence[Line], listed: Sequence[Line]) -> Part:
    seconds = [sum(line.row["duration"] for line in lines) for lines in (kept, listed)]
    return Part(out / path.name, path, len(kept), seconds[0], len(listed), seconds[1])


def _manifest(lines: Sequence[Line]) -> bytes:
    """The same columns, with the new texts."""
    rows = [
        {**line.row, "duration": f"{line.row['duration']:.4f}", "wrd": line.text} for line in lines
    ]
    return table(list(rows[0]), [list(row.values()) for row in rows], ",")


def _report_files(out: Path, report: TextReport) -> dict[Path, bytes | None]:
    rows = [(r.source, r.id, r.kind, r.reason, r.text) for r in report.left_out]
    sources = [part.source for part in report.parts]
    header = ("source", "ID", "kind", "reason", "text")
    return {
        out / "left_out.tsv": table(header, rows, "\t") if rows else None,
        out / "text_report.json": report.to_json(circumstances("cpu", *sources)).encode(),
        out / "text_report.md": report.to_markdown().encode(),
    }
