"""What a run will cost, before it starts: hours of audio, passes, time, memory.

Time and memory are measured, not guessed: a trial runs whole updates of the largest batch, on a
copy of the model in a Brain of its own, so that the run itself does not know about it.
"""

from __future__ import annotations

import copy
import gc
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch
from speechbrain.dataio.batch import PaddedBatch

from w2v_plugin.data import collate
from w2v_plugin.errors import DoesNotFit
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.ranks import distributed
from w2v_plugin.training import StepBrain


@dataclass(frozen=True)
class Cost:
    """What a trial measured. On a CPU, memory is that of the whole process.

    `update_s` is seconds per update of `micro_batches` batches, without reading audio;
    `peak_bytes` per process; `batch` and `machine` say of what and where.
    """

    update_s: float
    micro_batches: int
    peak_bytes: int
    batch: str
    machine: str

    def __str__(self) -> str:
        return (
            f"{self.update_s:.3g} s per update and {self.peak_bytes / 2**20:,.0f} MiB in each "
            f"process ({self.machine}), by a trial with {self.batch}"
        )


def measure(brain_class: type[StepBrain], hparams: dict[str, Any], run_opts: Any) -> Cost:
    """Run four updates of the largest batch on a copy of the model; measure all but the first.

    Parameters
    ----------
    brain_class : type
        The Brain that will train.
    hparams : dict
        Of the run: `modules`, `opt_class`, `batch_s`, `crop_s` and what the Brain reads.
    run_opts : RunOptions
        SpeechBrain's options, as the Brain gets them.

    Returns
    -------
    Cost
        Of this rank. All ranks must call; gradients travel between them as in training.

    Raises
    ------
    DoesNotFit
        Out of memory; the message says what to lower.
    """
    seconds = min(hparams["crop_s"], hparams["batch_s"])
    rows = max(int(hparams["batch_s"] / seconds), 1)
    batch = f"{rows} x {seconds:g} s of audio"
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices):
        try:
            settings = {**hparams, "output_folder": folder, "log_every": sys.maxsize}
            modules = copy.deepcopy(hparams["modules"])
            brain = brain_class(modules, hparams["opt_class"], settings, run_opts)
            size = sum(p.numel() * p.element_size() for p in brain.modules.parameters())
            micro_batches = brain.grad_accumulation_factor
            update_s = time_update(brain, rows, round(seconds * SAMPLE_RATE))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise DoesNotFit(advice(batch, hparams)) from error
    peak = peak_bytes(brain.device) - size  # the run has one model, the trial two
    machine = f"{brain.device}, {brain.precision}"
    del brain
    gc.collect()
    if devices:
        torch.cuda.empty_cache()
    return Cost(update_s, micro_batches, peak, batch, machine)


def time_update(brain: StepBrain, rows: int, samples: int) -> float:
    """Seconds per update: the median of three, after one that allocates and chooses algorithms."""
    accumulated = brain.grad_accumulation_factor
    brain.grad_accumulation_factor = min(accumulated, 2)  # more would only repeat the first
    if "cuda" in brain.device:
        torch.cuda.reset_peak_memory_stats(brain.device)
    brain.on_fit_start()  # optimizers, DDP, torch.compile: as in the run
    brain.modules.train()
    spent: list[float] = []
    for _ in range(4 * brain.grad_accumulation_factor):  # a fixed number: ranks go together
        batch = noise(rows, samples)
        brain.step += 1
        begin = time.perf_counter()
        brain.fit_batch(batch)  # waits for the device, since it returns the loss
        spent.append(time.perf_counter() - begin)
    timed = torch.tensor(spent).view(4, -1)[1:].median(0).values  # by place in the update
    return float(timed[-1] + (accumulated - 1) * timed[0])


def noise(rows: int, samples: int) -> PaddedBatch:
    """A batch without padding."""
    wavs = 0.1 * torch.randn(rows, samples)
    return collate([{"id": f"noise{i}", "sig": wav} for i, wav in enumerate(wavs)])


def peak_bytes(device: str) -> int:
    """High-water mark of memory: allocated on a GPU, resident on a CPU."""
    if "cuda" in device:
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def out_of_memory(error: Exception) -> bool:
    """Whether this is what it looks like on GPUs and CPUs."""
    known = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, known) or "allocate memory" in str(error)


def advice(batch: str, hparams: dict[str, Any]) -> str:
    """What to lower, in the order of what it costs."""
    text = f"A training step on {batch} does not fit into memory. Lower batch_s (now "
    text += f"{hparams['batch_s']:g}) and raise grad_accumulation_factor by as much, which "
    text += "leaves the audio per update as it is; or use --precision=bf16"
    if not hparams.get("activation_checkpointing", False):
        text += "; or --activation_checkpointing=True (a third more time)"
    return text + f"; or lower crop_s (now {hparams['crop_s']:g})."


def plan(hparams: dict[str, Any], hours: float, cost: Cost) -> str:
    """The lines to print before training.

    Parameters
    ----------
    hparams
        As in `measure`; also `updates` and `warm_start_updates`.
    hours : float
        Of audio in all corpora, nothing cropped.
    cost : Cost
        Measured.
    """
    ranks = torch.distributed.get_world_size() if distributed() else 1
    updates = hparams["updates"]
    per_update = hparams["batch_s"] * cost.micro_batches * ranks / 3600
    heard = updates * per_update
    lines = [
        f"Audio per update: {per_update:.4g} h at most = batch_s {hparams['batch_s']:g} s "
        f"x {cost.micro_batches} micro-batches x {ranks} processes",
        f"Audio in all: {updates} updates hear {heard:.4g} h; the corpora have {hours:.4g} h: "
        f"{heard / hours:.3g} passes",
        f"Cost: {cost}",
        f"Time: about {duration(updates * cost.update_s)}; reading audio, validation and "
        f"{hparams['warm_start_updates']} updates of warm start come on top",
    ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """In the unit that a person would use.

    Example
    -------
    >>> duration(90), duration(7000), duration(200_000)
    ('1.5 min', '1.9 h', '2.3 days')
    """
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
