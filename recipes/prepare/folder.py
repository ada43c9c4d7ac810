"""A folder of audio, or a table that names audio files -> one manifest, or two.

Without --table, every audio file under --data is taken; a text file of the same name beside it
(a.flac, a.txt) is its transcript, and the folder it lies in is its speaker. With --table, the table
names the files; tab-separated tables are read without quoting, as corpora write them.
"""

from __future__ import annotations

import argparse
import csv
import operator
import random
import re
import sys
from collections import Counter
from pathlib import Path

from w2v_plugin.errors import BadManifest
from w2v_plugin.manifests import Utterance, write_manifest

AUDIO = {".flac", ".wav", ".ogg", ".opus", ".mp3", ".aiff", ".aif"}

EXAMPLES = """examples
  unlabelled audio in any folders:
    python recipes/prepare/folder.py --data recordings --out runs/data/pretrain.csv --max-s 20
  a table, a tenth of its speakers set aside to watch training:
    python recipes/prepare/folder.py --table corpus/manifest.tsv --need-text \\
        --out runs/data/train.csv --dev-out runs/data/dev.csv --split-by-speaker 0.1
  Common Voice (its clips lie in clips/, its columns have other names):
    python recipes/prepare/folder.py --table cv/train.tsv --data cv/clips --out runs/data/cv.csv \\
        --audio-column path --text-column sentence --speaker-column client_id --need-text
  Free Spoken Digit Dataset, official split: repetitions 0-4 of each speaker and digit are test
  (files are called <digit>_<speaker>_<repetition>.flac):
    python recipes/prepare/folder.py --table digits/manifest.tsv --drop '_[0-4]\\.flac$' \\
        --out runs/data/digits-train.csv
    python recipes/prepare/folder.py --table digits/manifest.tsv --keep '_[0-4]\\.flac$' \\
        --out runs/data/digits-test.csv

Every file is decoded once. Unusable ones are left out, counted, and listed with the reason in
<manifest>.skipped.tsv.
"""


def list_folder(root: Path) -> list[Utterance]:
    """Every audio file under `root`, in the order of the names."""
    if not root.is_dir():
        raise BadManifest(f"{root}: no such folder.")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in AUDIO)
    names = unique_names([path.relative_to(root) for path in files])
    return [with_sidecar(wav, name) for wav, name in zip(files, names, strict=True)]


def with_sidecar(wav: Path, name: str) -> Utterance:
    """The utterance, with the text of the .txt file beside it where there is one."""
    note = wav.with_suffix(".txt")
    if not note.is_file():
        return Utterance(name, wav, wav.parent.name, "", str(wav))
    return Utterance(name, wav, wav.parent.name, read_text(note), f"{note}:1")


def list_table(table: Path, root: Path, *, audio: str, text: str, speaker: str) -> list[Utterance]:
    """Every row of a table; `audio`, `text` and `speaker` name columns ("" = there is none)."""
    rows = read_table(table)
    header = rows[0][1] if rows else []
    for column in filter(None, (audio, text, speaker)):
        if column not in header:
            raise BadManifest(
                f"{table}:1: no column {column!r}; it has {', '.join(header)}. Name yours with "
                "--audio-column, --text-column, --speaker-column ('' where there is none)."
            )
    cells = [(number, row_cells(f"{table}:{number}", header, row)) for number, row in rows[1:]]
    for number, cell in cells:
        if not cell[audio].strip():
            raise BadManifest(f"{table}:{number}: column {audio!r} is empty. Remove the line.")
    paths = [Path(cell[audio].strip()) for _, cell in cells]
    return [
        Utterance(
            id=name,
            wav=root / path,
            speaker=cell[speaker].strip() if speaker else (root / path).parent.name,
            text=cell[text] if text else "",
            source=f"{table}:{number}",
        )
        for (number, cell), path, name in zip(cells, paths, unique_names(paths), strict=True)
    ]


