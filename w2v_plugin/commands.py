"""What the commands of the command line do, each from its parsed arguments to its exit status.

PyTorch and SpeechBrain are imported when a command runs, after everything that can be refused
without them was refused.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import w2v_plugin
from w2v_plugin.inputs import CannotStart, Input, by_name, find_inputs, groups, header_seconds
from w2v_plugin.outputs import open_output, refuse_existing, say
from w2v_plugin.progress import Progress

Errors = tuple[type[Exception], ...]
WRONG_INPUT: Errors = (OSError, ValueError, RuntimeError, ImportError)


def transcribe(arguments: argparse.Namespace) -> int:
    """`w2v transcribe`."""
    items = find_inputs(arguments.inputs)
    output = open_output(items, arguments.format, arguments.out, resume=arguments.resume)
    options = search_options(arguments)
    asr = open_interface("Wav2Vec2ASR", arguments)
    if options:
        with refused("beam search"):
            asr.decode_with(**options)
    ms, batch_s = arguments.chunk_ms, arguments.batch_s
    chunk = None if ms is None else w2v_plugin.ChunkConfig(chunk=ms // 20)

    def run(paths: list[Path]) -> Iterable[tuple[Any, Any]]:
        return asr.transcripts(paths, batch_s=batch_s, chunk=chunk)

    with Progress(len(items), sum(map(output.has, items))) as progress, output:
        for item, result in _work(items, output.has, run, _budget_s(asr, batch_s)):
            if isinstance(result, Exception):
                progress.fail(str(result))
            else:
                output.write(item, *result)
                progress.add(result[1])
    return progress.status


def align(arguments: argparse.Namespace) -> int:
    """`w2v align`."""
    items = find_inputs([arguments.audio])
    if len(items) != 1:
        raise CannotStart(f"{arguments.audio}: {len(items)} files, expected one and its text.")
    output = open_output(items, arguments.format, arguments.out)
    text = _text(arguments.text)
    asr = open_interface("Wav2Vec2ASR", arguments)
    from w2v_plugin.errors import BadAudio

    with Progress(1) as progress, output:
        try:
            transcript = asr.align_file(items[0].path, text)
        except BadAudio as error:
            progress.fail(str(error))
        except ValueError as error:
            raise CannotStart(str(error)) from error
        else:
            output.write(items[0], transcript, header_seconds(items[0].path))
    return progress.status


def embed(arguments: argparse.Namespace) -> int:
    """`w2v embed`."""
    named = by_name(find_inputs(arguments.inputs))
    items, format, out = list(named.values()), arguments.format, arguments.out
    _refuse_target(named, arguments)
    encoder = open_interface("Wav2Vec2Encoder", arguments)
    layer, pool, weights = arguments.layer, arguments.pool, arguments.layer_weights
    import torch

    from w2v_plugin.vectors import save_vectors

    with refused("cannot embed"):  # before anything is written
        encoder.encode_batch(torch.zeros(1, 1600), None, layer, pool, weights)

    def has(item: Input) -> bool:
        return format == "npy" and _npy(out, item.name).exists()

    def run(paths: list[Path]) -> Iterable[tuple[Any, Any]]:
        return encoder.encode_files(paths, layer, pool, weights, batch_s=arguments.batch_s)

    def vectors(progress: Progress) -> Iterator[tuple[str, Any]]:
        for item, result in _work(items, has, run, _budget_s(encoder, arguments.batch_s)):
            if isinstance(result, Exception):
                progress.fail(str(result))
                continue
            yield item.name, result
            say(f"{item.path}\t{_npy(out, item.name) if format == 'npy' else item.name}\n")
            progress.add(header_seconds(item.path))

    several = weights is None and not isinstance(layer, int)
    axes = ("layer",) * several + ("frame",) * (pool is None)
    with Progress(len(items), sum(map(has, items))) as progress:
        save_vectors(out, vectors(progress), format, axes)
    return progress.status


def units(arguments: argparse.Namespace) -> int:
    """`w2v units`."""
    from w2v_plugin.unit_records import UnitRecords

    items = find_inputs(arguments.inputs)
    options = {"resume": arguments.resume, "dedup": arguments.dedup}
    output = UnitRecords(items, arguments.format, arguments.out, **options)
    model, group = _open_units(arguments), arguments.group
    from w2v_plugin.units import UnitCounts, select_group, to_seconds

    counts = UnitCounts(model.sizes if group is None else model.sizes[group : group + 1])
    with refused(f"{arguments.out}: written with another --model, --group or --kmeans"):
        for earlier in output.earlier():
            counts.add(earlier)

    def run(paths: list[Path]) -> Iterable[tuple[Any, Any]]:
        return model.encode_files(paths, batch_s=arguments.batch_s)

    with Progress(len(items), sum(map(output.has, items))) as progress, output:
        for item, result in _work(items, output.has, run, _budget_s(model, arguments.batch_s)):
            if isinstance(result, Exception):
                progress.fail(str(result))
                continue
            found = select_group(result, model.sizes, group)
            seconds = to_seconds(len(found))
            output.write(item, found, seconds)
            counts.add(found)
            progress.add(seconds)
    for line in str(counts).splitlines():
        print(f"w2v: {line}", file=sys.stderr)
    return progress.status


def convert(arguments: argparse.Namespace) -> int:
    """`w2v convert`."""
    from w2v_plugin.conversion import convert as to_folder

    source, folder = arguments.source, arguments.folder
    with refused("cannot convert"):
        report = to_folder(
            source,
            folder,
            to=arguments.to,
            language=arguments.language,
            precision=arguments.precision,
            keep_fp32=arguments.keep_fp32.split(",") if arguments.keep_fp32 else (),
        )
    say(f"{report}\nwritten to {folder}\n")
    return 0


def export(arguments: argparse.Namespace) -> int:
    """`w2v export`."""
    from w2v_plugin.conversion import open_any
    from w2v_plugin.onnx_export import export_onnx

    model: Any
    with refused("cannot export"):
        model, vocabulary = open_any(arguments.source, arguments.language)
        report = model.load_report
        if vocabulary is None:  # heads of pretraining stay behind
            model = getattr(model, "wav2vec2", model)
        export_onnx(model, arguments.file, vocabulary=vocabulary)
    say(f"{report}\nwritten to {arguments.file}\n")
    return 0


def _open_units(arguments: argparse.Namespace) -> Any:
    """The model, with the quantizer or the clusters that were asked for."""
    from w2v_plugin.clusters import KMeans
    from w2v_plugin.units import check_group

    if arguments.compile and arguments.kmeans is None:
        raise CannotStart("--compile is about the encoder, which units need with --kmeans only.")
    with refused("--kmeans"):
        kmeans = None if arguments.kmeans is None else KMeans.load(arguments.kmeans)
    model = open_interface("Wav2Vec2Units", arguments)
    with refused("no units"):
        if kmeans is not None:
            model.use(kmeans)
        check_group(model.sizes, arguments.group)
    return model


def load(
    kind: str,
    model: str,
    device: str | None = None,
    *,
    precision: str = "fp32",
    language: str | None = None,
    compile: bool = False,
) -> Any:
    """An interface from a model folder or a published checkpoint.

    Parameters
    ----------
    kind : {"Wav2Vec2ASR", "Wav2Vec2Encoder", "Wav2Vec2Units"}
        What shall be loaded.
    model : str
        Folder, file or id on the hub.
    device, precision, language, compile
        See `from_checkpoint`.

    Raises
    ------
    CannotStart
        Whatever the reason is, in one line.
    """
    interface = getattr(w2v_plugin, kind)
    options: dict[str, Any] = {"precision": precision, "compile": compile}
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # SpeechBrain's loggers ignore the level of their parents
    try:
        with refused("cannot load the model", (Exception,)):  # its YAML is a program of its own
            if not _is_ours(model):
                return interface.from_checkpoint(model, device=device, language=language, **options)
            if device is not None:
                options["device"] = device
            return interface.from_hparams(model, language=language, run_opts=options)
    finally:
        logging.disable(before)


def open_interface(kind: str, arguments: argparse.Namespace) -> Any:
    """Load the model, say where it works and why, and cut long files as asked."""
    import torch

    from w2v_plugin.overlap import Windows

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    interface = load(
        kind,
        arguments.model,
        arguments.device,
        precision=arguments.precision,
        language=getattr(arguments, "language", None),
        compile=getattr(arguments, "compile", False),
    )
    if getattr(arguments, "window_s", None) is not None:
        interface.windows = Windows(arguments.window_s, arguments.window_s / 5)
    print(f"w2v: {interface.choice}", file=sys.stderr)
    return interface


def _is_ours(model: str) -> bool:
    return (Path(model).expanduser() / "hyperparams.yaml").is_file()


@contextmanager
def refused(what: str, errors: Errors = WRONG_INPUT) -> Iterator[None]:
    """Errors -> `CannotStart` with one line."""
    try:
        yield
    except errors as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CannotStart(f"{what}: {reason}") from error


def search_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of `decode_with`; empty for greedy decoding."""
    names = ("beam", "n_best", "alpha", "beta")
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.lm is None:
        for name in ("alpha", "beta", "lm_words"):
            if getattr(arguments, name) is not None:
                raise CannotStart(
                    f"--{name.replace('_', '-')} is about a language model: give --lm."
                )
    else:
        from w2v_plugin.ngrams import load_decoding

        with refused("--lm"):
            words = arguments.lm_words.read_text(encoding="utf-8") if arguments.lm_words else ""
            options = load_decoding(arguments.lm, words.split()) | options
    if arguments.hot_words is not None:
        separated = _text(arguments.hot_words).replace(",", "\n").split("\n")
        options["hot_words"] = [word.strip() for word in separated if word.strip()]
    return options


