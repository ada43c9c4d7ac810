"""Manifests: the CSV files that tell training and evaluation which audio to hear.

One format for everything, and SpeechBrain's own: `ID,duration,wav,spk_id,wrd`, duration in seconds,
`wav` an absolute path, `wrd` empty where nothing was transcribed. A manifest is written once, after
every file in it has been decoded from beginning to end, so that training never meets a broken file
at three in the morning. Surprising: what is left out is as much a part of the result as what is
kept; it stands beside the manifest, each line with its reason.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2v_plugin.checks import Utterance, Verdict, check_all
from w2v_plugin.errors import BadManifest
from w2v_plugin.text import clean_text

__all__ = ["COLUMNS", "Summary", "Utterance", "read_manifest", "skipped_path", "write_manifest"]

COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")
SHOWN_REASONS = 5  # of the skipped files, in an error message; all of them are in the file


@dataclass(frozen=True)
class Summary:
    """What was written; `print` it. `warnings` are about what it shares with other manifests."""

    path: Path
    utterances: int
    seconds: float
    speakers: int
    skipped: int
    flagged: int = 0
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        hours = f"{self.seconds / 3600:.2f} h" if self.seconds >= 360 else f"{self.seconds:.1f} s"
        speakers = f"{self.speakers} speaker{'s' if self.speakers > 1 else ''}"
        speakers = speakers if self.speakers else "speakers not known"
        line = f"{self.path}: {self.utterances} utterances, {hours}, {speakers}"
        if self.skipped:
            line += f"; {self.skipped} skipped (see {skipped_path(self.path)})"
        if self.flagged:
            line += f"; {self.flagged} to look at (see {flagged_path(self.path)})"
        return "\n".join([line, *(f"warning: {warning}" for warning in self.warnings)])


def skipped_path(path: str | Path) -> Path:
    """Where the reasons for left-out files go: `train.csv` -> `train.skipped.tsv`."""
    return Path(path).with_suffix(".skipped.tsv")


def flagged_path(path: str | Path) -> Path:
    """Where kept utterances that look wrong are listed: `train.csv` -> `train.flagged.tsv`."""
    return Path(path).with_suffix(".flagged.tsv")


def write_manifest(
    path: str | Path,
    utterances: Iterable[Utterance],
    *,
    workers: int | None = None,
    max_s: float | None = None,
    min_s: float | None = None,
    need_text: bool = False,
) -> Summary:
    """Check every file and write the usable ones, in the given order.

    For the data card and flags, and for several manifests at once: `preparation.prepare`.

    Parameters
    ----------
    path : str or Path
        The manifest; replaced only once the new one is complete.
    utterances : iterable of Utterance
        What the corpus lists: whole files, no parts of longer ones.
    workers : int, optional
        Files decoded at a time; one per processor if not given.
    max_s, min_s : float, optional
        Longest and shortest utterance to accept, in seconds.
    need_text : bool
        Leave out utterances with an empty transcript.

    Returns
    -------
    Summary
        Its counts; left-out files are listed in `skipped_path(path)` with the reason.

    Raises
    ------
    BadManifest
        An id is listed twice, a part is listed, or no utterance is usable.
    """
    path, listed = Path(path), list(utterances)
    refuse_places([path])
    refuse_duplicates(listed)
    refuse_parts(listed)
    verdicts = check_all(
        listed, title=path.name, workers=workers, max_s=max_s, min_s=min_s, need_text=need_text
    )
    refuse_nothing(path, verdicts)
    write_files(manifest_files(path, verdicts))
    return summarize(path, verdicts)


def read_manifest(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a manifest, checked except for the audio itself.

    Parameters
    ----------
    path : str or Path
        A CSV file with at least the columns `ID,duration,wav,spk_id,wrd`.

    Returns
    -------
    list of dict
        One per utterance; `duration` is a float, a relative `wav` is made absolute as seen from
        the manifest's folder, other columns are kept as text.

    Raises
    ------
    BadManifest
        The file is missing or empty, or no CSV in UTF-8, a column is missing, a duration is no
        positive number, or an id occurs twice; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise BadManifest(f"{path}: no such manifest. Write it with a script of recipes/prepare/.")
    reader = csv.DictReader(io.StringIO(_content(path), newline=""))
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise BadManifest(
                f"{path}:1: no column {', '.join(missing)}; expected the header "
                f"{','.join(COLUMNS)}. Write it with a script of recipes/prepare/."
            )
        seen: dict[str, int] = {}
        rows = [_checked_row(row, path, reader.line_num, seen) for row in reader]
    except csv.Error as error:  # an open quotation mark before a whole book
        line = reader.line_num + 1  # where the row begins
        raise BadManifest(f"{path}:{line}: no CSV file ({error}). Write it again.") from error
    if not rows:
        raise BadManifest(f"{path}: a header and no utterances. Prepare the corpus again.")
    return rows


def refuse_duplicates(listed: Sequence[Utterance]) -> None:
    """`BadManifest` naming lines and files where ids are used twice."""
    first: dict[str, Utterance] = {}
    twice = []
    for utterance in listed:
        other = first.setdefault(utterance.id, utterance)
        if other is not utterance:
            files = ", ".join(dict.fromkeys([str(other.wav), str(utterance.wav)]))
            line = f"{utterance.source}: id {utterance.id!r} was already used at {other.source}"
            twice.append(f"{line} ({files}).")
    if twice:
        more = len(twice) - SHOWN_REASONS
        shown = [*twice[:SHOWN_REASONS], *([f"... and {more} more."] if more > 0 else [])]
        raise BadManifest("\n".join([*shown, "Ids must be unique: remove lines or rename files."]))


def refuse_places(paths: Iterable[Path]) -> None:
    """`BadManifest` where no manifest could be written: better told before hours of decoding."""
    for path in paths:
        if path.is_dir():
            raise BadManifest(f"{path}: a folder. Name the manifest in it, as {path}/train.csv.")
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            why = "nothing can be written there" if above.is_dir() else "that is a file"
            raise BadManifest(f"{path}: it should go into {above}, but {why}. Name another place.")


def refuse_parts(listed: Iterable[Utterance]) -> None:
    """`BadManifest` where a part of a longer recording is listed: a manifest names whole files."""
    for utterance in listed:
        if utterance.is_part and not utterance.problem:
            raise BadManifest(
                f"{utterance.source}: {utterance.id!r} is a part of {utterance.wav}. Name a folder "
                "for the parts with --cut-to: they are cut to files there."
            )


def refuse_nothing(path: Path, verdicts: Sequence[Verdict]) -> None:
    """`BadManifest` where no utterance is usable; the reasons are written beside the manifest."""
    if not verdicts:
        raise BadManifest(
            f"{path}: no utterances were listed. Check the corpus folder and the filters."
        )
    if all(verdict.reason for verdict in verdicts):
        write_files({skipped_path(path): _skipped_content(verdicts)})
        lines = [f"  {each.utterance.source}: {each.reason}" for each in verdicts[:SHOWN_REASONS]]
        head = f"{path}: none of {len(verdicts)} utterances is usable (see {skipped_path(path)}):"
        raise BadManifest("\n".join([head, *lines]))


def summarize(
    path: Path, verdicts: Sequence[Verdict], flagged: int = 0, warnings: Sequence[str] = ()
) -> Summary:
    """Counts of the kept and the skipped."""
    kept = [verdict for verdict in verdicts if not verdict.reason]
    return Summary(
        path=path,
        utterances=len(kept),
        seconds=sum(verdict.facts.seconds for verdict in kept if verdict.facts),
        speakers=len({verdict.utterance.speaker for verdict in kept} - {""}),
        skipped=sum(bool(verdict.reason) for verdict in verdicts),
        flagged=flagged,
        warnings=tuple(warnings),
    )


def manifest_files(path: Path, verdicts: Sequence[Verdict]) -> dict[Path, bytes | None]:
    """The manifest and the list of what is left out, as `write_files` wants them."""
    rows = [
        _row(verdict.utterance, verdict.facts.seconds)
        for verdict in verdicts
        if verdict.facts and not verdict.reason
    ]
    return {path: table(COLUMNS, rows, ","), skipped_path(path): _skipped_content(verdicts)}


def table(header: Sequence[str], rows: Iterable[Sequence[str]], delimiter: str) -> bytes:
    """A CSV or TSV file as UTF-8."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")  # names of files that are left out


