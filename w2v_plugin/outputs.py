"""Transcripts -> stdout, one file of records, or one subtitle file each; all can be resumed.

Records are appended one by one and flushed, so whatever was running, a kill costs one record at
most: the half-written one, which is cut off and written again. Subtitles appear under their name
when they are complete.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tqdm import tqdm

from w2v_plugin.inputs import CannotStart, Input, by_name
from w2v_plugin.transcripts import to_ctm, to_json, to_srt, to_vtt

if TYPE_CHECKING:
    from typing_extensions import Self

    from w2v_plugin.transcripts import Transcript

SUBTITLES: dict[str, Callable[[Transcript], str]] = {"srt": to_srt, "vtt": to_vtt}
FORMATS = ("text", "json", *SUBTITLES, "ctm")


def say(text: str) -> None:
    """Write to stdout at once, around a progress bar if there is one."""
    with tqdm.external_write_mode(file=sys.stdout):
        sys.stdout.write(text)
        sys.stdout.flush()


def open_output(
    items: Sequence[Input], format: str, out: Path | None, *, resume: bool = False
) -> Records | Subtitles:
    """Where the transcripts of these files go; see `Records` and `Subtitles`, which may refuse."""
    if resume and out is None:
        raise CannotStart("--resume goes on with the file or folder of --out: give it, too.")
    if format not in SUBTITLES:
        return Records(items, format, out, resume=resume)
    if out is not None:
        return Subtitles(items, format, out, resume=resume)
    if len(items) > 1:
        raise CannotStart(
            f"--format {format} makes a file for each of these {len(items)}: give --out FOLDER."
        )
    return Records(items, format)


class Records:
    """One record per file, in the order in which they come: on stdout, or appended to a file.

    Parameters
    ----------
    items : sequence of Input
        Whose transcripts will come.
    format : {"text", "json", "ctm", "srt", "vtt"}
        "text": path, tab, text; of a single file on stdout the text alone. See `to_json`, `to_ctm`.
        The last two for a single file on stdout only.
    out : Path, optional
        The file; stdout if not given.
    resume : bool
        Go on with what is in `out`.

    Raises
    ------
    CannotStart
        `out` exists and is not to be resumed, is a folder, or holds something else.

    Example
    -------
    >>> import tempfile
    >>> from w2v_plugin.transcripts import Transcript
    >>> items = [Input(Path("a.wav"), "a"), Input(Path("b.wav"), "b")]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = Path(folder, "texts.tsv")
    ...     _ = out.write_bytes(b"a.wav\\tHI\\nb.w")
    ...     with Records(items, "text", out, resume=True) as records:
    ...         left = [item for item in items if not records.has(item)]
    ...         records.write(left[0], Transcript("YOU"), 1.0)
    ...     out.read_bytes()
    b'a.wav\\tHI\\nb.wav\\tYOU\\n'
    """

    def __init__(
        self, items: Sequence[Input], format: str, out: Path | None = None, *, resume: bool = False
    ) -> None:
        if format == "ctm":
            by_name(items)
        self.format, self.out = format, out
        self.alone = len(items) == 1 and out is None
        self._file: IO[bytes] | None = None
        self._size = 0  # bytes that stay
        self._written: set[str] = set()
        if out is None:
            return
        if out.is_dir():
            raise CannotStart(f"--out {out}: a folder, but --format {format} goes to one file.")
        if not out.is_file():  # not there yet, or /dev/null
            return
        if not resume:
            refuse_existing(out)
        self._written, self._size = _read_records(out, format)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def has(self, item: Input) -> bool:
        """Whether its record is there."""
        return self._key(item) in self._written

    def write(self, item: Input, transcript: Transcript, seconds: float) -> None:
        """Add a record; `seconds` is the length of the audio."""
        text = self._record(item, transcript, seconds)
        if self.out is None:
            say(text)
            return
        if self._file is None:  # not before there is something to write
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.out.open("ab")
            if self.out.is_file():
                self._file.truncate(self._size)
        self._file.write(text.encode("utf-8", "surrogateescape"))
        self._file.flush()

    def _record(self, item: Input, transcript: Transcript, seconds: float) -> str:
        if self.format == "json":
            return to_json(str(item.path), transcript, seconds) + "\n"
        if self.format == "ctm":
            return to_ctm(item.name, transcript)
        if self.format in SUBTITLES:
            return SUBTITLES[self.format](transcript)
        return f"{transcript.text}\n" if self.alone else f"{item.path}\t{transcript.text}\n"

    def _key(self, item: Input) -> str:
        """What a record can be recognized by."""
        return "_".join(item.name.split()) if self.format == "ctm" else str(item.path)


class Subtitles:
    """A file of subtitles for each file of audio, with the same names and folders below `out`.

    Parameters
    ----------
    items : sequence of Input
        Whose transcripts will come.
    format : {"srt", "vtt"}
        See `to_srt`, `to_vtt`.
    out : Path
        The folder; or, for a single file, the file, which the suffix `.srt` or `.vtt` tells.
    resume : bool
        Leave alone what is there.

    Raises
    ------
    CannotStart
        A file exists and is not to be resumed, or two would have one name.

    Example
    -------
    >>> import tempfile
    >>> from w2v_plugin.transcripts import Span, Transcript
    >>> item = Input(Path("talks/a.wav"), "a")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     subtitles = Subtitles([item], "srt", Path(folder))
    ...     with subtitles:
    ...         subtitles.write(item, Transcript("HI", (Span("HI", 0.5, 0.7, 0.9),)), 1.0)
    ...     subtitles.has(item), os.listdir(folder)
    (True, ['a.srt'])
    """

    def __init__(
        self, items: Sequence[Input], format: str, out: Path, *, resume: bool = False
    ) -> None:
        self._text = SUBTITLES[format]
        self._targets = {
            item.name: out / f"{item.name}.{format}" for item in by_name(items).values()
        }
        if out.suffix == f".{format}":
            if len(items) > 1:
                raise CannotStart(
                    f"--out {out}: one file for the subtitles of {len(items)} files. Give a folder."
                )
            self._targets = {items[0].name: out}
        for target in () if resume else self._targets.values():
            refuse_existing(target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def has(self, item: Input) -> bool:
        """Whether its file is there."""
        return self._targets[item.name].exists()

    def write(self, item: Input, transcript: Transcript, seconds: float) -> None:
        """Write a file; `seconds` is not needed."""
        target = self._targets[item.name]
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        part.write_text(self._text(transcript), encoding="utf-8", newline="\n")
        part.replace(target)


def refuse_existing(path: Path) -> None:
    """CannotStart if there is something at `path`."""
    if path.exists():
        raise CannotStart(
            f"{path}: exists already and is not overwritten. Remove it, use another --out, or "
            "--resume where the command has that."
        )


def _read_records(path: Path, format: str) -> tuple[set[str], int]:
    """Keys of the whole records of a file, and the number of bytes that these take.

    Of a CTM file, which has many lines per record, the last record may lack some: it is left out.
    """
    starts: dict[str, int] = {}  # of the last record with this key
    size, last = 0, ""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            key = _key_of(line.decode("utf-8", "surrogateescape"), format, f"{path}:{number}")
            if format != "ctm" or key != last:
                starts[key], last = size, key
            size += len(line)
    if format == "ctm" and last:
        size = starts.pop(last)
    return set(starts), size


def _key_of(line: str, format: str, where: str) -> str:
    if format == "text" and "\t" in line:
        return line.rpartition("\t")[0]
    if format == "ctm" and len(fields := line.split(" ")) == 6:
        return fields[0]
    if format == "json":
        with suppress(ValueError, TypeError, KeyError):
            return json.loads(line)["path"]
    raise CannotStart(f"{where}: no record as --format {format} writes them. Use another --out.")