def _text(given: str) -> str:
    """A text, or what is in the file of this name."""
    if not os.path.isfile(given):
        return given
    with refused("cannot read the text"):
        return Path(given).read_text(encoding="utf-8-sig")


def _refuse_target(named: dict[str, Input], arguments: argparse.Namespace) -> None:
    """Refuse what must not or cannot be written."""
    format, out = arguments.format, arguments.out
    if format == "parquet" and find_spec("pyarrow") is None:
        raise CannotStart(
            '--format parquet needs pyarrow: pip install "w2v_plugin[parquet]", or use npz.'
        )
    if format != "npy":
        if arguments.resume:
            raise CannotStart(
                f"--resume works with --format npy: one {format} file is written whole."
            )
        refuse_existing(out)
    elif not arguments.resume:
        for name in named:
            refuse_existing(_npy(out, name))


def _npy(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _budget_s(interface: Any, batch_s: float) -> float:
    """Seconds of audio that are read before they are put into batches."""
    from w2v_plugin.batching import AHEAD

    return batch_s * (1 if interface.choice.device.type == "cpu" else AHEAD)


def _work(
    items: list[Input],
    has: Callable[[Input], bool],
    run: Callable[[list[Path]], Iterable[tuple[Any, Any]]],
    budget_s: float,
) -> Iterator[tuple[Input, Any]]:
    """Results for the files that have none yet, in the order of the files.

    A group whose last file is there was worked on to its end: what is missing failed, and is tried
    again. In any other group a run may have broken off, and it is computed as a whole, as the
    unbroken run would have done it, so that results are equal to the last bit.
    """
    for group in groups(items, budget_s):
        missing = [item for item in group if not has(item)]
        if not missing:
            continue
        again = missing if has(group[-1]) else group
        for item, (_, result) in zip(again, run([item.path for item in again]), strict=True):
            if item in missing:
                yield item, result
