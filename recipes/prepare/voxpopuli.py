"""VoxPopuli, one language -> manifests.

Reads what the corpus' own scripts write (https://github.com/facebookresearch/voxpopuli,
get_asr_data.py and get_unlabelled_data.py): ROOT/transcribed_data/<language>/asr_<split>.tsv with
the columns id, raw_text, normalized_text, speaker_id, split and gender, audio under
ROOT/transcribed_data/<language>/<year>/<id>.ogg, the year being the first four letters of the id;
and ROOT/unlabelled_data/<language>/<year>/*.ogg.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from w2v_plugin.checks import Utterance
from w2v_plugin.errors import BadManifest
from w2v_plugin.preparation import command_line, part_paths, run
from w2v_plugin.tables import Row, read_table

UNKNOWN = ("", "None", "na", "N/A")  # speakers that are none

EXAMPLES = """examples
  the transcribed splits, normalized text:
    python recipes/prepare/voxpopuli.py --data voxpopuli --language de --need-text \\
        --out runs/data/de
  unlabelled audio for pretraining:
    python recipes/prepare/voxpopuli.py --data voxpopuli --language sl --unlabelled --max-s 30 \\
        --out runs/data/sl-pretrain.csv
"""


def list_split(folder: Path, split: str, text: str) -> list[Utterance]:
    """Every line of one transcribed split."""
    table = folder / f"asr_{split}.tsv"
    if not table.is_file():
        raise BadManifest(
            f"{table}: no such file. --data is the folder that holds transcribed_data; run "
            "get_asr_data of VoxPopuli first."
        )
    rows = read_table(table)
    column = f"{text}_text"
    columns = next((row.cells for row in rows if not row.problem), {})
    if rows and not {"id", column, "speaker_id"} <= set(columns):
        raise BadManifest(
            f"{table}:1: expected the columns id, {column} and speaker_id; it has "
            f"{', '.join(columns)}."
        )
    return [utterance(row, folder, column) for row in rows]


def utterance(row: Row, folder: Path, column: str) -> Utterance:
    """One line; the id tells the year."""
    if row.problem:
        return Utterance(row.source, folder, "", "", row.source, problem=row.problem)
    name, speaker = row.cells["id"], row.cells["speaker_id"]
    wav = folder / name[:4] / f"{name}.ogg"
    known = "" if speaker in UNKNOWN else speaker
    return Utterance(name, wav, known, row.cells[column], row.source)


def list_unlabelled(folder: Path) -> list[Utterance]:
    """Every file of a language; who speaks is not known."""
    files = sorted(folder.glob("*/*.ogg"))
    if not files:
        raise BadManifest(
            f"{folder}: holds no <year>/*.ogg. --data is the folder that holds unlabelled_data; "
            "run get_unlabelled_data of VoxPopuli first."
        )
    return [Utterance(wav.stem, wav, "", "", str(wav)) for wav in files]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = command_line(__doc__, EXAMPLES)
    add = options.add_argument
    add("--data", type=Path, required=True, help="folder that holds transcribed_data")
    add("--language", required=True, help="de, en, fr ...")
    splits = ["train", "dev", "test"]
    add("--split", nargs="+", default=splits, choices=splits, help="one or several (default: all)")
    add("--unlabelled", action="store_true", help="the unlabelled audio instead of splits")
    texts = "lower case without punctuation (normalized, the default), or as it was written down"
    add("--text", choices=("normalized", "raw"), default="normalized", help=texts)
    out = "manifest to write (.csv), or folder for a manifest of each split"
    add("--out", type=Path, required=True, help=out)
    return options


def parts(options: argparse.Namespace) -> Mapping[Path, Sequence[Utterance]]:
    """Manifests and what belongs into them."""
    if options.unlabelled:
        listed = list_unlabelled(options.data / "unlabelled_data" / options.language)
        return {part_paths(options.out, ["unlabelled"])["unlabelled"]: listed}
    folder = options.data / "transcribed_data" / options.language
    paths = part_paths(options.out, options.split)
    return {path: list_split(folder, name, options.text) for name, path in paths.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where the corpus cannot be used."""
    options = parser().parse_args(argv)
    return run("voxpopuli.py", options, lambda: parts(options))


if __name__ == "__main__":
    sys.exit(main())
