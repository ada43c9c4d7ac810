"""Manifests: the CSV files that tell training and evaluation which audio to hear.

One format for everything, and SpeechBrain's own: `ID,duration,wav,spk_id,wrd`, duration in seconds,
`wav` an absolute path, `wrd` empty where nothing was transcribed. A manifest is written once, after
every file in it has been decoded from beginning to end, so that training never meets a broken file
at three in the morning. Surprising: headers alone do not tell; a truncated FLAC opens normally and
promises its full length.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from w2v_plugin.audio import read_audio
from w2v_plugin.errors import BadAudio, BadManifest
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.text import clean_text

COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")
SHOWN_REASONS = 5  # of the skipped files, in an error message; all of them are in the file


@dataclass(frozen=True)
class Utterance:
    """One recording as a corpus lists it, not yet checked.

    Parameters
    ----------
    id : str
        Unique within the manifest.
    wav : Path
        The audio file.
    speaker : str
        Any name that tells speakers apart.
    text : str
        The transcript; empty for unlabelled audio.
    source : str
        "file:line" where the corpus lists it, so that errors can point there.
    """

    id: str
    wav: Path
    speaker: str
    text: str = ""
    source: str = ""


@dataclass(frozen=True)
class Summary:
    """What `write_manifest` wrote; `print` it."""

    path: Path
    utterances: int
    seconds: float
    speakers: int
    skipped: int

    def __str__(self) -> str:
        hours = f"{self.seconds / 3600:.2f} h" if self.seconds >= 360 else f"{self.seconds:.1f} s"
        line = f"{self.path}: {self.utterances} utterances, {hours}, {self.speakers} speakers"
        if self.skipped:
            line += f"; {self.skipped} skipped (see {skipped_path(self.path)})"
        return line


def check_audio(path: str | Path) -> float:
    """Seconds of a file, known from decoding all of it; raises `BadAudio`."""
    return len(read_audio(path)) / SAMPLE_RATE


def skipped_path(path: str | Path) -> Path:
    """Where the reasons for left-out files go: `train.csv` -> `train.skipped.tsv`."""
    return Path(path).with_suffix(".skipped.tsv")


def write_manifest(
    path: str | Path,
    utterances: Iterable[Utterance],
    *,
    workers: int = 2,
    max_s: float | None = None,
    min_s: float | None = None,
    need_text: bool = False,
) -> Summary:
    """Check every file and write the usable ones, in the given order.

    Parameters
    ----------
    path : str or Path
        The manifest; replaced only once the new one is complete.
    utterances : iterable of Utterance
        What the corpus lists.
    workers : int
        Files decoded at a time.
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
        An id is listed twice, or no utterance is usable.
    """
    path, listed = Path(path), list(utterances)
    _refuse_duplicates(listed)

    def judge(utterance: Utterance) -> tuple[float, str]:
        return _judge(utterance, max_s=max_s, min_s=min_s, need_text=need_text)

    with ThreadPoolExecutor(workers) as pool:  # threads do: decoding releases the GIL
        bar = tqdm(pool.map(judge, listed), total=len(listed), desc=path.name, disable=None)
        verdicts = list(bar)
    judged = list(zip(listed, verdicts, strict=True))
    kept = [(utterance, seconds) for utterance, (seconds, reason) in judged if not reason]
    skipped = [(utterance, reason) for utterance, (_, reason) in judged if reason]
    _write_skipped(skipped_path(path), skipped)
    if not kept:
        raise BadManifest(_nothing_left(path, skipped))
    _write_rows(path, COLUMNS, [_row(utterance, seconds) for utterance, seconds in kept], ",")
    return Summary(
        path=path,
        utterances=len(kept),
        seconds=sum(seconds for _, seconds in kept),
        speakers=len({utterance.speaker for utterance, _ in kept}),
        skipped=len(skipped),
    )


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
        The file is missing or empty, a column is missing, a duration is no positive number, or
        an id occurs twice; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise BadManifest(f"{path}: no such manifest. Write it with a script of recipes/prepare/.")
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise BadManifest(
                f"{path}:1: no column {', '.join(missing)}; expected the header "
                f"{','.join(COLUMNS)}. Write it with a script of recipes/prepare/."
            )
        seen: dict[str, int] = {}
        rows = [_checked_row(row, path, reader.line_num, seen) for row in reader]
    if not rows:
        raise BadManifest(f"{path}: a header and no utterances. Prepare the corpus again.")
    return rows


def _refuse_duplicates(listed: list[Utterance]) -> None:
    first: dict[str, Utterance] = {}
    for utterance in listed:
        other = first.setdefault(utterance.id, utterance)
        if other is not utterance:
            raise BadManifest(
                f"{utterance.source}: id {utterance.id!r} was already used at {other.source}. "
                "Ids must be unique: remove one of the lines or rename the file."
            )


def _judge(
    utterance: Utterance, *, max_s: float | None, min_s: float | None, need_text: bool
) -> tuple[float, str]:
    """Seconds, and why the utterance cannot be used ("" where it can)."""
    if need_text and not clean_text(utterance.text):
        return 0.0, "empty transcript"
    try:
        seconds = check_audio(utterance.wav)
    except BadAudio as error:
        return 0.0, clean_text(str(error))
    if max_s is not None and seconds > max_s:
        return seconds, f"{seconds:.2f} s long, the longest accepted is {max_s:g} s"
    if min_s is not None and seconds < min_s:
        return seconds, f"{seconds:.2f} s long, the shortest accepted is {min_s:g} s"
    return seconds, ""


def _row(utterance: Utterance, seconds: float) -> tuple[str, ...]:
    wav, text = utterance.wav.resolve(), clean_text(utterance.text)
    return utterance.id, f"{seconds:.4f}", str(wav), utterance.speaker, text


def _write_skipped(path: Path, skipped: list[tuple[Utterance, str]]) -> None:
    if not skipped:
        path.unlink(missing_ok=True)  # an earlier run's reasons would mislead
        return
    rows = [(utterance.source, str(utterance.wav), reason) for utterance, reason in skipped]
    _write_rows(path, ("source", "wav", "reason"), rows, "\t")


def _write_rows(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], delimiter: str
) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, delimiter=delimiter, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    part.replace(path)


def _nothing_left(path: Path, skipped: list[tuple[Utterance, str]]) -> str:
    if not skipped:
        return f"{path}: no utterances were listed. Check the corpus folder and the filters."
    shown = [f"  {utterance.source}: {reason}" for utterance, reason in skipped[:SHOWN_REASONS]]
    head = f"{path}: none of {len(skipped)} utterances is usable (see {skipped_path(path)}):"
    return "\n".join([head, *shown])


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
