"""Tables and "name text" lines -> utterances.

What stands between rows of text (`tables`) and a listing: which column is what, which file a name
means, which part of it. Surprising: a recording under the folder that no line names still stands in
the result, without a text, and a line that cannot be used stands there with its `problem`: what is
left out later is named and counted.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from w2v_plugin.checks import Utterance, as_promised, header_seconds
from w2v_plugin.errors import BadManifest
from w2v_plugin.tables import Row, known_columns, read_lines
from w2v_plugin.text import clean_text
from w2v_plugin.toolkit_lists import find_file, missing, part_of

AUDIO = {
    *(".flac", ".wav", ".wave", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64"),
    ".sph",
}
UNREADABLE = {".m4a", ".aac", ".wma", ".amr", ".3gp", ".webm", ".mp4", ".mkv", ".mov", ".avi"}
SHOWN = 3  # names in a message

Columns = Mapping[str, str]


def choose_columns(path: Path, header: Sequence[str], given: Columns) -> dict[str, str]:
    """Roles and columns: those given, and the known ones for all other roles."""
    for name in filter(None, given.values()):
        if name not in header:
            raise BadManifest(
                f"{path}:1: no column {name!r}; it has {', '.join(header)}. Name yours with "
                "--audio-column, --text-column, --speaker-column ('' where there is none)."
            )
    columns = {**known_columns(name for name in header if name not in given.values()), **given}
    return {role: name for role, name in columns.items() if name}


def list_rows(
    rows: Sequence[Row],
    roots: Sequence[Path],
    columns: Columns,
    where: Path,
    folder: Path | None = None,
) -> list[Utterance]:
    """Utterances of table rows, whose `columns` say what is what; then the rest of a `folder`."""
    if "audio" not in columns:
        header = ", ".join(rows[0].cells) if rows else ""
        raise BadManifest(
            f"{where}:1: no column that names the audio; it has {header}. Say which one it is: "
            "--audio-column (and --text-column, --speaker-column; '' where there is none)."
        )
    paths = [Path(str(row.cells.get(columns["audio"]) or "").strip()) for row in rows]
    names = unique_names(paths)
    listed = [
        _row_utterance(row, path, name, roots, columns)
        for row, path, name in zip(rows, paths, names, strict=True)
    ]
    listed += unnamed(audio_files(folder), folder, listed) if folder else []
    return listed if "speaker" in columns else with_speakers(listed)


def list_lines(path: Path, root: Path, encoding: str = "utf-8") -> list[Utterance]:
    """Recordings under `root` with the texts of a file of "name text" lines.

    Between name and text stand tabs, | (LJSpeech: name|text|normalized text; the last is taken) or
    a space: what most lines have. A name is a path under `root`, or a file name with or without its
    suffix, in whatever form of Unicode.
    """
    files = audio_files(root)
    known = _by_name(files, root)
    lines = read_lines(path, encoding)
    separator = _separator([line for _, line in lines])
    listed = []
    for source, line in lines:
        if separator and separator not in line:
            problem = f"no {separator!r} between name and text, which most lines have"
            listed.append(Utterance(source, root, "", "", source, problem=problem))
            continue
        name, text = _name_and_text(line, separator)
        found = known.get(clean_text(name), [])
        problem = "" if len(found) == 1 else _not_one(name, found, root)
        wav = found[0] if len(found) == 1 else root / name
        stem = Path(name).with_suffix("") if Path(name).suffix.lower() in AUDIO else name
        identity = source if problem else str(stem)
        listed.append(Utterance(identity, wav, "", text, source, problem=problem))
    if all(each.problem for each in listed):
        first = next((_name_and_text(line, separator)[0] for _, line in lines), "")
        raise BadManifest(
            f"{path}:1: no line begins with the name of a recording in {root} ({len(files)} there; "
            f"the first line begins with {first[:40]!r}). Expected lines of 'name text', or a "
            "table with a header (path, text, speaker; other names: --audio-column)."
        )
    return with_speakers([*listed, *unnamed(files, root, listed)])


def unnamed(files: Sequence[Path], root: Path, listed: Sequence[Utterance]) -> list[Utterance]:
    """Those of the recordings under `root` that nothing listed names, without a text."""
    heard = {each.wav.resolve() for each in listed if os.path.isfile(each.wav)}
    taken = {each.id for each in listed}
    names = unique_names([wav.relative_to(root) for wav in files])
    return [
        Utterance(
            f"{wav}" if name in taken else name, wav, "", "", f"{wav}", problem=format_problem(wav)
        )
        for name, wav in zip(names, files, strict=True)
        if wav.resolve() not in heard
    ]


def with_speakers(listed: Sequence[Utterance]) -> list[Utterance]:
    """Speakers by folders: the first one of each path that not all paths have in common.

    Files above those folders are of one speaker, who is called like the folder that they are in.
    What cannot be used has no speaker.

    Example
    -------
    >>> wavs = map(Path, ("clips/ann/1/a.wav", "clips/ann/2/b.wav", "clips/bob/1/c.wav"))
    >>> [each.speaker for each in with_speakers([Utterance(wav.stem, wav, "") for wav in wavs])]
    ['ann', 'ann', 'bob']
    """
    folders = [each.wav.parent.parts for each in listed if not each.problem]
    ends = zip(min(folders, default=()), max(folders, default=()), strict=False)
    shared = sum(1 for _ in takewhile(lambda names: names[0] == names[1], ends))
    return [
        replace(
            each,
            speaker="" if each.problem else Path(*each.wav.parent.parts[: shared + 1]).name,
        )
        for each in listed
    ]


def unique_names(paths: Sequence[Path]) -> list[str]:
    """File names without suffix, or whole relative paths where the names alone are ambiguous.

    Example
    -------
    >>> unique_names([Path("ann/1.wav"), Path("bob/1.wav")])
    ['ann-1', 'bob-1']
    """
    stems = Counter(path.stem for path in set(paths))
    if max(stems.values(), default=0) <= 1:
        return [path.stem for path in paths]
    return ["-".join((*path.parts[:-1], path.stem)) for path in paths]


def audio_files(root: Path) -> list[Path]:
    """Audio under a folder, sorted; hidden files (of file managers) are none."""
    if not root.is_dir():
        raise BadManifest(f"{root}: no such folder.")
    return files_under(root, AUDIO | UNREADABLE)


def files_under(root: Path, suffixes: Collection[str]) -> list[Path]:
    """Files with such a suffix, sorted; OSError where a folder cannot be opened.

    Links to folders elsewhere are followed; those to a folder above or below `root` are not, for
    they lead in circles, or to what is found anyway.
    """
    base, entered = os.path.realpath(root), set()

    def leads_elsewhere(path: str) -> bool:
        target = os.path.realpath(path)
        new = os.path.commonpath([base, target]) not in (base, target) and target not in entered
        entered.add(target)
        return new

    def closed(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=closed, followlinks=True):
        paths = {name: os.path.join(folder, name) for name in sorted(folders)}
        folders[:] = [
            name
            for name, path in paths.items()
            if not os.path.islink(path) or leads_elsewhere(path)
        ]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in suffixes)


def format_problem(wav: Path) -> str:
    if wav.suffix.lower() not in UNREADABLE:
        return ""
    return f"{wav.suffix} cannot be decoded here; convert it: ffmpeg -i {wav.name} {wav.stem}.flac"


def _row_utterance(
    row: Row, path: Path, name: str, roots: Sequence[Path], columns: Columns
) -> Utterance:
    def cell(role: str) -> str:
        value = row.cells.get(columns[role]) if role in columns else None
        return "" if value is None else str(value)

    problem, times = row.problem or _no_text(row, columns), {}
    if not problem and not cell("audio").strip():
        problem = f"column {columns['audio']!r} is empty"
    wav = find_file(str(path), roots)
    problem = problem or missing(wav) or format_problem(wav)
    try:
        times = {} if problem else _times(cell, wav, columns)
    except ValueError as error:
        problem = str(error)
    if "start" in times:
        name = f"{name}-{round(1000 * (times['start'] or 0)):07d}"
    return Utterance(
        id=row.source if problem else cell("id").strip() or name,
        wav=wav,
        speaker=cell("speaker").strip(),
        text=cell("text"),
        source=row.source,
        problem=problem,
        **times,  # type: ignore[arg-type]
    )


def _no_text(row: Row, columns: Columns) -> str:
    """Which of the columns holds a list or an object; JSON lines may."""
    for name in columns.values():
        if isinstance(value := row.cells.get(name), (list, dict)):
            kind = "a list" if isinstance(value, list) else "an object"
            return f"column {name!r} is {kind}, expected text"
    return ""


def _times(cell: Callable[[str], str], wav: Path, columns: Columns) -> dict[str, float | None]:
    """`start`, `end` and `promised` of a row; nothing where it says nothing of times.

    A start of 0 with a duration is the first part of a longer file, or all of a file that is so
    long, of which NeMo's manifests say it too.
    """

    def seconds(role: str) -> float | None:
        text = cell(role).strip()
        if text and _number(text) is None:
            raise ValueError(
                f"column {columns[role]!r} is {text[:40]!r}, expected seconds, such as 3.25"
            )
        return _number(text)

    start, end = seconds("start"), seconds("end")
    length = seconds("duration") if "start" in columns else _number(cell("duration"))
    if length is not None and not length > 0:
        raise ValueError(f"a duration of {length:g} s")
    if end is None and length is not None:
        heard = header_seconds(wav) if start == 0 else 0.0
        if not start and (heard < length or as_promised(length, heard)):
            return {"promised": length}
        end = (start or 0.0) + length
    return part_of(start or 0.0, end) if start or end is not None else {}


def odd_durations(rows: Iterable[Row], columns: Columns) -> str:
    """What to say of durations that are no numbers, where no start makes them more than a promise.

    Example
    -------
    >>> odd_durations([Row("t.csv:2", {"dur": "0:03"})], {"duration": "dur"})
    "; 1 'dur' without a number of seconds (t.csv:2: '0:03'), not compared"
    """
    name = columns.get("duration", "")
    cells = [(row.source, str(row.cells.get(name) or "").strip()) for row in rows]
    odd = [f"{source}: {cell[:40]!r}" for source, cell in cells if cell and _number(cell) is None]
    if "start" in columns or not odd:
        return ""
    return f"; {len(odd)} {name!r} without a number of seconds ({odd[0]}), not compared"


def _number(text: str) -> float | None:
    """Some languages write a decimal comma."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return None


