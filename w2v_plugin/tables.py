"""Text files of corpora -> lines and rows, each of which knows where it stands.

Corpora come with byte order marks, CRLF, other encodings, tab-separated values without quoting, and
JSON lines; this is the one place that knows. Surprising: `str.splitlines` is of no use here, since
sentences hold U+2028 and other characters at which it would break a row in two.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2v_plugin.errors import BadManifest

DELIMITERS = ("\t", "|", ";", ",")
COLUMN_NAMES = {  # what corpora call them, the best first; compared without case
    "audio": (
        *("path", "audio", "wav", "audio_filepath", "audio_path", "audio_file", "file_name"),
        *("filename", "file", "file_path", "wav_path", "wav_filename", "clip", "recording"),
    ),
    "text": (
        *("transcript", "sentence", "text", "transcription", "wrd", "words", "normalized_text"),
        *("label", "utterance", "txt", "raw_text", "raw_transcription"),
    ),
    "speaker": ("speaker", "speaker_id", "client_id", "spk_id", "spk", "speaker_name", "reader"),
    "id": ("id", "utt_id", "utterance_id", "uttid", "utt"),
    "start": ("offset", "start", "start_time", "begin"),
    "end": ("end", "end_time", "stop"),
    "duration": ("duration", "duration_s", "dur"),
}


@dataclass(frozen=True)
class Row:
    """Cells by column name; `problem` says why there are none."""

    source: str
    cells: Mapping[str, Any]
    problem: str = ""


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """All of a text file (or of a .gz) with LF between lines and without a byte order mark.

    Raises
    ------
    BadManifest
        It is in another encoding; the message names the line and what to do.
    """
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise BadManifest(f"{path}: damaged ({error}). Copy or download it again.") from error
    try:
        utf8 = codecs.lookup(encoding).name == "utf-8"  # it has many spellings
        text = data.decode("utf-8-sig" if utf8 else encoding)
    except UnicodeDecodeError as error:
        raise BadManifest(f"{path}:{_undecodable(data, error, encoding)}") from error
    except LookupError as error:
        raise BadManifest(f"--encoding {encoding}: Python knows no such encoding.") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise BadManifest(
            f"{path}:{line}: holds a NUL character; no text, or UTF-16. {_remedy('utf-16')}"
        )
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


def read_lines(path: Path, encoding: str = "utf-8") -> list[tuple[str, str]]:
    """("file:line", text) of every line that is not blank."""
    lines = read_text(path, encoding).split("\n")
    return [(f"{path}:{n}", line) for n, line in enumerate(lines, start=1) if line.strip()]


def read_table(
    path: Path,
    encoding: str = "utf-8",
    *,
    header: Sequence[str] | None = None,
    delimiter: str | None = None,
) -> list[Row]:
    """Rows of a delimited file; those with too few or too many values have a `problem`.

    So has every line between two stray quotes, of which a CSV reader makes one long cell. Tab- and
    pipe-separated tables are read without quoting, as corpora write them; a cell that was quoted
    nevertheless loses its quotes.

    Parameters
    ----------
    path : Path
        The table, with a header line unless `header` is given.
    encoding : str
        Of the file.
    header : sequence of str, optional
        Column names of a table that has no header line.
    delimiter : str, optional
        By default the one that the first line is full of.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "t.tsv")
    ...     _ = path.write_text('path\\ttext\\na.wav\\t"so ""it"" is"\\nb.wav\\n')
    ...     rows = read_table(path)
    >>> rows[0].cells["text"], rows[1].problem
    ('so "it" is', '1 values, but there are 2 columns (path, text)')
    """
    text = read_text(path, encoding)
    numbered = _split(text, path, delimiter or guess_delimiter(path, text))
    if header is None:
        if not numbered:
            raise BadManifest(f"{path}: empty. Expected a header and a line for each recording.")
        number, names = numbered.pop(0)
        header = [name.strip() for name in names]
        _check_header(f"{path}:{number}", header)
    return [row for number, cells in numbered for row in _rows(path, number, header, cells)]


def read_json_rows(path: Path, encoding: str = "utf-8") -> list[Row]:
    """Objects of a file with one JSON object a line, or with one JSON array of them."""
    text = read_text(path, encoding)
    if text.lstrip().startswith("["):
        try:
            return [_object(f"{path}: item {n}", item) for n, item in enumerate(json.loads(text))]
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", 1)
            raise BadManifest(f"{path}:{line}: not JSON ({error}).") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(_object(f"{path}:{number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                rows.append(Row(f"{path}:{number}", {}, f"not JSON ({error})"))
    return rows


def known_columns(names: Iterable[str]) -> dict[str, str]:
    """What columns are for, by their names: {"audio": "path", "text": "sentence", ...}.

    Example
    -------
    >>> known_columns(["client_id", "path", "sentence", "up_votes"])
    {'audio': 'path', 'text': 'sentence', 'speaker': 'client_id'}
    """
    lower = {name.lower(): name for name in names}
    return {
        role: next(lower[name] for name in known if name in lower)
        for role, known in COLUMN_NAMES.items()
        if any(name in lower for name in known)
    }


def header_of(path: Path, encoding: str = "utf-8") -> list[str]:
    """Cells of the first line that is not blank."""
    first = _first_line(read_text(path, encoding))
    return [cell.strip().strip('"') for cell in first.split(guess_delimiter(path, first))]


def guess_delimiter(path: Path, text: str) -> str:
    """Tab for .tsv; otherwise what the first line holds most of."""
    if path.suffix.lower() in (".tsv", ".tab"):
        return "\t"
    first = _first_line(text)
    return max(DELIMITERS, key=lambda delimiter: (first.count(delimiter), delimiter == ","))


def unquoted(cell: str) -> str:
    """A cell without the quotes of a CSV writer; quotes that belong to the text stay.

    Example
    -------
    >>> [unquoted(cell) for cell in ('"a ""b"" c"', '"a" and "b"', 'say "a"')]
    ['a "b" c', '"a" and "b"', 'say "a"']
    """
    inner = cell[1:-1]
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return inner.replace('""', '"') if quoted and '"' not in inner.replace('""', "") else cell


def _split(text: str, path: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not blank."""
    if delimiter in "\t|":
        lines = enumerate(text.split("\n"), start=1)
        split = ((number, line.split(delimiter)) for number, line in lines if line.strip())
        return [(number, [unquoted(cell) for cell in cells]) for number, cells in split]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found: list[tuple[int, list[str]]] = []
    try:
        line = 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                found.append((line, cells))
            line = reader.line_num + 1  # a quoted cell may hold line breaks
    except csv.Error as error:
        raise BadManifest(
            f"{path}:{line}: {error}. Is a quote missing, or not doubled inside of a text?"
        ) from error
    return found


