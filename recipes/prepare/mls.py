"""Multilingual LibriSpeech, one language -> manifests.

Reads ROOT/<split>/transcripts.txt ("speaker_book_number TAB text"), ROOT/<split>/segments.txt
(name, LibriVox file, begin, end) and ROOT/<split>/audio/<speaker>/<book>/*.flac or *.opus, as
https://www.openslr.org/94 unpacks (mls_german or mls_german_opus is such a ROOT). The limited
supervision of the paper (https://arxiv.org/abs/2012.03411) is
train/limited_supervision/1hr/<0 to 5>/handles.txt and 9hr/handles.txt; ten hours are both.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from w2v_plugin.checks import Utterance
from w2v_plugin.errors import BadManifest
from w2v_plugin.preparation import command_line, part_paths, run
from w2v_plugin.tables import read_lines

SUFFIXES = (".flac", ".opus")
LIMITED = {"10min": ("1hr/0",), "1h": ("1hr/*",), "9h": ("9hr",), "10h": ("1hr/*", "9hr")}

EXAMPLES = """examples
  all three splits:
    python recipes/prepare/mls.py --data mls_german_opus --out runs/data/de
  the ten labelled hours of the paper (also 10min, 1h and 9h) and dev and test:
    python recipes/prepare/mls.py --data mls_polish --limited 10h --out runs/data/pl
"""


def list_split(root: Path, split: str, limited: str | None = None) -> list[Utterance]:
    """Every line of a split's transcripts, or those that handles.txt name."""
    folder = root / split
    table = folder / "transcripts.txt"
    if not table.is_file():
        raise BadManifest(f"{table}: no such file. --data is a folder such as mls_german.")
    refuse_packed(folder / "audio")
    lengths = segment_seconds(folder / "segments.txt")
    listed = [utterance(source, line, folder, lengths) for source, line in read_lines(table)]
    return keep_handles(listed, folder / "limited_supervision", limited) if limited else listed


def utterance(source: str, line: str, folder: Path, lengths: Mapping[str, float]) -> Utterance:
    """One line; its name leads to the audio."""
    name, tab, text = line.partition("\t")
    name = name.strip()
    speaker, _, book = name.rpartition("_")[0].partition("_")
    wav = find_file(name, folder / "audio" / speaker / book)
    problem = "" if tab and book else f"expected 'speaker_book_number TAB text', got {line[:40]!r}"
    return Utterance(name, wav, speaker, text, source, promised=lengths.get(name), problem=problem)


def find_file(name: str, book: Path) -> Path:
    """The .flac or .opus of a name; both downloads may lie in one folder."""
    paths = [book / f"{name}{suffix}" for suffix in SUFFIXES]
    return next((path for path in paths if os.path.isfile(path)), paths[0])


def refuse_packed(folder: Path) -> None:
    """`BadManifest` where there is no audio at all."""
    if not any(next(folder.glob(f"*/*/*{suffix}"), None) for suffix in SUFFIXES):
        raise BadManifest(f"{folder}: holds no <speaker>/<book>/*.flac or *.opus. Was it unpacked?")


def segment_seconds(path: Path) -> dict[str, float]:
    """Lengths by name, from begin and end in the book's recording."""
    lengths = {}
    for source, line in read_lines(path) if path.is_file() else []:
        cells = line.split("\t") if "\t" in line else line.split()
        try:
            lengths[cells[0]] = float(cells[3]) - float(cells[2])
        except (IndexError, ValueError) as error:
            raise BadManifest(f"{source}: expected name, file, begin and end ({error}).") from error
    return lengths


def keep_handles(utterances: Sequence[Utterance], folder: Path, size: str) -> list[Utterance]:
    """Only what the handles of a size name; a handle without a transcript is an error."""
    files = [file for part in LIMITED[size] for file in sorted(folder.glob(f"{part}/handles.txt"))]
    if not files:
        raise BadManifest(f"{folder}: holds no handles.txt in {' and '.join(LIMITED[size])}.")
    wanted = {line.strip(): source for file in files for source, line in read_lines(file)}
    known = {utterance.id for utterance in utterances}
    if unknown := [name for name in wanted if name not in known]:
        raise BadManifest(
            f"{wanted[unknown[0]]}: {unknown[0]!r} is not in transcripts.txt "
            f"({len(unknown)} such lines)."
        )
    return [utterance for utterance in utterances if utterance.id in wanted]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = command_line(__doc__, EXAMPLES)
    add = options.add_argument
    add("--data", type=Path, required=True, help="folder of one language")
    splits = ["train", "dev", "test"]
    add("--split", nargs="+", default=splits, choices=splits, help="one or several (default: all)")
    add("--limited", choices=LIMITED, help="of train, only the paper's limited supervision")
    out = "manifest to write (.csv), or folder for a manifest of each split"
    add("--out", type=Path, required=True, help=out)
    return options


def parts(options: argparse.Namespace) -> Mapping[Path, Sequence[Utterance]]:
    """Manifests and what belongs into them."""
    paths = part_paths(options.out, options.split)
    limited = {"train": options.limited}
    return {path: list_split(options.data, name, limited.get(name)) for name, path in paths.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where the corpus cannot be used."""
    options = parser().parse_args(argv)
    return run("mls.py", options, lambda: parts(options))


if __name__ == "__main__":
    sys.exit(main())