def read_table(table: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not blank; the header comes first."""
    lines = read_text(table).splitlines(keepends=True)
    if table.suffix.lower() in (".tsv", ".tab"):
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines)
    return [(reader.line_num, row) for row in reader if row]


def row_cells(where: str, header: list[str], row: list[str]) -> dict[str, str]:
    """Cells by column name."""
    if len(row) != len(header):
        raise BadManifest(
            f"{where}: {len(row)} values, but the header names {len(header)} columns "
            f"({', '.join(header)}). Is a delimiter missing, or part of a text?"
        )
    return dict(zip(header, row, strict=True))


def read_text(path: Path) -> str:
    """UTF-8 text, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadManifest(f"{path}: not UTF-8 ({error.reason}). Convert it with iconv.") from error


def unique_names(paths: list[Path]) -> list[str]:
    """File names without suffix, or whole relative paths where the names alone are ambiguous."""
    stems = Counter(path.stem for path in set(paths))
    if max(stems.values(), default=0) == 1:
        return [path.stem for path in paths]
    return ["-".join(path.with_suffix("").parts) for path in paths]


def select(
    utterances: list[Utterance], root: Path, keep: str | None, drop: str | None
) -> list[Utterance]:
    """Filter by regular expressions that are searched in the path relative to `root`."""

    def wanted(utterance: Utterance) -> bool:
        path = utterance.wav
        name = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
        return not (keep and not re.search(keep, name)) and not (drop and re.search(drop, name))

    return [utterance for utterance in utterances if wanted(utterance)]


def hold_out(
    utterances: list[Utterance], fraction: float, seed: int, *, by_speaker: bool
) -> tuple[list[Utterance], list[Utterance]]:
    """(train, dev): a random `fraction` of the utterances or of the speakers goes to dev."""
    group = operator.attrgetter("speaker" if by_speaker else "id")
    groups = sorted({group(utterance) for utterance in utterances})
    if not 0 < fraction < 1 or len(groups) < 2:
        raise BadManifest(
            f"cannot set aside {fraction:g} of {len(groups)} "
            f"{'speakers' if by_speaker else 'utterances'}. The fraction lies between 0 and 1, and "
            "two are needed at least; with one speaker use --holdout."
        )
    count = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
    aside = set(random.Random(seed).sample(groups, count))
    train = [utterance for utterance in utterances if group(utterance) not in aside]
    return train, [utterance for utterance in utterances if group(utterance) in aside]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--data", type=Path, help="folder of audio; with --table: what its paths are relative to")
    add("--table", type=Path, help="a .tsv or .csv file with a header")
    add("--out", type=Path, required=True, help="manifest to write")
    add("--audio-column", default="path", help="column with the audio path (default path)")
    add("--text-column", default="transcript", help="column with the text (default transcript)")
    add("--speaker-column", default="speaker", help="column with the speaker (default speaker)")
    add("--keep", metavar="REGEX", help="only files whose relative path matches")
    add("--drop", metavar="REGEX", help="no files whose relative path matches")
    add("--dev-out", type=Path, help="second manifest, for what is set aside")
    aside = options.add_mutually_exclusive_group()
    aside.add_argument("--split-by-speaker", type=float, metavar="F", help="fraction of speakers")
    aside.add_argument("--holdout", type=float, metavar="F", help="fraction of utterances")
    add("--seed", type=int, default=0, help="of what is set aside (default 0)")
    add("--min-s", type=float, help="leave out shorter utterances, seconds")
    add("--max-s", type=float, help="leave out longer utterances, seconds")
    add("--need-text", action="store_true", help="leave out utterances without a transcript")
    add("--workers", type=int, default=2, help="files decoded at a time (default 2)")
    return options


def listed(options: argparse.Namespace) -> list[Utterance]:
    """What the options ask for, before any file is opened."""
    if options.table:
        root = options.data or options.table.parent
        columns = {"audio": options.audio_column, "text": options.text_column}
        found = list_table(options.table, root, speaker=options.speaker_column, **columns)
    else:
        root, found = options.data, list_folder(options.data)
    return select(found, root, options.keep, options.drop)


def write_all(options: argparse.Namespace) -> None:
    """Write the manifest, and the second one where something is set aside."""
    parts = [(options.out, listed(options))]
    if options.dev_out:
        by_speaker = options.split_by_speaker is not None
        fraction = options.split_by_speaker if by_speaker else options.holdout
        train, dev = hold_out(parts[0][1], fraction, options.seed, by_speaker=by_speaker)
        parts = [(options.out, train), (options.dev_out, dev)]
    limits = {"max_s": options.max_s, "min_s": options.min_s, "workers": options.workers}
    for path, utterances in parts:
        print(write_manifest(path, utterances, need_text=options.need_text, **limits))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where the corpus cannot be used."""
    command_line = parser()
    options = command_line.parse_args(argv)
    if not (options.data or options.table):
        command_line.error("give --data FOLDER, --table FILE, or both")
    if (options.dev_out is None) != (options.split_by_speaker is None and options.holdout is None):
        command_line.error("--dev-out goes together with --split-by-speaker or --holdout")
    try:
        write_all(options)
    except (BadManifest, OSError, re.error) as error:
        print(f"folder.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
