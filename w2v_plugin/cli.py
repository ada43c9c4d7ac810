"""The command line: `w2v transcribe` and `w2v embed`.

Results go to stdout, one line per file and in the order of the files; everything else goes to
stderr. Exit status: 0 all files done, 1 some could not be used, 2 wrong call or no model.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import w2v_plugin
from w2v_plugin.errors import NotStreamable

if TYPE_CHECKING:
    from tqdm import tqdm

AUDIO = {".wav", ".flac", ".ogg", ".opus", ".mp3"}
FILE_HELP = "audio file (wav, flac, ogg, opus, mp3; any rate), or folder to search for them"
MODEL_HELP = (
    "folder written by training, folder of a transformers checkpoint, or its id on the "
    "Hugging Face hub, as facebook/wav2vec2-base-960h"
)
TRANSCRIBE = """\
examples:
  w2v transcribe talk.wav --model runs/ctc/model
  w2v transcribe *.flac interviews/ --model facebook/wav2vec2-base-960h > texts.tsv
  w2v transcribe *.flac --model runs/ctc/model --json | jq -r .text
  w2v transcribe talk.wav --model runs/ctc/model --chunk-ms 640   # in chunks

output: the text of a single file; otherwise path, tab, text; with --json one object per line.
A file that cannot be used is named on stderr, the others are transcribed, exit status is 1.
"""
EMBED = """\
examples:
  w2v embed talk.wav --model runs/pretrain/model --out vectors
  w2v embed corpus/ --model facebook/wav2vec2-base --layer 6 --pool mean --out vectors

output: vectors/talk.npy, float32 (frames, dim) with 50 frames per second, or (dim,) with --pool.
A folder given as FILE keeps its structure under --out. On stdout: path, tab, name of the result.
"""


class CannotStart(Exception):
    """Nothing can be done at all; `main` prints the message and returns 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process when not given.
    """
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (CannotStart, NotStreamable) as error:
        print(f"w2v: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `w2v … | head`: whoever reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = argparse.ArgumentParser(
        "w2v", description="Speech to text and speech to vectors with wav2vec 2.0."
    )
    top.add_argument("--version", action="version", version=f"w2v {w2v_plugin.__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    one = _command(commands, "transcribe", transcribe, "speech to text", TRANSCRIBE)
    one.add_argument("--json", action="store_true", help="one JSON object per line")
    one.add_argument(
        "--chunk-ms",
        type=_chunk_ms,
        metavar="N",
        help="let each 20 ms frame see only its chunk of N ms and what was before",
    )
    two = _command(commands, "embed", embed, "speech to vectors", EMBED)
    two.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the .npy files")
    two.add_argument(
        "--layer",
        type=int,
        default=-1,
        metavar="N",
        help="output of the N-th layer; 0: input of the first; -1: final context (default)",
    )
    two.add_argument("--pool", choices=["mean"], help="one vector per file")
    return top


def _command(commands: Any, name: str, run: Any, title: str, epilog: str) -> Any:
    command = commands.add_parser(
        name,
        help=title,
        description=f"{title.capitalize()}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help=FILE_HELP)
    command.add_argument("--model", required=True, metavar="MODEL", help=MODEL_HELP)
    command.add_argument("--device", help="cpu, cuda, cuda:1, … (default: an accelerator if any)")
    return command


def _chunk_ms(text: str) -> int:
    if not text.isdecimal() or int(text) < 20 or int(text) % 20:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a multiple of 20 (one frame)")
    return int(text)


def transcribe(arguments: argparse.Namespace) -> int:
    """`w2v transcribe`."""
    paths = [path for path, _ in find_audio(arguments.files)]
    asr = load("Wav2Vec2ASR", arguments.model, arguments.device)
    ms = arguments.chunk_ms
    chunk = None if ms is None else w2v_plugin.ChunkConfig(chunk=ms // 20)
    failed = 0
    with _progress(len(paths)) as bar:
        for path, text in asr.transcribe_files(paths, chunk=chunk):
            if isinstance(text, Exception):
                failed += 1
                bar.write(f"w2v: error: {text}", file=sys.stderr)
            elif arguments.json:
                bar.write(json.dumps({"path": str(path), "text": text}, ensure_ascii=False))
            else:
                bar.write(text if len(paths) == 1 else f"{path}\t{text}")
            bar.update()
    return _summary(failed, len(paths))


def embed(arguments: argparse.Namespace) -> int:
    """`w2v embed`."""
    found = find_audio(arguments.files)
    targets = _targets(found, arguments.out)
    encoder = load("Wav2Vec2Encoder", arguments.model, arguments.device)
    _check_layer(encoder, arguments.layer)
    import numpy as np

    from w2v_plugin.errors import BadAudio

    failed = 0
    with _progress(len(found)) as bar:
        for (path, _), target in zip(found, targets, strict=True):
            try:
                vectors = encoder.encode_file(path, layer=arguments.layer, pool=arguments.pool)
            except BadAudio as error:
                failed += 1
                bar.write(f"w2v: error: {error}", file=sys.stderr)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                np.save(target, vectors.cpu().numpy())
                bar.write(f"{path}\t{target}")
            bar.update()
    return _summary(failed, len(found))


def find_audio(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Files as given, folders as the audio files below them, sorted.

    Returns
    -------
    list of tuple of Path
        Where the file is, and its name: without folders for a file, relative to the folder
        that was given otherwise.
    """
    found = []
    for path in files:
        if not path.is_dir():
            found.append((path, Path(path.name)))
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO and p.is_file())
        if not inside:
            raise CannotStart(f"{path}: no audio files ({', '.join(sorted(AUDIO))}) in this folder")
        found.extend((p, p.relative_to(path)) for p in inside)
    return found


def load(kind: str, model: str, device: str | None) -> Any:
    """A `Wav2Vec2ASR` or `Wav2Vec2Encoder` from a model folder or a published checkpoint."""
    interface = getattr(w2v_plugin, kind)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # SpeechBrain's loggers ignore the level of their parents
    try:
        if (Path(model).expanduser() / "hyperparams.yaml").is_file():
            options = {} if device is None else {"device": device}
            return interface.from_hparams(model, run_opts=options)
        return interface.from_checkpoint(model, device=device)
    except (OSError, ValueError, RuntimeError, AssertionError) as error:  # the last: no CUDA
        raise CannotStart(f"cannot load the model: {' '.join(str(error).split())}") from error
    finally:
        logging.disable(before)


def _check_layer(encoder: Any, layer: int) -> None:
    layers = len(encoder.mods["wav2vec2"].encoder.layers)
    if not -1 <= layer <= layers:
        raise CannotStart(f"--layer {layer}: this model has layers 0 to {layers}, and -1")


def _targets(found: list[tuple[Path, Path]], out: Path) -> list[Path]:
    """Names of the results; no two may be the same."""
    sources: dict[Path, Path] = {}
    for path, name in found:
        target = out / name.with_suffix(".npy")
        if target in sources:
            raise CannotStart(
                f"{sources[target]} and {path} would both be written to {target}. Give their "
                "common folder instead, or run once for each with another --out"
            )
        sources[target] = path
    return list(sources)


def _progress(total: int) -> tqdm:
    """A bar on a terminal, and nothing for a single file or elsewhere."""
    from tqdm import tqdm

    hidden = total < 2 or not sys.stderr.isatty()
    return tqdm(total=total, unit="file", disable=hidden, leave=False)


def _summary(failed: int, total: int) -> int:
    if failed and total > 1:
        print(f"w2v: {failed} of {total} files could not be used", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
