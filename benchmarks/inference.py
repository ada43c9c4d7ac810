"""Inference of the BASE shape side by side with named peers: `python benchmarks/inference.py`.

Every table comes from one run on one machine, all variants load the same random checkpoint, and a
ratio is that of two times of the same round (rounds run all variants in shuffled order), so what
disturbs the machine disturbs both. Memory and loading are measured in fresh processes. Writes its
sections of benchmarks/RESULTS.md. Close everything else first: about 40 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import measure
import torch
from peers import PEERS, make_checkpoint, onnx_files
from torch import Tensor

REFERENCE = "transformers sdpa"
TEN_SECONDS = 160_000
work = partial(measure.work, __file__)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        task, options = arguments.worker
        print(json.dumps(WORKERS[task](**json.loads(options))))
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "base"
        make_checkpoint(folder)
        for name in arguments.only:
            SECTIONS[name](folder, arguments.rounds)


def speech_like(samples: int) -> Tensor:
    """Noise with the slow loudness of speech."""
    loudness = torch.rand(samples // 4000 + 2).repeat_interleave(4000)[:samples]
    return 0.1 * torch.randn(samples) * loudness


# --- one file ------------------------------------------------------------------------------------


def file_section(folder: Path, rounds: int) -> None:
    """Time of one 10 s file: threads x allocator."""
    for threads in (1, 2):
        for allocator in measure.ALLOCATORS:
            result = work("time_file", allocator, threads, folder=str(folder), rounds=rounds)
            rows = []
            for name, entry in result.items():
                ratio, low, high = entry["ratio"]
                speed = f"{entry['seconds']:.3f}", f"{ratio:.2f}", f"{low:.2f}-{high:.2f}"
                rows.append(
                    [name, *speed, f"{entry['deviation']:.1e}", f"{entry['agreement']:.3f}"]
                )
            header = ["variant", "median s", "ratio", "range", "deviation", "argmax agreement"]
            measure.write_section(
                f"One file of 10 s, {threads} thread{'s' * (threads > 1)}, {allocator} allocator",
                f"`python benchmarks/inference.py --only file --rounds {rounds}`. "
                f"{measure.circumstances()} Ratio: time over that of {REFERENCE} in the same "
                "round, median and range; below 1 is faster. Deviation: ||logits - reference|| / "
                "||reference||. The weights are random, so the logits are nearly flat and argmax "
                f"agreement is pessimistic.\n\n{measure.table(header, rows)}",
            )


def time_file(folder: str, rounds: int) -> dict:
    wav = speech_like(TEN_SECONDS)[None]
    with torch.inference_mode():
        forwards = {name: make(Path(folder)) for name, make in PEERS.items()}
        reference = forwards[REFERENCE](wav)
        times = measure.interleaved(
            {name: lambda f=forward: f(wav) for name, forward in forwards.items()}, rounds
        )
        result = {}
        for name, forward in forwards.items():
            logits = forward(wav)
            result[name] = {
                "seconds": statistics.median(times[name]),
                "ratio": measure.ratios(times[name], times[REFERENCE]),
                "deviation": ((logits - reference).norm() / reference.norm()).item(),
                "agreement": (logits.argmax(-1) == reference.argmax(-1)).float().mean().item(),
            }
    return result


# --- memory and loading --------------------------------------------------------------------------


def memory_section(folder: Path, rounds: int) -> None:
    """Resident weights and peak of one 10 s forward, a fresh process each."""
    files = {name: size(folder / "model.safetensors") for name in PEERS}
    files["w2v_plugin int8"] = int8_file(folder)
    work("make_onnx", folder=str(folder))
    for name, path in zip(
        ("onnxruntime fp32", "onnxruntime dynamic INT8"), onnx_files(folder), strict=True
    ):
        files[name] = size(path)
    entries = {
        name: work("memory_file", folder=str(folder), name=name) | {"file": files[name]}
        for name in PEERS
    }
    rows = []
    for name, entry in entries.items():
        cells = [name]
        for what, mib in entry.items():
            cells += [f"{mib:.0f}", f"{mib / entries[REFERENCE][what]:.2f}"]
        rows.append(cells)
    header = ["variant", "resident MiB", "ratio", "peak above, MiB", "ratio", "file MiB", "ratio"]
    measure.write_section(
        "Memory, one file of 10 s",
        f"`python benchmarks/inference.py --only memory`. {measure.circumstances()} Resident: "
        "memory of a fresh process after loading, less that before (libraries imported). Peak: "
        "highest during the forward, less resident. Default allocator, 1 thread. File: what the "
        f"variant was loaded from; INT8's own file is that of `w2v convert --precision int8`. "
        "PyTorch's dynamic INT8 is made in the measured process: read its residue as an upper "
        "bound.\n\n"
        f"{measure.table(header, rows)}",
    )


def size(path: Path) -> float:
    files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
    return sum(p.stat().st_size for p in files) / 2**20


def make_onnx(folder: str) -> dict:
    onnx_files(Path(folder))
    return {}


def int8_file(folder: Path) -> float:
    from w2v_plugin.conversion import convert

    with tempfile.TemporaryDirectory() as parent:
        convert(folder, Path(parent) / "int8", to="ours", precision="int8")
        return size(Path(parent) / "int8")


def memory_file(folder: str, name: str) -> dict:
    import_everything()
    before = measure.resident_mib()
    forward = PEERS[name](Path(folder))
    wav = speech_like(TEN_SECONDS)[None]
    with torch.inference_mode():
        forward(wav[:, :16000])  # buffers that are made once
        resident = measure.resident_mib()
        peak = measure.peak_mib(lambda: forward(wav))
    return {"resident": resident - before, "peak": peak - resident}


def import_everything() -> None:
    """So that libraries do not count as weights: loads and runs a tiny model of each."""
    import onnxruntime
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    import w2v_plugin.checkpoints
    from w2v_plugin.compression import optimize
    from w2v_plugin.model import Wav2Vec2

    assert w2v_plugin.checkpoints and onnxruntime
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    tiny = Wav2Vec2ForCTC(Wav2Vec2Config(**shape, num_attention_heads=2)).eval()
    mine = Wav2Vec2(dim=32, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    with torch.inference_mode():
        tiny(torch.randn(1, 8000))
        optimize(mine, "int8")(torch.randn(1, 8000))


def loading_section(folder: Path, rounds: int) -> None:
    """Time and peak memory of loading, fresh processes."""
    loaders = ("transformers", "w2v_plugin")
    entries: dict[str, list[dict]] = {name: [] for name in loaders}
    for i in range(rounds + 1):
        for name in random.sample(loaders, len(loaders)):
            entry = work("load", folder=str(folder), name=name)
            if i:
                entries[name].append(entry)
    weights = size(folder / "model.safetensors")
    rows = []
    for name in loaders:
        cells = [name]
        for what in ("seconds", "touched"):
            seconds, reference = ([e[what] for e in entries[n]] for n in (name, "transformers"))
            ratio, low, high = measure.ratios(seconds, reference)
            median = statistics.median(seconds)
            cells += [f"{median:.2f}", f"{ratio:.2f}", f"{low:.2f}-{high:.2f}"]
        peak = statistics.median(entry["peak"] for entry in entries[name])
        rows.append([*cells, f"{peak:.0f}", f"{peak / weights:.2f}"])
    header = ["loader", "median s", "ratio", "range", "until read, s", "ratio", "range"]
    header += ["peak MiB", "of the weights"]
    measure.write_section(
        "Loading a BASE checkpoint (safetensors, float32)",
        f"`python benchmarks/inference.py --only loading --rounds {rounds}`. "
        f"{measure.circumstances()} A fresh process each, libraries imported before. transformers "
        "maps the file and reads it when it is used, we read it at once; so also the time until "
        "every weight was read. Peak: highest memory until then, less that before.\n\n"
        f"{measure.table(header, rows)}",
    )


def load(folder: str, name: str) -> dict:
    from transformers import Wav2Vec2ForCTC

    from w2v_plugin.checkpoints import load_checkpoint

    import_everything()
    loader = {"transformers": Wav2Vec2ForCTC.from_pretrained, "w2v_plugin": load_checkpoint}[name]
    before = measure.resident_mib()
    seconds = []

    def run() -> None:
        begin = time.perf_counter()
        model = loader(folder)
        seconds.append(time.perf_counter() - begin)
        sum(float(p.detach().sum()) for p in model.parameters())
        seconds.append(time.perf_counter() - begin)

    peak = measure.peak_mib(run)
    return {"seconds": seconds[0], "touched": seconds[1], "peak": peak - before}


# --- batches of mixed lengths --------------------------------------------------------------------

BATCH_REFERENCE = "transformers, file by file"


def batch_section(folder: Path, rounds: int) -> None:
    """16 files of 2 to 16 s."""
    timed = work("time_batch", folder=str(folder), rounds=max(rounds // 3, 2))
    rows = []
    memory = {name: work("memory_batch", folder=str(folder), name=name)["peak"] for name in timed}
    fixed = "transformers, padded to 16 s, batches of 8"
    for name, entry in timed.items():
        against = [f"{entry['ratio'][r][0]:.2f}" for r in (BATCH_REFERENCE, *BATCH_OTHERS)]
        low, high = entry["ratio"][BATCH_REFERENCE][1:]
        speed = f"{entry['seconds']:.2f}", *against, f"{low:.2f}-{high:.2f}"
        space = f"{memory[name]:.0f}", f"{memory[name] / memory[fixed]:.2f}"
        rows.append([name, *speed, *space, f"{entry['deviation']:.1e}"])
    header = ["variant", "median s", "ratio: file by file", "one padded batch", "padded to 16 s"]
    header += ["range (file by file)", "peak MiB", "of padded to 16 s", "worst deviation"]
    measure.write_section(
        "16 files of 2 to 16 s",
        f"`python benchmarks/inference.py --only batch --rounds {rounds}`. "
        f"{measure.circumstances()} 1 thread, default allocator. Ratios: time over that of "
        "transformers doing the same work file by file, as one padded batch, and padded to 16 s "
        "in batches of 8; ours packed, at most 60 s at a time. Peak: above resident, in a fresh "
        "process. Worst deviation: of a file's "
        "logits from those of the same variant for the file alone.\n\n"
        f"{measure.table(header, rows)}",
    )


BATCH_OTHERS = (
    "transformers, one padded batch",
    "transformers, padded to 16 s, batches of 8",
)


def batch_files() -> list[Tensor]:
    torch.manual_seed(1)
    return [speech_like(int(s * 16000)) for s in torch.empty(16).uniform_(2, 16).tolist()]


def batch_jobs(folder: Path, only: str | None = None) -> dict:
    """name -> (function of a list of waveforms, list of their logits), made if asked for."""
    from w2v_plugin.batching import by_budget
    from w2v_plugin.checkpoints import load_checkpoint
    from w2v_plugin.compression import optimize

    theirs = PEERS[REFERENCE](folder)

    def padded(wavs: list[Tensor], size: int | None = None) -> list[Tensor]:
        batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        if size is not None:
            batch = torch.nn.functional.pad(batch, (0, size - batch.shape[1]))
        frames = [(len(wav) - 400) // 320 + 1 for wav in wavs]
        return [row[:n] for row, n in zip(theirs(batch), frames, strict=True)]

    def in_groups(wavs: list[Tensor], size: int | None, budget: float) -> list[Tensor]:
        order = (
            sorted(range(len(wavs)), key=lambda i: len(wavs[i]))
            if size is None
            else range(len(wavs))
        )
        logits: dict[int, Tensor] = {}
        group: list[int] = []
        for i in [*order, None]:
            longest = size or max((len(wavs[k]) for k in (*group, i or 0)), default=0)
            if i is None or longest * (len(group) + 1) > budget:
                logits |= zip(group, padded([wavs[k] for k in group], size), strict=True)
                group = []
            if i is not None:
                group.append(i)
        return [logits[i] for i in range(len(wavs))]

    def packed(precision: str):
        model = load_checkpoint(folder)
        model.wav2vec2.normalize = False
        optimize(model, precision)

        def run(wavs: list[Tensor]) -> list[Tensor]:  # as the interfaces do by default
            batches = by_budget(dict(enumerate(wavs)), 60.0, padded=False)
            packs = [model.forward_packed([wavs[i] for i in batch]) for batch in batches]
            return [out.logits[0] for outs in packs for out in outs]

        return run

    jobs = {
        BATCH_REFERENCE: lambda: lambda wavs: [theirs(wav[None])[0] for wav in wavs],
        BATCH_OTHERS[0]: lambda: padded,
        BATCH_OTHERS[1]: lambda: lambda wavs: in_groups(wavs, 256_000, 8 * 256_000),
        "transformers, sorted, 32 s a batch": lambda: lambda wavs: in_groups(wavs, None, 512_000),
        "w2v_plugin packed, fp32": lambda: packed("fp32"),
        "w2v_plugin packed, bf16": lambda: packed("bf16"),
        "w2v_plugin packed, int8": lambda: packed("int8"),
    }
    return {name: make() for name, make in jobs.items() if only in (None, name)}


def time_batch(folder: str, rounds: int) -> dict:
    wavs = batch_files()
    outputs: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        jobs = batch_jobs(Path(folder))

        def keeping(name: str) -> Callable[[], None]:
            return lambda: outputs.update({name: jobs[name](wavs)})

        times = measure.interleaved({name: keeping(name) for name in jobs}, rounds)
        result = {}
        for name, job in jobs.items():
            alone = outputs[BATCH_REFERENCE]  # which is transformers, whatever the batch
            if name.startswith("w2v_plugin"):
                alone = [job([wav])[0] for wav in wavs]
            pairs = zip(outputs[name], alone, strict=True)
            result[name] = {
                "seconds": statistics.median(times[name]),
                "ratio": {
                    other: measure.ratios(times[name], times[other])
                    for other in (BATCH_REFERENCE, *BATCH_OTHERS)
                },
                "deviation": max(((a - b).norm() / b.norm()).item() for a, b in pairs),
            }
    return result


def memory_batch(folder: str, name: str) -> dict:
    import_everything()
    job, wavs = batch_jobs(Path(folder), name)[name], batch_files()
    with torch.inference_mode():
        job([wavs[0][:16000]])
        resident = measure.resident_mib()
        return {"peak": measure.peak_mib(lambda: job(wavs)) - resident}


SECTIONS = {
    "file": file_section,
    "memory": memory_section,
    "loading": loading_section,
    "batch": batch_section,
}
WORKERS = {
    "time_file": time_file,
    "memory_file": memory_file,
    "make_onnx": make_onnx,
    "load": load,
    "time_batch": time_batch,
    "memory_batch": memory_batch,
}

if __name__ == "__main__":
    main()
