"""The command line: `w2v transcribe`, `stream`, `align`, `embed`, `new-language` and others.

Results go to stdout or where `--out` says, in the order of the files; everything else goes to
stderr. Exit status: 0 all files done, 1 some could not be used, 2 wrong call or no model, 130
interrupted.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import w2v_plugin
from w2v_plugin import commands, new_language, stream_command
from w2v_plugin.errors import NotStreamable
from w2v_plugin.help_texts import (
    ALIGN,
    CONVERT,
    DESCRIPTION,
    EMBED,
    EXPORT,
    INPUT_HELP,
    LM_HELP,
    MODEL_HELP,
    NEW_LANGUAGE,
    STREAM,
    TRANSCRIBE,
    UNITS,
)
from w2v_plugin.inputs import CannotStart
from w2v_plugin.outputs import FORMATS

OVERLAPS = ("half", "accurate", "fast")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
POOLS = ("mean", "mean+std", "statistics")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process when not given.
    """
    arguments = parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names and texts may be anything
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        hint = "; the same command with --resume goes on" if _can_resume(arguments) else ""
        print(f"w2v: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `w2v … | head`: whoever reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CannotStart, NotStreamable, FloatingPointError, OSError) as error:
        print(f"w2v: error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        hint = "Use a smaller --batch-s or --window-s, or another --device."
        print(f"w2v: error: out of memory. {hint}", file=sys.stderr)
        return 2


def _can_resume(arguments: argparse.Namespace) -> bool:
    has_out = "resume" in arguments and arguments.out is not None
    return has_out and arguments.format not in ("npz", "parquet")


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = argparse.ArgumentParser(
        "w2v",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"w2v {w2v_plugin.__version__}")
    added = top.add_subparsers(metavar="COMMAND", required=True)

    one = _command(added, "transcribe", commands.transcribe, "speech to text", TRANSCRIBE)
    one.add_argument("inputs", nargs="+", metavar="INPUT", help=INPUT_HELP)
    _add_output(one, "text")
    one.add_argument("--resume", action="store_true", help="go on with what is in --out")
    _add_search(one)
    _add_model(one)
    _add_language(one)
    _add_speed(one)
    one.add_argument(
        "--chunk-ms",
        type=_chunk_ms,
        metavar="N",
        help="let each 20 ms frame see only its chunk of N ms and what was before",
    )

    two = _command(added, "align", commands.align, "times of a known text", ALIGN)
    two.add_argument("audio", metavar="AUDIO", help="audio file")
    two.add_argument("text", metavar="TEXT", help="what is said in it, or a file that holds it")
    _add_output(two, "json")
    _add_model(two)
    _add_language(two)

    three = _command(added, "embed", commands.embed, "speech to vectors", EMBED)
    three.add_argument("inputs", nargs="+", metavar="INPUT", help=INPUT_HELP)
    _add_vectors(three)
    _add_model(three)
    _add_speed(three)

    four = _command(added, "units", commands.units, "speech to discrete units", UNITS)
    four.add_argument("inputs", nargs="+", metavar="INPUT", help=INPUT_HELP)
    _add_units(four)
    _add_model(four)
    _add_speed(four)

    five = _command(added, "convert", commands.convert, "checkpoint to checkpoint", CONVERT)
    five.add_argument("source", metavar="MODEL", help=MODEL_HELP)
    five.add_argument("folder", type=Path, metavar="FOLDER", help="for the result")
    five.add_argument(
        "--to",
        choices=["hf", "ours"],
        default="hf",
        help="for transformers (default), or as training here writes it",
    )
    _add_language(five)
    five.add_argument(
        "--precision",
        choices=["fp32", "int8"],
        default="fp32",
        help="int8: weights in a quarter of the room, --to ours only",
    )
    five.add_argument(
        "--keep-fp32",
        metavar="PARTS",
        help="parts that INT8 leaves alone, as extractor.layers.1,encoder.layers.0",
    )

    six = _command(added, "export", commands.export, "checkpoint to ONNX", EXPORT)
    six.add_argument("source", metavar="MODEL", help=MODEL_HELP)
    six.add_argument("file", type=Path, metavar="FILE.onnx", help="must not exist yet")
    _add_language(six)
    _add_stream(added)
    eight = _command(
        added, "new-language", new_language.new_language, "recordings to a model", NEW_LANGUAGE
    )
    new_language.add_options(eight.add_argument)
    return top


def _add_stream(added: Any) -> None:
    seven = _command(added, "stream", stream_command.stream, "text while somebody speaks", STREAM)
    seven.add_argument(
        "source",
        metavar="SOURCE",
        help="audio file (wav, flac, ogg, opus, mp3; any rate and length); mic: the microphone; "
        "-: 16-bit little-endian mono PCM on stdin, without a header",
    )
    seven.add_argument(
        "--chunk-ms",
        type=_chunk_ms,
        metavar="N",
        help="wait for N ms of audio at a time: any multiple of 20, best 320, 480, 640 (default) "
        "or 960",
    )
    seven.add_argument(
        "--left-s",
        type=_left_s,
        metavar="S",
        help="seconds before a chunk that it sees (default: 5.12); all: everything",
    )
    seven.add_argument("--overlap", choices=OVERLAPS, help="windows instead of chunks, see below")
    seven.add_argument(
        "--silence-s",
        type=_silence_s,
        default=1.0,
        metavar="S",
        help="seconds of silence after a word that end an utterance (default: 1.0)",
    )
    seven.add_argument("--real-time", action="store_true", help="play a file as it was spoken")
    seven.add_argument("--json", action="store_true", help="every event as a line, see below")
    seven.add_argument(
        "--rate", type=_rate, metavar="HZ", help="samples per second of stdin (default: 16000)"
    )
    _add_search(seven)
    _add_where(seven)
    _add_language(seven)


def _command(added: Any, name: str, run: Any, title: str, epilog: str) -> argparse.ArgumentParser:
    command = added.add_parser(
        name,
        help=title,
        description=f"{title.capitalize()}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_output(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "--format", choices=FORMATS, default=default, help=f"see below (default: {default})"
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="file (text, json, ctm) or folder (srt, vtt) to write to, instead of stdout",
    )


def _add_search(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "beam search", "Any of these asks for it; otherwise decoding is greedy, which is faster."
    )
    group.add_argument("--beam", type=_count, metavar="N", help="hypotheses to keep (default: 50)")
    group.add_argument("--n-best", type=_count, metavar="N", help="alternatives, in JSON output")
    group.add_argument("--lm", type=Path, metavar="PATH", help=LM_HELP)
    group.add_argument(
        "--lm-words", type=Path, metavar="FILE", help="the words of a binary --lm, for better texts"
    )
    group.add_argument(
        "--hot-words",
        metavar="WORDS",
        help="words and phrases likely to be said, separated by commas; or a file, one a line",
    )
    group.add_argument("--alpha", type=float, metavar="X", help="weight of --lm (0.5, or as tuned)")
    group.add_argument("--beta", type=float, metavar="X", help="added per word (1.5, or as tuned)")


def _add_vectors(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder for the .npy files, or the .npz or Parquet file",
    )
    command.add_argument(
        "--format", choices=["npy", "npz", "parquet"], default="npy", help="default: npy"
    )
    command.add_argument("--resume", action="store_true", help="npy: skip the files that are there")
    command.add_argument(
        "--layer",
        type=_layer,
        default=-1,
        metavar="N",
        help="output of the N-th layer; 0: input of the first; -1: final context (default); "
        "1,5,9: several; all: from 0 to the last",
    )
    command.add_argument(
        "--layer-weights",
        type=_weights,
        metavar="W,W,…",
        help="weighted sum of all layers from 0 to the last, instead of --layer",
    )
    command.add_argument("--pool", choices=POOLS, help="one vector per file: statistics over time")


def _add_units(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--format", choices=["text", "json"], default="text", help="see below (default: text)"
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="to write to, instead of stdout")
    command.add_argument("--resume", action="store_true", help="go on with what is in --out")
    command.add_argument(
        "--group",
        type=_group,
        metavar="N",
        help="codes of one group of the quantizer, 0 for the first; joint: of all (default)",
    )
    command.add_argument(
        "--dedup", action="store_true", help="equal neighbors as one unit, with its duration"
    )
    command.add_argument(
        "--kmeans", type=Path, metavar="FILE", help="clusters of a layer, instead of the quantizer"
    )


def _add_model(command: argparse.ArgumentParser) -> None:
    _add_where(command)
    command.add_argument(
        "--window-s",
        type=_seconds,
        metavar="S",
        help="cut longer files into windows of S seconds that overlap by a fifth (default: 40)",
    )
    command.add_argument(
        "--compile",
        action="store_true",
        help="use torch.compile: a minute to begin with, then faster on accelerators",
    )


def _add_where(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, metavar="MODEL", help=MODEL_HELP)
    command.add_argument("--device", help="cpu, cuda, cuda:1, … (default: an accelerator if any)")
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of matrix products; auto (default): half precision where that is faster; "
        "int8: fastest on CPUs",
    )
    command.add_argument("--threads", type=_count, metavar="N", help="of the CPU, for computing")


def _add_language(command: argparse.ArgumentParser) -> None:
    command.add_argument("--language", metavar="CODE", help="of a multilingual model (MMS), as fra")


def _add_speed(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--batch-s",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="seconds of audio to compute at a time (default: 60)",
    )


def _number(convert: Callable[[str], Any], text: str, expected: str) -> Any:
    try:
        return convert(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}") from None


def _count(text: str) -> int:
    if (number := _number(int, text, "a whole number")) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 or more")
    return number


def _seconds(text: str) -> float:
    number = _number(float, text, "seconds")
    if not 1.0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a second or more")
    return number


def _layer(text: str) -> Any:
    if text == "all":
        return text
    numbers = _number(lambda t: [int(part) for part in t.split(",")], text, "as 6, 1,5,9 or all")
    return numbers if "," in text else numbers[0]


def _group(text: str) -> int | None:
    return None if text == "joint" else _number(int, text, "a number or joint")


def _weights(text: str) -> list[float]:
    return _number(lambda t: [float(part) for part in t.split(",")], text, "numbers as 0.2,0.8")


def _chunk_ms(text: str) -> int:
    if not text.isdecimal() or int(text) < 20 or int(text) % 20:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a multiple of 20 (one frame)")
    return int(text)


def _left_s(text: str) -> float:
    number = math.inf if text == "all" else _number(float, text, "seconds, or all")
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 0 or more, or all")
    return number


def _rate(text: str) -> int:
    if (number := _number(int, text, "samples per second")) < 1000:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1000 or more samples per second")
    return number


def _silence_s(text: str) -> float:
    if not 0.1 <= (number := _number(float, text, "seconds")) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 0.1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
