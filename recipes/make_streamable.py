"""A published model -> a model folder that can stream, to continue pretraining from.

What it changes, and why that must be: see w2v_plugin/streamable.py. The result is a beginning: it
hears nearly what the model heard, but was never trained for chunks. Three commands make a streaming
recognizer of a published checkpoint:

    python recipes/make_streamable.py facebook/wav2vec2-base runs/streamable --audio train.csv
    python recipes/pretrain.py hparams/pretrain/streaming_base.yaml --start_from runs/streamable \\
        --train_csv train.csv --valid_csv dev.csv
    python recipes/finetune_ctc.py hparams/ctc/streaming_base.yaml --extractor_norm none \\
        --pretrained runs/pretrain_streaming_base/model --train_csv labelled.csv --valid_csv dev.csv

Heads stay: the quantizer of a pretrained model, so that continued pretraining goes on with its
codes; the CTC head and vocabulary of a fine-tuned one, which can be fine-tuned again at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from w2v_plugin.audio import read_audio
from w2v_plugin.conversion import open_any
from w2v_plugin.errors import BadAudio, CheckpointMismatch, NotStreamable
from w2v_plugin.folders import save_asr, save_pretrained
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.inputs import CannotStart, find_inputs
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.streamable import Likeness, likeness, to_streamable


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="model folder, checkpoint or hub id")
    parser.add_argument("folder", type=Path, help="for the result; must not exist")
    parser.add_argument(
        "--audio", required=True, nargs="+",
        help="typical speech: files, folders, quoted patterns or manifests",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=30.0,
        help="of it to fit to, and as much again to compare (default: 30)",
    )  # fmt: skip
    return parser.parse_args(argv)


def read_some(inputs: Sequence[str], seconds: float) -> Iterator[list[Tensor]]:
    """So many seconds from evenly spread files, and as many from others."""
    paths = [item.path for item in find_inputs(inputs)]
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0)).tolist()
    wavs = (read_audio(paths[i]) for i in order)
    for _ in range(2):
        part: list[Tensor] = []
        while sum(map(len, part)) < seconds * SAMPLE_RATE and (wav := next(wavs, None)) is not None:
            part.append(wav[: int(seconds * SAMPLE_RATE)])
        yield part


def make(source: str, folder: Path, fit: list[Tensor], compare: list[Tensor]) -> Likeness:
    """Convert, save, and say how much alike they are on audio that nothing was fitted to."""
    model, vocabulary = open_any(source)
    old = model if isinstance(model, Wav2Vec2) else model.wav2vec2
    new = to_streamable(old, fit)
    found = likeness(old, new, compare)
    if isinstance(model, Wav2Vec2):
        save_pretrained(folder, new)
        return found
    model.wav2vec2 = new
    if vocabulary is None:
        save_pretrained(folder, model)
    else:
        save_asr(folder, model, vocabulary)
    return found


def main(argv: Sequence[str]) -> None:
    """Run the recipe with command-line arguments."""
    arguments = parse(argv)
    if arguments.folder.exists():
        raise CannotStart(f"{arguments.folder} exists. Choose another folder.")
    fit, compare = read_some(arguments.audio, arguments.seconds)
    found = make(arguments.model, arguments.folder, fit, compare or fit)
    where = "other audio" if compare else "the same audio: there was no more"
    print(
        f"Cosine of frames before and after, on {where}: latents {found.latents:.3f}, context "
        f"{found.context:.3f}\nModel folder: {arguments.folder}"
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (CannotStart, BadAudio, CheckpointMismatch, NotStreamable, OSError) as error:
        sys.exit(f"make_streamable.py: error: {error}")