def write_files(files: Mapping[Path, bytes | None]) -> None:
    """Write all of them beside their targets, then rename: a reader sees the old or the new ones.

    None removes a file: an earlier run's reasons would mislead.
    """
    parts = {}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                parts[path] = path.with_name(f".{path.name}.{os.getpid()}.part")
                parts[path].write_bytes(content)
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)  # after a full disk; renamed ones are gone already
    for path in files.keys() - parts.keys():
        path.unlink(missing_ok=True)


def _skipped_content(verdicts: Iterable[Verdict]) -> bytes | None:
    rows = [
        (verdict.utterance.source, str(verdict.utterance.wav), verdict.reason)
        for verdict in verdicts
        if verdict.reason
    ]
    return table(("source", "wav", "reason"), rows, "\t") if rows else None


def _row(utterance: Utterance, seconds: float) -> tuple[str, ...]:
    wav, text = utterance.wav.resolve(), clean_text(utterance.text)
    return utterance.id, f"{seconds:.4f}", str(wav), utterance.speaker, text


def _content(path: Path) -> str:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadManifest(
            f"{path}:{line}: not UTF-8. Save it as CSV UTF-8, or find out what it is and convert "
            f"it: iconv -f cp1252 -t utf-8 {path}"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BadManifest(f"{path}:{line}: holds NUL bytes, as broken copies do. Write it again.")
    return text


def _checked_row(
    row: dict[str, Any], path: Path, line: int, seen: dict[str, int]
) -> dict[str, Any]:
    short = [name for name in COLUMNS if row[name] is None]
    if short or None in row:
        raise BadManifest(
            f"{path}:{line}: {'no value for ' + ', '.join(short) if short else 'too many values'}; "
            f"expected {','.join(COLUMNS)}. A comma inside a text needs quotes around the text."
        )
    name = row["ID"]
    if name in seen:
        raise BadManifest(f"{path}:{line}: id {name!r} was already used on line {seen[name]}.")
    seen[name] = line
    wav = str(path.resolve().parent / row["wav"])
    return {
        **row,
        "duration": _duration(row["duration"], f"{path}:{line}"),
        "wav": wav,
        "line": line,
    }


def _duration(text: str, where: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise BadManifest(f"{where}: duration {text!r} is not a positive number of seconds.")
    return seconds
