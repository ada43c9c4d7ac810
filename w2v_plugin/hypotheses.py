"""What a recognizer said, as files: from `recipes/evaluate.py`, `w2v transcribe`, or elsewhere.

A `.csv` has a header with `ID,hyp` and perhaps `spk_id` and `ref`; anything else is read as what
`w2v transcribe --out` writes: path, tab, text. An utterance without a text is one of which nothing
was understood: the caller counts its words as deleted. A text too many, or two of one utterance,
mean that the file belongs to something else, and are errors.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from w2v_plugin.errors import BadManifest
from w2v_plugin.text import clean_text

COLUMNS = ("ID", "spk_id", "ref", "hyp")


@dataclass(frozen=True)
class Reference:
    """An utterance of a test set: what was said, and by whom.

    Parameters
    ----------
    id, speaker, text : str
        Of a manifest's row; `text` may be empty.
    wav : str
        The audio file, absolute; empty where only texts are known.
    seconds : float
        Its length; 0 where only texts are known.
    """

    id: str
    speaker: str
    text: str
    wav: str = ""
    seconds: float = 0.0


def read_hypotheses(path: str | Path, references: Sequence[Reference]) -> dict[str, str]:
    """Texts by ID, for a known test set.

    Parameters
    ----------
    path : str or Path
        See the top of this file.
    references : sequence of Reference
        The test set.

    Raises
    ------
    BadManifest
        The file cannot be read, names an utterance twice or one that the test set does not have,
        holds another reference than the test set, or none of its utterances. File and line are
        named.

    Example
    -------
    >>> import tempfile
    >>> said = [Reference("a", "ann", "hello"), Reference("b", "ben", "good bye")]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "hyp.csv")
    ...     _ = path.write_text("ID,hyp\\nb,good buy\\n", encoding="utf-8")
    ...     read_hypotheses(path, said)
    {'b': 'good buy'}
    """
    known = {reference.id: reference for reference in references}
    by_path: dict[str, list[str]] = {}  # a file may be the audio of several utterances
    for reference in filter(lambda one: one.wav, references):
        by_path.setdefault(os.path.realpath(reference.wav), []).append(reference.id)
    found: dict[str, str] = {}
    for where, row in _rows(Path(path)):
        names = [row["ID"]] if _is_csv(path) else by_path.get(os.path.realpath(row["ID"]), [""])
        for name in names:
            if name not in known:
                raise BadManifest(
                    f"{where}: {row['ID']!r} is none of the {len(known)} utterances of the test "
                    "set. Give the manifest that these texts belong to."
                )
            if name in found:
                raise BadManifest(f"{where}: a second text for {row['ID']!r}. Remove one of them.")
            _check_reference(row.get("ref"), known[name], where)
            found[name] = row["hyp"]
    return found


def read_references(path: str | Path) -> list[Reference]:
    """The test set of a file of hypotheses that holds the references as well.

    Raises
    ------
    BadManifest
        It does not, or has an utterance twice.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "hyp.csv")
    ...     _ = path.write_text("ID,spk_id,ref,hyp\\nb,ben,good bye,good buy\\n", encoding="utf-8")
    ...     read_references(path)
    [Reference(id='b', speaker='ben', text='good bye', wav='', seconds=0.0)]
    """
    found: dict[str, Reference] = {}
    for where, row in _rows(Path(path)):
        if "ref" not in row:
            raise BadManifest(
                f"{path}: holds no references (columns ID,spk_id,ref,hyp). Give --manifest, too."
            )
        if row["ID"] in found:
            raise BadManifest(f"{where}: a second text for {row['ID']!r}. Remove one of them.")
        found[row["ID"]] = Reference(row["ID"], row.get("spk_id", ""), row["ref"])
    return list(found.values())


def write_hypotheses(
    path: str | Path, references: Sequence[Reference], hypotheses: Sequence[str]
) -> None:
    """A file that `read_hypotheses` and `read_references` read; all of it or nothing.

    Parameters
    ----------
    path : str or Path
        The `.csv` file.
    references : sequence of Reference
        The test set.
    hypotheses : sequence of str
        (utterances,) as the recognizer gave them.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for reference, text in zip(references, hypotheses, strict=True):
            writer.writerow((reference.id, reference.speaker, reference.text, text))
    part.replace(path)


def _check_reference(text: str | None, known: Reference, where: str) -> None:
    if text is not None and clean_text(text) != clean_text(known.text):
        raise BadManifest(
            f"{where}: the reference of {known.id!r} is {text!r} here and {known.text!r} in the "
            "test set. Texts of one test set need the same references."
        )


def _is_csv(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".csv"


def _rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Rows with the columns that count, and "file:line" of each."""
    if not path.is_file():
        raise BadManifest(f"{path}: no such file. Expected texts as .csv or .tsv.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = _csv_rows(path, lines) if _is_csv(path) else _tsv_rows(path, lines)
    except UnicodeDecodeError as error:
        raise BadManifest(f"{path}: not UTF-8 ({error}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise BadManifest(f"{path}: not a CSV file ({error}).") from error
    if not rows:
        raise BadManifest(f"{path}: no utterances in it.")
    return rows


def _csv_rows(path: Path, lines: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    reader = csv.DictReader(lines)
    names = [name for name in COLUMNS if name in (reader.fieldnames or ())]
    if "ID" not in names or "hyp" not in names:
        raise BadManifest(
            f"{path}:1: expected a header with ID,hyp (and spk_id,ref if known), got "
            f"{','.join(reader.fieldnames or ())[:80]!r}."
        )
    rows = []
    for row in reader:
        where = f"{path}:{reader.line_num}"
        if None in row or None in row.values():
            raise BadManifest(
                f"{where}: {'too many' if None in row else 'too few'} values for the header. "
                "A comma inside a text needs quotes around the text."
            )
        rows.append((where, {name: row[name] for name in names}))
    return rows


def _tsv_rows(path: Path, lines: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    rows = []
    for number, line in enumerate(lines, 1):
        name, tab, text = line.rstrip("\r\n").rpartition("\t")
        if not tab:
            raise BadManifest(
                f"{path}:{number}: expected path, tab, text, as `w2v transcribe --out` writes it."
            )
        rows.append((f"{path}:{number}", {"ID": name, "hyp": text}))
    return rows
