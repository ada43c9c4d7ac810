"""A manifest -> tar shards in WebDataset's format, for corpora that outgrow a disk.

Audio files are copied byte for byte, in random order. The index beside the shards is what training
reads first (--train_csv OUT/index.jsonl); the shards may then move to a server.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from w2v_plugin.errors import BadManifest
from w2v_plugin.shard_files import write_shards

EXAMPLES = """examples
  pack, and train on it:
    python recipes/prepare/shards.py --manifest runs/data/pretrain.csv --out runs/data/shards
    python recipes/pretrain.py hparams/pretrain/tiny.yaml --valid_csv runs/data/dev.csv \\
        --train_csv runs/data/shards/index.jsonl
  with the shards on a server or in a bucket (the index stays here):
    python recipes/pretrain.py ... --train_csv index.jsonl --shard_urls "https://host/corpus/{}"
    python recipes/pretrain.py ... --shard_urls "pipe:aws s3 cp s3://bucket/{} -"
  several languages, small ones heard more often; corpora.yaml has a line `de: de/index.jsonl` each:
    python recipes/pretrain.py hparams/pretrain/multilingual.yaml --train_csv corpora.yaml ...
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--manifest", type=Path, required=True, help="manifest of the other scripts here")
    add("--out", type=Path, required=True, help="folder for NAME-000000.tar ... and index.jsonl")
    add("--name", help="what the shards are called (default: as the manifest)")
    add("--shard_mb", type=float, default=500, help="least size of a shard, MB (default 500)")
    add("--seed", type=int, default=0, help="of the order (default 0)")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where the manifest cannot be used."""
    options = parser().parse_args(argv)
    name = options.name or options.manifest.stem
    settings = {"shard_mb": options.shard_mb, "seed": options.seed}
    try:
        print(write_shards(options.manifest, options.out, name=name, **settings))
    except (BadManifest, ImportError, OSError) as error:
        print(f"shards.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
