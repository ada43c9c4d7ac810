"""Data lists of other toolkits -> utterances: Kaldi and ESPnet folders, lhotse manifests.

Kaldi (https://kaldi-asr.org/doc/data_prep.html): `wav.scp` (recording, file), `text` (utterance,
words), `utt2spk`, and `segments` (utterance, recording, start, end or -1, sometimes a channel)
where recordings are longer than utterances; ESPnet uses the same files. lhotse
(https://lhotse.readthedocs.io/en/latest/corpus.html): JSON lines of recordings, of supervisions
that point at them, or of cuts that hold both. Nothing that such a list calls for is executed:
commands in `wav.scp` are refused by name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile

from w2v_plugin.checks import Utterance
from w2v_plugin.errors import BadManifest
from w2v_plugin.tables import Row, read_json_rows, read_lines

LONGEST = 200  # characters of a file's name in a message
ONE_CHANNEL = "write it to a file"
Lines = dict[str, tuple[str, str]]  # first word of a line -> ("file:line", the rest)


def is_kaldi(folder: Path) -> bool:
    """Whether a folder is a Kaldi or ESPnet data directory."""
    return (folder / "wav.scp").is_file()


def list_kaldi(
    folder: Path, audio_root: Path | None = None, encoding: str = "utf-8"
) -> list[Utterance]:
    """Utterances of a Kaldi or ESPnet data directory.

    Parameters
    ----------
    folder : Path
        With `wav.scp`, and where there are some `text`, `utt2spk` and `segments`.
    audio_root : Path, optional
        What relative paths start from; by default the folder, or else the working directory.
    encoding : str
        Of the files.

    Raises
    ------
    BadManifest
        `wav.scp` holds a command or an archive instead of files, or a name occurs twice.
    """
    recordings = {
        name: (source, _audio_file(source, rest, folder, audio_root))
        for name, (source, rest) in _keyed(folder / "wav.scp", encoding).items()
    }
    texts = _keyed(folder / "text", encoding)
    speakers = _keyed(folder / "utt2spk", encoding)
    segments = _keyed(folder / "segments", encoding)
    if not segments:
        segments = {name: (source, name) for name, (source, _) in recordings.items()}
    listed = []
    for name, segment in segments.items():
        where, text = texts.get(name, (segment[0], ""))
        _, speaker = speakers.get(name, ("", ""))
        utterance = Utterance(name, Path(), speaker, text, where)
        listed.append(_kaldi_part(utterance, segment, recordings))
    for name, (source, text) in texts.items():
        if name not in segments:
            problem = f"{name} is in no wav.scp or segments beside it"
            listed.append(Utterance(name, folder / name, "", text, source, problem=problem))
    return listed


def lhotse_kind(rows: Iterable[Row]) -> str:
    """ "cuts", "supervisions", "recordings", or "" where these are no lines of lhotse's."""
    cells = next((row.cells for row in rows if not row.problem), {})
    if "recording_id" in cells:
        return "supervisions"
    if isinstance(cells.get("sources"), list):
        return "recordings"
    return "cuts" if "supervisions" in cells or str(cells.get("type")).endswith("Cut") else ""


def list_lhotse(
    path: Path, audio_root: Path | None = None, encoding: str = "utf-8"
) -> list[Utterance]:
    """Utterances of a lhotse manifest: one for each supervision, or recording without any.

    Parameters
    ----------
    path : Path
        Cuts, supervisions or recordings (.jsonl or .jsonl.gz). The recordings of supervisions are
        looked for beside them, under the same name with "recordings" in it.
    audio_root : Path, optional
        What relative paths start from; by default the manifest's folder, or else the working
        directory.
    encoding : str
        Of the files.
    """
    rows = read_json_rows(path, encoding)
    roots = _roots(path.parent, audio_root)
    kind = lhotse_kind(rows)
    if kind == "cuts":
        return [each for row in rows for each in _cut_utterances(row, roots)]
    if kind == "recordings":
        return [_guarded(row, lambda row: _recording_utterance(row, roots)) for row in rows]
    other = path.with_name(path.name.replace("supervisions", "recordings"))
    if other == path or not other.is_file():
        raise BadManifest(
            f"{path}: supervisions, but their recordings are not at {other.name} beside them. "
            "Copy them there, or name the cuts instead."
        )
    recordings = {str(row.cells.get("id")): row.cells for row in read_json_rows(other, encoding)}
    return [
        _guarded(row, lambda row: _supervision_utterance(row, row.cells, recordings, roots))
        for row in rows
    ]


def part_of(start: float, end: float | None) -> dict[str, float | None]:
    """`start` and `end` of an `Utterance`, checked; ValueError says what is wrong with them."""
    if not 0 <= start < math.inf or (end is not None and not start < end < math.inf):
        raise ValueError(f"from {start} to {end} s: a part needs 0 <= start < end")
    return {"start": start, "end": end}


def find_file(name: str, roots: Iterable[Path]) -> Path:
    """The first file of that name, or where the first root would have it."""
    candidates = [root / name for root in roots]
    return next((path for path in candidates if os.path.isfile(path)), candidates[0])


def missing(wav: Path) -> str:
    """A problem where there is no such file; the name may be a text in the wrong column."""
    if os.path.isfile(wav):  # Path.is_file raises where the name is too long for a file
        return ""
    name = str(wav)
    return f"no such file: {name if len(name) <= LONGEST else f'{name[:LONGEST]}...'}"


def _keyed(path: Path, encoding: str) -> Lines:
    """Lines by their first word; none where there is no such file."""
    found: Lines = {}
    for source, line in read_lines(path, encoding) if path.is_file() else []:
        name, *rest = line.split(maxsplit=1)
        if name in found:
            raise BadManifest(f"{source}: {name!r} was already used at {found[name][0]}.")
        found[name] = (source, rest[0].strip() if rest else "")
    return found