def _by_name(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Files by relative path, file name and stem, with and without suffix."""
    known: dict[str, list[Path]] = defaultdict(list)
    for wav in files:
        relative = wav.relative_to(root)
        names = {relative.as_posix(), relative.with_suffix("").as_posix(), wav.name, wav.stem}
        for name in {clean_text(name) for name in names}:
            known[name].append(wav)
    return known


def _not_one(name: str, found: list[Path], root: Path) -> str:
    if not found:
        return f"no recording {name!r} in {root}"
    places = ", ".join(str(path.relative_to(root)) for path in found[:SHOWN])
    return f"{name!r} is the name of {len(found)} recordings: {places}"


def _separator(lines: Sequence[str]) -> str:
    """Tab or | where most lines have one; "" for spaces."""
    separators = ("\t", "|")
    return next((s for s in separators if 2 * sum(s in line for line in lines) > len(lines)), "")


def _name_and_text(line: str, separator: str) -> tuple[str, str]:
    """LJSpeech's third column has numbers spelled out; it is empty in some lines."""
    if not separator:
        name, *rest = line.split(maxsplit=1)
        return name, rest[0] if rest else ""
    name, *cells = line.split(separator)
    texts = [cell for cell in cells if cell.strip()]
    return name.strip(), texts[-1] if texts else ""
