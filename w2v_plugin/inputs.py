"""What a command line names -> audio files, each once, in an order that never changes.

A file, a folder (searched), a quoted glob, a manifest (`.csv`), or `-` for paths on standard
input. Every file gets a name for what is made from it: where it is below the folder that was given,
without its suffix. Nothing is decoded here, and nothing heavy imported: `w2v --help` is fast.
"""

from __future__ import annotations

import csv
import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PurePath
from typing import NamedTuple


class CannotStart(Exception):
    """A command cannot begin at all; the message says what to do."""


class Input(NamedTuple):
    """An audio file, and the name of what is made from it: relative, with "/", no suffix."""

    path: Path
    name: str


def find_inputs(given: Iterable[str]) -> list[Input]:
    """All audio files, each once.

    Parameters
    ----------
    given : iterable of str
        File: taken as it is and named without its folder. Folder: the audio files below it, as
        preparation finds them, sorted. Pattern, as "data/**/*.flac": the audio files that match,
        sorted; names begin where the pattern does. Of both, kinds that cannot be decoded (.m4a)
        are passed over, and counted on stderr. Manifest (`.csv`): the files of its column `wav`,
        relative ones from its folder, named by the column `ID`. "-": paths on stdin, one a line.
        Lists without names (stdin, no `ID`) are named from the folder that all their files share.

    Raises
    ------
    CannotStart
        Nothing was found, or a manifest cannot be read. A file that does not exist is not missed
        here, but when it is read.

    Example
    -------
    >>> [(item.path.name, item.name) for item in find_inputs(["talks/a.wav", "b.mp3", "./b.mp3"])]
    [('a.wav', 'a'), ('b.mp3', 'b')]
    """
    found: dict[str, Input] = {}
    for text in given:
        for item in _expand(text):
            found.setdefault(os.path.abspath(item.path), item)
    return list(found.values())


def by_name(items: Iterable[Input]) -> dict[str, Input]:
    """The files under their names, where results are told apart by them.

    Raises
    ------
    CannotStart
        Two files have one name, or a name leaves the folder of the results.

    Example
    -------
    >>> list(by_name([Input(Path("talks/a.wav"), "a")]))
    ['a']
    """
    named: dict[str, Input] = {}
    for item in items:
        if PurePath(item.name).is_absolute() or ".." in PurePath(item.name).parts:
            raise CannotStart(
                f"{item.path}: its name {item.name!r} leaves the folder of the results. Use "
                "relative IDs without '..' in the manifest."
            )
        other = named.setdefault(item.name, item)
        if other is not item:
            raise CannotStart(
                f"{other.path} and {item.path} would both be written as {item.name}. Give their "
                "common folder instead, or run once for each with another --out."
            )
    return named


def header_seconds(path: Path) -> float:
    """Length of a file as its header says, which may be wrong; 0 if it cannot be opened."""
    import soundfile

    try:
        return soundfile.info(str(path)).duration
    except (soundfile.SoundFileError, RuntimeError, TypeError):
        return 0.0


def groups(items: Sequence[Input], budget_s: float) -> Iterator[list[Input]]:
    """Cut the files into groups of at most so many seconds; a longer file is one by itself.

    Files that are computed together may differ in the last bit from the same files computed
    otherwise. Groups depend on nothing but the list, so a run that goes on where another broke off
    can put together what was together.

    Example
    -------
    >>> import tempfile, numpy, soundfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in "abc":
    ...         soundfile.write(f"{folder}/{name}.wav", numpy.zeros(16000), 16000)
    ...     found = list(groups(find_inputs([folder]), 2.0))
    >>> [[item.name for item in group] for group in found]
    [['a', 'b'], ['c']]
    """
    group: list[Input] = []
    total = 0.0
    for item in items:
        seconds = header_seconds(item.path)
        if group and total + seconds > budget_s:
            yield group
            group, total = [], 0.0
        group.append(item)
        total += seconds
    if group:
        yield group


def _expand(text: str) -> list[Input]:
    path = Path(text).expanduser()
    if text == "-":
        return _from_common_folder([Path(line) for line in sys.stdin.read().split("\n") if line])
    if path.is_dir():
        from w2v_plugin.table_lists import audio_files

        return _sorted(audio_files(path), path, f"{path}: no audio files in this folder")
    if path.suffix.lower() == ".csv":
        return _manifest(path)
    if glob.has_magic(text) and not path.exists():
        base = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        matches = map(Path, glob.iglob(str(path), recursive=True))
        return _sorted(matches, base, f"{text}: no audio files match")
    return [Input(path, path.stem)]


def _sorted(paths: Iterable[Path], base: Path, complaint: str) -> list[Input]:
    """Those that are audio files, named from `base`."""
    from w2v_plugin.table_lists import AUDIO, UNREADABLE, format_problem

    files = sorted(path for path in paths if path.is_file())
    found = [path for path in files if path.suffix.lower() in AUDIO]
    if other := [path for path in files if path.suffix.lower() in UNREADABLE]:
        hint = format_problem(other[0])
        print(f"{base}: {len(other)} files passed over; {hint}", file=sys.stderr)
    if not found:
        raise CannotStart(f"{complaint} ({', '.join(sorted(AUDIO))}).")
    return [Input(path, path.relative_to(base).with_suffix("").as_posix()) for path in found]


def _from_common_folder(paths: Sequence[Path]) -> list[Input]:
    if not paths:
        raise CannotStart("-: no paths on standard input, expected one a line.")
    folder = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    names = [Path(os.path.relpath(path, folder)).with_suffix("").as_posix() for path in paths]
    return [Input(path, name) for path, name in zip(paths, names, strict=True)]


def _manifest(path: Path) -> list[Input]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CannotStart(f"{path}: cannot be read as a manifest ({error}).") from error
    missing = [number for number, row in enumerate(rows, 1) if not row.get("wav")]
    if missing or not rows:
        where = f"row {missing[0]} has none" if rows else "there are no rows"
        raise CannotStart(
            f"{path}: expected a CSV file whose column wav names an audio file in every row; "
            f"{where}. Scripts of recipes/prepare/ write such manifests."
        )
    items = _from_common_folder([path.resolve().parent / row["wav"] for row in rows])
    names = [row.get("ID") or item.name for row, item in zip(rows, items, strict=True)]
    return [Input(item.path, name) for item, name in zip(items, names, strict=True)]