def _audio_file(source: str, rest: str, folder: Path, audio_root: Path | None) -> Path:
    if rest.endswith("|") or rest.startswith("|"):
        raise BadManifest(
            f"{source}: a command, not a file: {rest[:60]!r}. Commands of wav.scp are not executed "
            "here: run it yourself, write its audio to a file, and name that."
        )
    stem, _, offset = rest.rpartition(":")
    if stem.endswith(".ark") and offset.isdigit():
        raise BadManifest(
            f"{source}: {rest!r} lies in a Kaldi archive. Unpack it into files, and name those."
        )
    return find_file(rest, _roots(folder, audio_root))


def _roots(folder: Path, audio_root: Path | None) -> list[Path]:
    return [audio_root] if audio_root else [folder, Path()]


def _kaldi_part(
    utterance: Utterance, segment: tuple[str, str], recordings: Mapping[str, tuple[str, Path]]
) -> Utterance:
    """With the audio that a line of `segments` says it is."""
    source, rest = segment
    recording, *times = rest.split() or [""]
    if recording and recording not in recordings:
        problem = f"its recording {recording!r} is not in wav.scp"
        return replace(utterance, wav=Path(recording), problem=problem)
    if not recording or len(times) == 1:
        problem = f"{source}: expected utterance, recording, start and end"
        return replace(utterance, problem=problem)
    utterance = replace(utterance, wav=recordings[recording][1])
    if not times:
        return utterance
    try:
        start, end = (float(time) for time in times[:2])
        _refuse_channel(utterance.wav, times[2:])
        part = part_of(start, None if end == -1 else end)  # Kaldi's "till the end"
        return replace(utterance, **part)  # type: ignore[arg-type]
    except ValueError as error:
        return replace(utterance, problem=f"{source}: {error}")


def _refuse_channel(wav: Path, channel: list[str]) -> None:
    """ValueError where a line of `segments` means one channel of several."""
    if not channel or not os.path.isfile(wav):
        return
    with suppress(soundfile.SoundFileError):  # a broken file is named when it is checked
        if (channels := soundfile.info(str(wav)).channels) > 1:
            raise ValueError(f"channel {channel[0]} of a recording with {channels}; {ONE_CHANNEL}")


def _cut_utterances(row: Row, roots: list[Path]) -> list[Utterance]:
    """A supervision's times count from the beginning of its cut."""
    cut = row.cells
    found = cut.get("supervisions") or [{"id": cut.get("id"), "duration": cut.get("duration")}]

    def utterance(row: Row, supervision: Mapping[str, Any]) -> Utterance:
        if "recording" not in cut:
            raise ValueError(f"a {cut.get('type', 'cut')} without a recording of its own")
        begin = float(cut.get("start", 0)) + float(supervision.get("start", 0))
        moved = {**supervision, "start": begin, "recording_id": "", "channel": cut.get("channel")}
        return _supervision_utterance(row, moved, {"": cut["recording"]}, roots)

    if row.problem:
        return [_guarded(row, lambda row: _recording_utterance(row, roots))]
    return [_guarded(row, lambda row, each=each: utterance(row, each)) for each in found]


def _supervision_utterance(
    row: Row, cells: Mapping[str, Any], recordings: Mapping[str, Any], roots: list[Path]
) -> Utterance:
    recording = recordings.get(str(cells["recording_id"]))
    if recording is None:
        raise ValueError(f"its recording {cells['recording_id']!r} is not listed")
    wav = _lhotse_file(recording, cells.get("channel"), roots)
    start, length = float(cells.get("start", 0)), float(cells["duration"])
    whole = start == 0 and abs(length - float(recording["duration"])) < 0.05
    times = {"promised": length} if whole else part_of(start, start + length)
    speaker, text = str(cells.get("speaker") or ""), cells.get("text") or ""
    if isinstance(text, (list, dict)):
        raise ValueError("its text is a list or an object, expected text")
    return Utterance(str(cells["id"]), wav, speaker, str(text), row.source, **times)  # type: ignore[arg-type]


def _recording_utterance(row: Row, roots: list[Path]) -> Utterance:
    wav = _lhotse_file(row.cells, None, roots)
    return Utterance(
        str(row.cells["id"]), wav, "", "", row.source, promised=float(row.cells["duration"])
    )


def _lhotse_file(recording: Mapping[str, Any], channel: Any, roots: list[Path]) -> Path:
    sources = recording["sources"]
    channels = {each for source in sources for each in source.get("channels", [0])}
    if len(sources) != 1 or (len(channels) > 1 and isinstance(channel, int)):
        raise ValueError(f"one channel of a recording with {len(channels)}; {ONE_CHANNEL}")
    if changes := recording.get("transforms"):
        names = ", ".join(str(change.get("name")) for change in changes)
        raise ValueError(f"a recording that lhotse changes when it is read ({names})")
    if sources[0].get("type") != "file":
        raise ValueError(f"audio of type {sources[0].get('type')!r}, expected 'file'")
    return find_file(str(sources[0]["source"]), roots)


def _guarded(row: Row, make: Any) -> Utterance:
    """What `make` gives, or an utterance that says why there is none."""
    problem = row.problem
    if not problem:
        try:
            return make(row)  # type: ignore[no-any-return]
        except (ValueError, TypeError, AttributeError, BadManifest) as error:
            problem = str(error)
        except (KeyError, IndexError) as error:
            problem = f"no {error} in it"
    return Utterance(
        f"{row.source} {row.cells.get('id', '')}", Path(), "", "", row.source, problem=problem
    )
