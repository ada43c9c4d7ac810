"""What all benchmarks share: interleaved timing, memory of a process, the report."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from w2v_plugin.products import PackedLinear

HERE = Path(__file__).resolve().parent
USUAL = "AMD EPYC"  # the processor that RESULTS.md is about
# glibc gives freed memory back and faults it in again, which can cost more than the arithmetic;
# "keep" tells it not to
ALLOCATORS = {
    "default": {},
    "keep": {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"},
}


def interleaved(jobs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds per round and variant, after a warm-up round; every round in another order."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(rounds + 1):
        for name in random.sample(list(jobs), len(jobs)):
            begin = time.perf_counter()
            jobs[name]()
            if i:
                times[name].append(time.perf_counter() - begin)
    return times


@torch.inference_mode()
def gemm_peak() -> dict[str, float]:
    """GFLOP/s of the fastest float32 matrix products, by library and altogether."""
    speeds: dict[str, float] = {"MKL": 0.0, "oneDNN": 0.0}
    for rows, inputs, outputs in ((1596, 768, 3072), (1596, 3072, 768), (2048, 2048, 2048)):
        x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        packed = PackedLinear(weight, None)
        products = {"MKL": lambda x=x, w=weight: x @ w.t(), "oneDNN": lambda x=x, f=packed: f(x)}
        times = interleaved(products, 9)
        for library, seconds in times.items():
            speed = 2 * rows * inputs * outputs / min(seconds) / 1e9
            speeds[library] = max(speeds[library], speed)
    return {**speeds, "best": max(speeds.values())}


def ratios(times: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest of the ratios of two times of one round."""
    values = [a / b for a, b in zip(times, reference, strict=True)]
    return statistics.median(values), min(values), max(values)


def resident_mib() -> float:
    """Memory of this process, after giving back what is free."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def peak_mib(job: Callable[[], object]) -> float:
    """Highest memory of this process during a job."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    job()
    return _status("VmHWM")


def work(
    script: str, task: str, allocator: str = "default", threads: int = 1, **options: object
) -> dict:
    """What the worker of a script says (JSON in its last line), in a fresh process."""
    command = [sys.executable, "-W", "ignore", script, "--worker", task, json.dumps(options)]
    environment = os.environ | ALLOCATORS[allocator] | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _status(field: str) -> float:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None, "this needs Linux"
    return int(found[1]) / 1024


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write_section(title: str, text: str) -> None:
    """Put a section of the report in the place of the old one, or at the end."""
    path = report()
    old = path.read_text(encoding="utf-8") if path.is_file() else "# Speed against peers\n"
    head, *sections = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    new = f"## {title}\n\n{text.strip()}\n\n"
    kept = [new if s.startswith(f"## {title}\n") else s for s in sections]
    if new not in kept:
        kept.append(new)
    path.write_text((head.rstrip() + "\n\n" + "".join(kept)).rstrip() + "\n", encoding="utf-8")
    print(new)


def report() -> Path:
    """Figures of another processor stand in a file of their own."""
    name = re.sub(r"\(\w+\)", "", processor().partition(" (")[0])
    slug = "" if USUAL in name else "_" + re.sub(r"\W+", "_", name.lower()).strip("_")
    return HERE / f"RESULTS{slug}.md"


def circumstances() -> str:
    """Commit, hardware and versions, in one line."""
    import transformers

    changed = _git("status", "--porcelain", "--", ":/w2v_plugin", ":/benchmarks")
    changed = "\n".join(line for line in changed.splitlines() if "RESULTS" not in line)
    return (
        f"Commit {_git('rev-parse', '--short', 'HEAD')}{' with changes' if changed else ''}. "
        f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}, transformers "
        f"{transformers.__version__}."
    )


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip()


def processor() -> str:
    """Name of the CPU and its instructions that matter, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    name = re.search(r"^model name\s*: (.*)", text, re.MULTILINE)
    known = ("avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    extras = [flag for flag in known if flag in text]
    return f"{name[1] if name else platform.processor()} ({', '.join(extras) or 'no AVX-512'})"
