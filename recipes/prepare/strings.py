"""Single words -> longer utterances: recordings of one speaker, one after another.

A corpus of spoken digits becomes one of spoken numbers, and a model that is trained on it learns
where words begin and end. Words are drawn evenly, with pauses of random length between them.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from w2v_plugin.audio import read_audio
from w2v_plugin.errors import BadAudio, BadManifest
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.manifests import Utterance, read_manifest, write_manifest

EXAMPLES = """examples
  half an hour of numbers of three to eight digits, from a manifest of single digits:
    python recipes/prepare/strings.py --manifest digits.csv --minutes 30 --out runs/data/numbers

what it writes
  <out>/wavs/*.flac    16 kHz
  <out>.csv            the manifest

The same manifest, options and seed give the same audio.
"""


def by_speaker(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows with a text, of each speaker."""
    speakers = defaultdict(list)
    for row in rows:
        if row["wrd"]:
            speakers[row["spk_id"]].append(row)
    if not speakers:
        raise BadManifest("no utterance has a text: strings of unknown words are of no use here.")
    return dict(speakers)


def joined(wavs: list[Tensor], pauses: list[float]) -> Tensor:
    """Waveforms (samples,), with a pause in seconds before each and after the last."""
    parts = []
    for wav, pause in zip([*wavs, torch.zeros(0)], pauses, strict=True):
        parts += [torch.zeros(round(pause * SAMPLE_RATE)), wav]
    return torch.cat(parts)


def write_strings(rows: list[dict[str, Any]], out: Path, args: argparse.Namespace) -> str:
    """Draw, join and write until there are enough minutes; what became of it, in words."""
    draw = random.Random(args.seed)
    speakers = by_speaker(rows)
    names = sorted(speakers)
    folder = out / "wavs"
    folder.mkdir(parents=True, exist_ok=True)
    made, left = [], args.minutes * 60
    bar = tqdm(total=round(left), unit="s", desc="strings", disable=not sys.stderr.isatty())
    while left > 0:
        name = names[len(made) % len(names)]
        words = draw.choices(speakers[name], k=draw.randint(args.words[0], args.words[1]))
        pauses = [draw.uniform(0, args.pause) for _ in range(len(words) + 1)]
        wav = joined([read_audio(row["wav"]) for row in words], pauses)
        path = folder / f"{name}-{len(made):05d}.flac"
        soundfile.write(path, wav.clamp(-1, 1).numpy(), SAMPLE_RATE)
        text = " ".join(row["wrd"] for row in words)
        made.append(Utterance(path.stem, path, name, text, str(path)))
        left -= len(wav) / SAMPLE_RATE
        bar.update(round(len(wav) / SAMPLE_RATE))
    bar.close()
    return str(write_manifest(out.parent / f"{out.name}.csv", made, need_text=True))


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--manifest", type=Path, required=True, help="of short recordings, with texts and speakers")
    add("--out", type=Path, required=True, help="folder to write; the manifest is beside it")
    add("--minutes", type=float, default=30, help="of audio (default 30)")
    add("--words", type=int, nargs=2, default=(3, 8), metavar=("LEAST", "MOST"),
        help="recordings in a string (default 3 8)")  # fmt: skip
    add("--pause", type=float, default=0.4, metavar="SECONDS",
        help="the longest pause; each is drawn between 0 and this (default 0.4)")  # fmt: skip
    add("--seed", type=int, default=0, help="another seed gives other strings (default 0)")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on stderr where the recordings cannot be used."""
    options = parser()
    args = options.parse_args(argv)
    if not 1 <= args.words[0] <= args.words[1]:
        options.error(f"--words {args.words[0]} {args.words[1]}: expected 1 <= LEAST <= MOST")
    if not (0 < args.minutes < math.inf and 0 <= args.pause < math.inf):
        options.error("--minutes must be above 0, --pause not below, both finite")
    try:
        print(write_strings(read_manifest(args.manifest), args.out, args))
    except (BadManifest, BadAudio, OSError) as error:
        print(f"strings.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