def _first_line(text: str) -> str:
    return next((line for line in io.StringIO(text) if line.strip()), "").rstrip("\n")


def _check_header(source: str, header: Sequence[str]) -> None:
    if len(set(header)) < len(header):
        raise BadManifest(f"{source}: two columns have the same name: {', '.join(header)}.")
    if any("\n" in name for name in header):
        raise BadManifest(
            f"{source}: a header of several lines. Is a quote missing? Write it on one line."
        )


def _rows(path: Path, number: int, header: Sequence[str], cells: Sequence[str]) -> list[Row]:
    """The row that begins on a line; one for each line where stray quotes made one of several."""
    if swallowed := _swallowed(cells):
        last = number + "".join(cells).count("\n")
        problem = (
            f"lines {number} to {last} are between two quotes, but {swallowed[:40]!r} looks like a "
            "row of its own. Is a quote missing, or not doubled inside of a text?"
        )
        return [Row(f"{path}:{line}", {}, problem) for line in range(number, last + 1)]
    if len(cells) == len(header):
        return [Row(f"{path}:{number}", dict(zip(header, cells, strict=True)))]
    columns = f"{len(header)} columns ({', '.join(header)})"
    return [Row(f"{path}:{number}", {}, f"{len(cells)} values, but there are {columns}")]


def _swallowed(cells: Sequence[str]) -> str:
    """A line of a cell of several lines that names a file as the rest of the row does, or ""."""
    long = [cell for cell in cells if "\n" in cell]
    kinds = {_suffix(line) for cell in cells for line in cell.split("\n") if long} - {""}
    for line in (line for cell in long for line in cell.split("\n")):
        pieces = re.split("[;,]", line)
        if len(pieces) > 1 and any(_suffix(piece) in kinds for piece in pieces):
            return line
    return ""


def _suffix(text: str) -> str:
    found = re.search(r"\.[a-z]\w{1,4}$", text.strip().lower())
    return found[0] if found else ""


def _object(source: str, item: Any) -> Row:
    if isinstance(item, dict):
        return Row(source, item)
    return Row(source, {}, f"expected a JSON object, got {str(item)[:40]!r}")


def _undecodable(data: bytes, error: UnicodeDecodeError, encoding: str) -> str:
    """Line, byte, and what was perhaps meant."""
    line = data[: error.start].count(b"\n") + 1
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"{line}: not {encoding} but UTF-16. {_remedy('utf-16')}"
    around = data[max(error.start - 10, 0) : error.start + 10].decode("cp1252", "replace")
    return (
        f"{line}: not {encoding} (byte 0x{data[error.start]:02x}; as cp1252 it reads "
        f"{around!r}). If that is right: {_remedy('cp1252')}"
    )


def _remedy(encoding: str) -> str:
    """Some commands have the option, some do not."""
    return (
        f"Convert it to UTF-8 (iconv -f {encoding} -t utf-8), or give --encoding {encoding} to a "
        "command that has this option."
    )
