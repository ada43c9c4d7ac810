"""A folder or list of somebody's own -> utterances, whatever form it has.

`list_any` looks and decides: audio with a .txt beside each file, a table (tsv, csv, JSON lines;
NeMo's manifests are such), a text file of "name text" lines (LJSpeech's metadata.csv is one), or
what `toolkit_lists` reads. It says what it took the path for, so that a wrong guess is seen.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from w2v_plugin.checks import Utterance
from w2v_plugin.errors import BadManifest
from w2v_plugin.manifests import COLUMNS
from w2v_plugin.table_lists import (
    AUDIO,
    SHOWN,
    Columns,
    audio_files,
    choose_columns,
    files_under,
    format_problem,
    list_lines,
    list_rows,
    odd_durations,
    unique_names,
    with_speakers,
)
from w2v_plugin.tables import Row, header_of, known_columns, read_json_rows, read_table, read_text
from w2v_plugin.toolkit_lists import is_kaldi, lhotse_kind, list_kaldi, list_lhotse

NO_AUDIO = "a text, but no recording of this name"
OURS = (".skipped.tsv", ".flagged.tsv")
TABLES = {".tsv", ".csv", ".tab", ".jsonl"}


class Listing(list[Utterance]):
    """Utterances; `kind` says in one sentence what they were read from.

    Of those that are listed again word by word all but the first have a `problem`.
    """

    def __init__(self, utterances: Iterable[Utterance], kind: str) -> None:
        super().__init__(_without_repetitions(utterances))
        self.kind = kind


def list_any(
    path: str | Path,
    text: str | Path | None = None,
    *,
    audio_root: str | Path | None = None,
    columns: Columns | None = None,
    encoding: str = "utf-8",
) -> Listing:
    """List the utterances of a folder, table or list, deciding by what it finds.

    Parameters
    ----------
    path : str or Path
        A folder of audio, a Kaldi or ESPnet data directory, a folder with one table or one lhotse
        manifest in it; or a .tsv, .csv, .jsonl, .json (also .gz), or a file of "name text" lines.
    text : str or Path, optional
        Transcripts that lie elsewhere than beside the audio of the folder `path`: a table, a file
        of "name text" lines (tab, | or space), or a folder of .txt files.
    audio_root : str or Path, optional
        What the paths of a list start from; by default the folder of the list.
    columns : mapping, optional
        Which column of a table is what: {"audio": "clip", "text": "said"}. Keys are `audio`,
        `text`, `speaker`, `id`, `start`, `end`, `duration`; "" for none. Others are guessed.
    encoding : str
        Of text files and tables.

    Returns
    -------
    Listing
        Where nothing says who speaks, folders do: see `with_speakers`.

    Raises
    ------
    BadManifest
        There is nothing, more than one thing to take, or something that cannot be read.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "ann").mkdir()
    ...     _ = Path(folder, "ann", "a.wav").write_bytes(b"")
    ...     _ = Path(folder, "ann", "a.txt").write_text("hello")
    ...     listing = list_any(folder)
    >>> [(each.id, each.speaker, each.text) for each in listing]
    [('a', 'ann', 'hello')]
    >>> listing.kind.split(": ")[1]
    '1 audio file, 1 with a .txt of the same name beside it'
    """
    path, root = Path(path), Path(audio_root) if audio_root else None
    if not path.exists():
        raise BadManifest(f"{path}: no such file or folder.")
    if text is not None:
        return _list_with_texts(path, Path(text), columns or {}, encoding)
    if path.is_dir():
        return _list_directory(path, root, columns or {}, encoding)
    if path.suffix.lower() in AUDIO:
        raise BadManifest(f"{path}: one recording. Expected the folder, or a list of recordings.")
    return _list_file(path, root, columns or {}, encoding)


def _without_repetitions(listed: Iterable[Utterance]) -> Iterator[Utterance]:
    first: dict[Utterance, str] = {}
    for each in listed:
        told = first.setdefault(replace(each, source=""), each.source)
        if told == each.source or each.problem:
            yield each
        else:
            yield replace(each, id=each.source, problem=f"says the same as {told}")


def list_folder(root: Path, encoding: str = "utf-8", texts: Path | None = None) -> list[Utterance]:
    """Every audio file under `root`, in the order of the names, with the .txt of the same name.

    The .txt lies beside the audio, or at the same place under the folder `texts`; a.wav.txt is one
    of a.wav, too, and Unicode's forms are equal (macOS writes others). Where some have one, a .txt
    without audio is listed, too, with its `problem`: it may be the audio that is lost.
    """
    files = audio_files(root)
    names = unique_names([path.relative_to(root) for path in files])
    notes = {_place(path.with_suffix(""), texts or root): path for path in _notes(texts or root)}
    damaged: list[tuple[Path, BadManifest]] = []
    listed, heard = [], set()
    for wav, name in zip(files, names, strict=True):
        places = (_place(wav.with_suffix(""), root), _place(wav, root))
        text, source = "", str(wav)
        if place := next((each for each in places if each in notes), ""):
            heard.add(place)
            source = f"{notes[place]}:1"
            try:
                text = read_text(notes[place], encoding)
            except BadManifest as error:
                damaged.append((notes[place], error))
        listed.append(Utterance(name, wav, "", text, source, problem=format_problem(wav)))
    if damaged:
        raise BadManifest(_damaged_texts(damaged, len(heard)))
    lost = [note for place, note in sorted(notes.items()) if place not in heard and heard]
    listed += [Utterance(f"{note}", note, "", "", f"{note}:1", problem=NO_AUDIO) for note in lost]
    return with_speakers(listed)


def _place(path: Path, root: Path) -> str:
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix())


def _damaged_texts(damaged: Sequence[tuple[Path, BadManifest]], count: int) -> str:
    """What is wrong with the first, and the names of some others."""
    others = [note.name for note, _ in damaged[1 : 1 + SHOWN]]
    more = f" Others: {', '.join(others)}" if others else ""
    more += f" and {left} more" if (left := len(damaged) - 1 - len(others)) else ""
    return f"{len(damaged)} of {count} texts cannot be read. {damaged[0][1]}{more}"


def _notes(root: Path) -> list[Path]:
    """Every .txt under a folder; LibriSpeech's .trans.txt are lists."""
    found = files_under(root, {".txt"})
    return [path for path in found if not path.name.endswith(".trans.txt")]


