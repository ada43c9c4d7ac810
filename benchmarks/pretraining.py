"""A pretraining step of the BASE model side by side with named peers.

    python benchmarks/pretraining.py                        # everything; close all else first
    python benchmarks/pretraining.py --only step --rounds 5
    python benchmarks/pretraining.py --only loop --speech train.csv

Sections, each of which replaces its table in benchmarks/RESULTS.md:

  step    seconds of a whole step (masks, negatives, forward, backward, clipping, AdamW), as ratio
          to transformers in the same round; share of the machine's measured matrix-product peak
  parts   where the time of a step goes
  memory  peak of a step above weights and optimizer state, a fresh process each, default allocator
  loop    what SpeechBrain's loop, data and logging add to the bare step, on real audio (--speech:
          a manifest with the columns ID,duration,wav,spk_id,wrd)

Four rows of 8 s without padding, float32, random weights, Gumbel quantizer of 2 x 320, dropouts of
0.1 on hidden states, attention and the inputs of encoder and quantizer, no layer drop: it would
skip other layers in each. Peers: transformers' Wav2Vec2ForPreTraining with SDPA, SpeechBrain's
lobes in the shape of its LibriSpeech recipe, and fairseq's arithmetic (fairseq_pretraining.py).
Masks and negatives are drawn by each stack's own functions.
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
from fairseq_pretraining import Fairseq
from loop_overhead import loop_overhead
from pretraining_peers import Drawn, Ours, Shape, Stack, Transformers, speechbrain_base
from torch.utils.flop_counter import FlopCounterMode

ROWS, SAMPLES = 4, 128_000
REFERENCE = "transformers"
STACKS: dict[str, Callable[[Shape], Stack]] = {
    REFERENCE: Transformers,
    "SpeechBrain": speechbrain_base,
    "fairseq's arithmetic": Fairseq,
    "w2v_plugin": Ours,
}
PARTS = ("masks, negatives", "extractor", "encoder", "quantizer, loss", "clipping, AdamW")
work = partial(measure.work, __file__)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=5, help="after one round of warm-up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--allocator", choices=list(measure.ALLOCATORS), default="default")
    parser.add_argument("--speech", type=Path, help="manifest of utterances for the section loop")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        task, options = arguments.worker
        print(json.dumps(WORKERS[task](**json.loads(options))))
        return
    if arguments.only == list(SECTIONS) and arguments.speech is None:
        arguments.only.remove("loop")
        print("No --speech: the section loop is left out.")
    if "loop" in arguments.only and arguments.speech is None:
        parser.error("the section loop needs --speech, a manifest of real audio")
    for name in arguments.only:
        SECTIONS[name](arguments)


def report(arguments: argparse.Namespace, section: str, title: str, text: str, table: str) -> None:
    """Put a table and how it was made into the report."""
    threads = f"{arguments.threads} thread{'s' * (arguments.threads > 1)}"
    speech = f" --speech {arguments.speech.name}" if section == "loop" else ""
    command = f"`python benchmarks/pretraining.py --only {section} --rounds {arguments.rounds}"
    command += f" --threads {arguments.threads} --allocator {arguments.allocator}{speech}`"
    measure.write_section(
        f"{title}, {threads}, {arguments.allocator} allocator",
        f"{command}. {measure.circumstances()} {text}\n\n{table}",
    )


def build() -> dict[str, Stack]:
    torch.manual_seed(0)
    return {name: make(Shape()) for name, make in STACKS.items()}


def audio() -> torch.Tensor:
    return 0.1 * torch.randn(ROWS, SAMPLES, generator=torch.Generator().manual_seed(1))


# --- step ----------------------------------------------------------------------------------------


def step_section(arguments: argparse.Namespace) -> None:
    options = {"rounds": arguments.rounds, "threads_used": arguments.threads}
    found = work("time_steps", arguments.allocator, arguments.threads, **options)
    rows = []
    peak = found["peak"]
    for name, times in found["times"].items():
        ratio, low, high = measure.ratios(times, found["times"][REFERENCE])
        median = statistics.median(times)
        operations = found["operations"]["SpeechBrain" if name == "SpeechBrain" else REFERENCE]
        speed = operations / median / 1e9
        shares = [f"{speed / peak[library]:.0%}" for library in ("best", "MKL", "oneDNN")]
        row = [name, f"{median:.2f}", f"{ratio:.2f}", f"{low:.2f}-{high:.2f}", f"{speed:.0f}"]
        rows.append(row + shares)
    header = ["stack", "median s", "ratio", "range", "GFLOP/s"]
    header += ["share of peak", "of MKL's", "of oneDNN's"]
    losses = ", ".join(f"{name} {loss:.6f}" for name, loss in found["losses"].items())
    report(
        arguments,
        "step",
        "Pretraining step, BASE, 4 x 8 s, fp32",
        "Ratio: time over that of transformers in the same round, median and range; below 1 is "
        f"faster. GFLOP/s: {found['operations'][REFERENCE] / 1e12:.2f} TFLOP that transformers' "
        f"step takes ({found['operations']['SpeechBrain'] / 1e12:.2f} for SpeechBrain's other "
        "shape), as counted by PyTorch, over the time, whatever a stack saves. Peak: the fastest "
        "of several float32 matrix products of the sizes of the model, measured in the same run: "
        f"MKL {peak['MKL']:.0f}, oneDNN {peak['oneDNN']:.0f} GFLOP/s. Contrastive loss on equal "
        f"weights, mask and negatives, without dropout: {losses}.",
        measure.table(header, rows),
    )


def time_steps(rounds: int, threads_used: int) -> dict:
    torch.set_num_threads(threads_used)
    losses = equal_losses()
    stacks, wavs = build(), audio()
    optimizers = {name: stack.optimizer(1e-5) for name, stack in stacks.items()}

    def step(name: str) -> None:
        stacks[name](wavs).backward()
        stacks[name].update(optimizers[name])

    peaks = [measure.gemm_peak()]
    operations = {}
    for name in (REFERENCE, "SpeechBrain"):
        with FlopCounterMode(display=False) as counter:
            step(name)
        operations[name] = counter.get_total_flops()
    times = measure.interleaved({name: partial(step, name) for name in stacks}, rounds)
    peaks.append(measure.gemm_peak())
    peak = {library: max(p[library] for p in peaks) for library in peaks[0]}
    return {"times": times, "operations": operations, "peak": peak, "losses": losses}


def equal_losses() -> dict[str, float]:
    """Contrastive loss of 2 x 2 s on one set of weights, mask and negatives, in evaluation mode."""
    from w2v_plugin.checkpoints import load_checkpoint

    torch.manual_seed(0)
    theirs, fairseq = Transformers(Shape()).eval(), Fairseq(Shape()).eval()
    fairseq.load_state_dict(theirs.state_dict())
    fairseq.DIVERSITY_WEIGHT = fairseq.PENALTY_WEIGHT = 0.0
    with tempfile.TemporaryDirectory() as folder:
        theirs.model.save_pretrained(folder)
        ours = load_checkpoint(folder).eval()
    ours.wav2vec2.normalize = False
    wavs = audio()[:2, :32_000]
    drawn = fairseq.draw(2, 99)
    mask, flat = drawn.mask, drawn.negatives
    assert flat is not None
    places = mask.flatten().nonzero()[:, 0]  # of the masked frames in the batch
    spread = torch.zeros(*mask.shape, 100, dtype=torch.long)
    spread[mask] = places[flat.flatten()].view(-1, 100)
    masked = int(mask[0].sum())
    own = flat.view(2, masked, 100) - torch.arange(2)[:, None, None] * masked
    with torch.no_grad():
        reference = theirs.model(
            wavs, mask_time_indices=mask, sampled_negative_indices=spread
        ).contrastive_loss / int(mask.sum())
        out = ours(wavs, mask=mask, negatives=own)
        return {
            REFERENCE: float(reference),
            "fairseq's arithmetic": float(fairseq(wavs, Drawn(mask, flat))),
            "w2v_plugin": float(out.contrastive.loss / out.contrastive.count),
        }


# --- parts ---------------------------------------------------------------------------------------


def parts_section(arguments: argparse.Namespace) -> None:
    options = {"rounds": arguments.rounds, "threads_used": arguments.threads}
    found = work("time_parts", arguments.allocator, arguments.threads, **options)
    rows = []
    for name, parts in found.items():
        medians = {part: statistics.median(times) for part, times in parts.items()}
        whole = sum(medians.values())
        cells = [f"{1000 * s:.1f} ms ({s / whole:.2%})" for s in medians.values()]
        rows.append([name, *cells, f"{whole:.2f} s"])
    report(
        arguments,
        "parts",
        "Parts of a pretraining step, BASE, 4 x 8 s, fp32",
        "Medians of forward and backward of each part alone, on what the part before it gave, and "
        "their shares of the sum. SpeechBrain draws its negatives in the loss.",
        measure.table(["stack", *PARTS, "sum"], rows),
    )


def time_parts(rounds: int, threads_used: int) -> dict:
    torch.set_num_threads(threads_used)
    stacks, wavs = build(), audio()
    optimizers = {name: stack.optimizer(1e-5) for name, stack in stacks.items()}
    times: dict[str, dict[str, list[float]]] = {n: {p: [] for p in PARTS} for n in stacks}
    for i in range(rounds + 1):
        for name in random.sample(list(stacks), len(stacks)):
            seconds = one_by_one(stacks[name], optimizers[name], wavs)
            if i:  # the first round warms up
                for part, value in zip(PARTS, seconds, strict=True):
                    times[name][part].append(value)
    return times


def one_by_one(
    stack: Stack, optimizer: torch.optim.Optimizer, wavs: torch.Tensor
) -> tuple[float, ...]:
    """Seconds of the parts of a step."""
    begin = time.perf_counter()
    latents = stack.extract(wavs)
    forward = time.perf_counter() - begin
    drawing, drawn = timed(lambda: stack.draw(*latents.shape[:2]))
    noise = torch.randn_like(latents)
    extracting, _ = timed(lambda: latents.backward(noise))
    given = latents.detach().requires_grad_()
    begin = time.perf_counter()
    context = stack.contextualize(given, drawn.mask)
    encoding = time.perf_counter() - begin
    noise = torch.randn_like(context)
    backward, _ = timed(lambda: context.backward(noise))
    given, heard = latents.detach().requires_grad_(), context.detach().requires_grad_()
    scoring, _ = timed(lambda: stack.head(given, heard, drawn).backward())
    updating, _ = timed(lambda: stack.update(optimizer))
    return drawing, forward + extracting, encoding + backward, scoring, updating


def timed(job: Callable[[], object]) -> tuple[float, object]:
    begin = time.perf_counter()
    result = job()
    return time.perf_counter() - begin, result


# --- memory --------------------------------------------------------------------------------------


def memory_section(arguments: argparse.Namespace) -> None:
    found = {
        name: work("step_memory", arguments.allocator, arguments.threads, name=name)
        for name in STACKS
    }
    rows = []
    for name, entry in found.items():
        above, gradients = entry["above"], entry["gradients"]
        ratio = above / found[REFERENCE]["above"]
        less = (above - gradients) / (found[REFERENCE]["above"] - found[REFERENCE]["gradients"])
        row = [name, f"{entry['resident']:.0f}", f"{above:.0f}", f"{ratio:.2f}"]
        rows.append([*row, f"{above - gradients:.0f}", f"{less:.2f}"])
    header = ["stack", "resident MiB", "peak above, MiB", "ratio", "less gradients, MiB", "ratio"]
    report(
        arguments,
        "memory",
        "Memory of a pretraining step, BASE, 4 x 8 s, fp32",
        "A fresh process each. Resident: after a first step, with weights and optimizer state, "
        "without gradients, libraries included. Peak: highest in the second step, less that; and "
        "less the gradients, too.",
        measure.table(header, rows),
    )


def step_memory(name: str) -> dict:
    stack, wavs = STACKS[name](Shape()), audio()
    optimizer = stack.optimizer(1e-5)

    def step() -> None:
        stack(wavs).backward()
        stack.update(optimizer)

    step()
    resident = measure.resident_mib()
    above = measure.peak_mib(step) - resident
    trained = sum(p.numel() for p in stack.parameters() if p.requires_grad)
    return {"resident": resident, "above": above, "gradients": 4 * trained / 2**20}


# --- loop ----------------------------------------------------------------------------------------


def loop_section(arguments: argparse.Namespace) -> None:
    rows = []
    for shape, steps in (("base", 4 * arguments.rounds), ("tiny", 80 * arguments.rounds)):
        for kept in (True, False):
            entry = work(
                "loop_overhead",
                arguments.allocator,
                arguments.threads,
                shape=shape,
                manifest=str(arguments.speech.resolve()),
                steps=steps,
                kept=kept,
            )
            bare = entry["bare"] / entry["steps"]
            row = [shape, "memory" if kept else "files, decoded", str(entry["steps"])]
            rows.append([*row, f"{bare:.3f}", f"{entry['whole'] / entry['bare'] - 1:.2%}"])
    report(
        arguments,
        "loop",
        "Overhead of the training loop on real audio",
        "The recipes in hparams/pretrain (base_librispeech with 4 x 8 s an update, no layer drop; "
        "tiny) through their Brain, on utterances of 8 s and more. Bare: time within forward, "
        "backward, clipping and optimizer; overhead: everything else from the end of one update "
        "to the end of the next (reading, batching, hooks, schedules, logging every 5 updates), "
        "relative to it. The same steps, so noise hits both.",
        measure.table(["recipe", "audio from", "updates", "bare s a step", "overhead"], rows),
    )


SECTIONS = {
    "step": step_section,
    "parts": parts_section,
    "memory": memory_section,
    "loop": loop_section,
}
WORKERS = {
    "time_steps": time_steps,
    "time_parts": time_parts,
    "step_memory": step_memory,
    "loop_overhead": loop_overhead,
}

if __name__ == "__main__":
    main()
