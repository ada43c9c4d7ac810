"""FLEURS, one language -> manifests.

Reads ROOT/<split>.tsv and ROOT/audio/<split>/*.wav, as data/<language> of
https://huggingface.co/datasets/google/fleurs unpacks (audio/train.tar.gz holds train/*.wav). The
tsv has no header: sentence id, file, raw transcription, normalized transcription, characters,
number of samples, gender. Several people read the same sentence, so its id is not unique; who they
are is not said, so manifests have no speakers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from w2v_plugin.checks import Utterance
from w2v_plugin.errors import BadManifest
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.preparation import command_line, part_paths, run
from w2v_plugin.tables import Row, read_table

HEADER = ("id", "file", "raw", "normalized", "characters", "samples", "gender")

EXAMPLES = """examples
  all three splits, with case and punctuation:
    python recipes/prepare/fleurs.py --data fleurs/data/de_de --out runs/data/de
  lower case without punctuation, as FLEURS' own baselines are scored:
    python recipes/prepare/fleurs.py --data fleurs/data/ml_in --text normalized --out runs/data/ml
"""


def list_split(root: Path, split: str, text: str) -> list[Utterance]:
    """Every line of one split."""
    table, audio = root / f"{split}.tsv", root / "audio" / split
    if not table.is_file():
        raise BadManifest(f"{table}: no such file. --data is data/<language> of FLEURS.")
    if not audio.is_dir():
        archive = root / "audio" / f"{split}.tar.gz"
        raise BadManifest(
            f"{audio}: no such folder. Unpack it first: tar xzf {archive} -C {archive.parent}"
        )
    rows = read_table(table, header=HEADER, delimiter="\t")
    return [utterance(row, audio, text) for row in rows]


def utterance(row: Row, audio: Path, text: str) -> Utterance:
    """One line; the id is that of the sentence and the name of the file."""
    if row.problem:
        return Utterance(row.source, audio, "", "", row.source, problem=row.problem)
    cells, problem, seconds = row.cells, "", None
    if cells["samples"].isdecimal():
        seconds = int(cells["samples"]) / SAMPLE_RATE
    else:
        problem = f"number of samples {cells['samples']!r}: are columns out of place?"
    wav = audio / cells["file"]
    name = f"{cells['id']}-{wav.stem}"
    return Utterance(name, wav, "", cells[text], row.source, promised=seconds, problem=problem)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = command_line(__doc__, EXAMPLES)
    add = options.add_argument
    add("--data", type=Path, required=True, help="folder of one language, with audio/ in it")
    splits = ["train", "dev", "test"]
    add("--split", nargs="+", default=splits, choices=splits, help="one or several (default: all)")
    texts = "with case and punctuation (raw, the default), or FLEURS' normalized text"
    add("--text", choices=("raw", "normalized"), default="raw", help=texts)
    out = "manifest to write (.csv), or folder for a manifest of each split"
    add("--out", type=Path, required=True, help=out)
    return options


def parts(options: argparse.Namespace) -> Mapping[Path, Sequence[Utterance]]:
    """Manifests and what belongs into them."""
    paths = part_paths(options.out, options.split)
    return {path: list_split(options.data, name, options.text) for name, path in paths.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where the corpus cannot be used."""
    options = parser().parse_args(argv)
    return run("fleurs.py", options, lambda: parts(options))


if __name__ == "__main__":
    sys.exit(main())