def _list_directory(folder: Path, root: Path | None, columns: Columns, encoding: str) -> Listing:
    if is_kaldi(folder):
        listed = list_kaldi(folder, root, encoding)
        return Listing(listed, f"{folder}: a Kaldi or ESPnet data directory")
    tables = [path for path in sorted(folder.iterdir()) if _is_table(path, encoding)]
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise BadManifest(
            f"{folder}: holds several lists: {names}. Name the one that is meant, or use the "
            "script of recipes/prepare/ that is made for the corpus."
        )
    if tables:
        return _list_file(tables[0], root, columns, encoding)
    listed, not_read = list_folder(folder, encoding), _not_read(folder)
    if not listed:
        kinds = ", ".join(sorted(AUDIO))
        raise BadManifest(f"{folder}: no audio in it ({kinds}), and no list{not_read}.")
    return Listing(listed, f"{_folder_kind(folder, listed)}{_voices(listed)}{not_read}")


def _list_file(
    path: Path, root: Path | None, columns: Columns, encoding: str, folder: Path | None = None
) -> Listing:
    """Of a table also the recordings of `folder` that it does not name; of lines always."""
    roots = [root] if root else [path.parent, Path()]
    if _is_json(path):
        rows = read_json_rows(path, encoding)
        if kind := lhotse_kind(rows):
            return Listing(list_lhotse(path, root, encoding), f"{path}: lhotse {kind}")
        header = list(dict.fromkeys(name for row in rows for name in row.cells))
        chosen = choose_columns(path, header, columns)
        return _list_table(path, rows, roots, chosen, "JSON lines", folder)
    header = header_of(path, encoding)
    if columns or "audio" in known_columns(header):
        chosen = choose_columns(path, header, columns)
        return _list_table(path, read_table(path, encoding), roots, chosen, "a table", folder)
    listed = list_lines(path, root or path.parent, encoding)
    return Listing(listed, f"{path}: lines of 'name text'{_voices(listed)}")


def _list_table(
    path: Path,
    rows: list[Row],
    roots: list[Path],
    columns: dict[str, str],
    kind: str,
    folder: Path | None,
) -> Listing:
    said = ", ".join(f"{role} = {name}" for role, name in columns.items())
    listed = list_rows(rows, roots, columns, path, folder)
    odd = odd_durations(rows, columns)
    voices = "" if "speaker" in columns else _voices(listed)
    return Listing(listed, f"{path}: {kind} with {said}{odd}{_rest(listed)}{voices}")


def _list_with_texts(folder: Path, text: Path, columns: Columns, encoding: str) -> Listing:
    if not folder.is_dir():
        raise BadManifest(f"{folder}: not a folder; texts elsewhere go with a folder of audio.")
    if not text.exists():
        raise BadManifest(f"{text}: no such file or folder of texts.")
    if text.is_dir():
        listed = list_folder(folder, encoding, texts=text)
        if not any(each.source.endswith(":1") for each in listed):
            raise BadManifest(f"{text}: none of its .txt has the name of a recording in {folder}.")
        files = sum(not each.problem for each in listed)
        kind = f"{folder}: {files} audio files with the texts of {text}"
        return Listing(listed, f"{kind}{_voices(listed)}")
    if _is_json(text) or "audio" in known_columns(header_of(text, encoding)) or columns:
        return _list_file(text, folder, columns, encoding, folder)
    listed = list_lines(text, folder, encoding)
    kind = f"{folder}: audio with the lines of {text}"
    return Listing(listed, f"{kind}{_rest(listed)}{_voices(listed)}")


def _is_json(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith((".jsonl", ".json"))


def _is_table(path: Path, encoding: str) -> bool:
    """Whether a file in a folder is a list of audio; recordings of cuts are read with them.

    What an earlier run wrote there is none: it would hide what has been added since.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if not path.is_file() or suffix not in TABLES or path.name.startswith("."):
        return False
    if path.name.endswith(OURS) or _is_manifest(path):
        return False
    if suffix == ".jsonl":
        rows = read_json_rows(path, encoding)
        kind = lhotse_kind(rows)
        other = path.with_name(path.name.replace("recordings", "supervisions"))
        if kind == "recordings" and other != path and other.is_file():
            return False
        return bool(kind) or any("audio" in known_columns(row.cells) for row in rows[:1])
    return path.name == "metadata.csv" or "audio" in known_columns(header_of(path, encoding))


def _is_manifest(path: Path) -> bool:
    """Whether it is one of ours, which are UTF-8 whatever the user's files are."""
    if path.suffix != ".csv" or not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline(100).removeprefix(codecs.BOM_UTF8)  # which Excel adds
    return first.strip() == ",".join(COLUMNS).encode()


def _not_read(folder: Path) -> str:
    names = [path.name for path in sorted(folder.iterdir()) if _is_manifest(path)]
    return f"; not read, unless named: the manifest {' and '.join(names)}" if names else ""


def _rest(listed: Sequence[Utterance]) -> str:
    """Recordings that a list does not name stand for themselves."""
    names = [each.wav.name for each in listed if each.source == str(each.wav)]
    count = f"{len(names)} recording{'s' if len(names) > 1 else ''}"
    return f"; {count} that it does not name, such as {names[0]}" if names else ""


def _voices(listed: Iterable[Utterance]) -> str:
    """Who was taken for a speaker, where folders said so: a wrong guess shall be seen."""
    names = list(dict.fromkeys(each.speaker for each in listed if each.speaker))
    more = ", ..." if len(names) > SHOWN else ""
    return f"; speakers by folder ({', '.join(names[:SHOWN])}{more})" if len(names) > 1 else ""


def _folder_kind(folder: Path, listed: Sequence[Any]) -> str:
    lost = sum(utterance.problem == NO_AUDIO for utterance in listed)
    texts = sum(utterance.source.lower().endswith(".txt:1") for utterance in listed) - lost
    audio = len(listed) - lost
    files = f"{audio} audio file{'s' if audio != 1 else ''}"
    kind = f"{folder}: {files}, {texts} with a .txt of the same name beside it"
    if lost:
        kind += f", {lost} .txt without audio"
    if not texts and (notes := _notes(folder)):
        kind += (
            f"; {len(notes)} .txt, none with the name of a recording, such as {notes[0].name} (a "
            "list of texts goes with --text)"
        )
    if next(folder.rglob("*.trans.txt"), None):
        kind += " (its *.trans.txt are LibriSpeech's; recipes/prepare/librispeech.py reads them)"
    return kind
