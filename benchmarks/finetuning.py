"""A CTC fine-tuning step of the BASE model with a frozen extractor, side by side with transformers.

    python benchmarks/finetuning.py                        # everything; close all else first
    python benchmarks/finetuning.py --only step --rounds 5

Sections, each of which replaces its table in benchmarks/RESULTS.md:

  step    seconds of a whole step (masks, forward, CTC, backward, AdamW), as ratio to transformers
          in the same round, and on equal weights the loss of both
  memory  peak of a step above weights and optimizer state, in fresh processes, default allocator

Four rows of 8 s without padding, 120 characters each, float32, random weights. As published: masks
of 0.65 over time and 0.25 over channels, dropout of 0.1 inside the feed-forward and nowhere else;
no layer drop, which would skip other layers in each. The peer is transformers' Wav2Vec2ForCTC with
SDPA after `freeze_feature_encoder()`; both have a fused AdamW. "latents kept" is what an update
costs with `keep_latents` once every utterance was heard.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial

import measure
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.model import Wav2Vec2

ROWS, SAMPLES, CHARACTERS, VOCABULARY = 4, 128_000, 120, 32
MASK, CHANNEL_MASK = (0.65, 10), (0.25, 64)  # probability and length
ACTIVATION_DROPOUT = 0.1
REFERENCE = "transformers"
work = partial(measure.work, __file__)
Step = Callable[[], Tensor]


def audio() -> Tensor:
    return 0.1 * torch.randn(ROWS, SAMPLES, generator=torch.Generator().manual_seed(1))


def labels() -> Tensor:
    shape, generator = (ROWS, CHARACTERS), torch.Generator().manual_seed(2)
    return torch.randint(5, VOCABULARY, shape, generator=generator)


def theirs() -> Wav2Vec2ForCTC:
    names = ("hidden", "attention", "feat_proj", "final")
    config = Wav2Vec2Config(
        vocab_size=VOCABULARY,
        ctc_loss_reduction="sum",
        mask_time_prob=MASK[0],
        mask_time_length=MASK[1],
        mask_feature_prob=CHANNEL_MASK[0],
        mask_feature_length=CHANNEL_MASK[1],
        activation_dropout=ACTIVATION_DROPOUT,
        layerdrop=0.0,
        attn_implementation="sdpa",
        **{f"{name}_dropout": 0.0 for name in names},
    )
    model = Wav2Vec2ForCTC(config).train()
    model.freeze_feature_encoder()
    return model


def ours() -> Wav2Vec2CTC:
    model = Wav2Vec2CTC(
        Wav2Vec2(activation_dropout=ACTIVATION_DROPOUT),
        VOCABULARY,
        mask_prob=MASK[0],
        mask_length=MASK[1],
        channel_mask_prob=CHANNEL_MASK[0],
        channel_mask_length=CHANNEL_MASK[1],
    )
    model.wav2vec2.freeze_extractor()
    return model.train()


def our_loss(model: Wav2Vec2CTC, wavs: Tensor, kept: tuple[Tensor, None] | None = None) -> Tensor:
    out = model(wavs, latents=kept)
    assert out.logits is not None
    log_probs = out.logits.log_softmax(-1).transpose(0, 1)
    lengths = torch.full((ROWS,), CHARACTERS)
    return F.ctc_loss(
        log_probs, labels(), out.frame_lengths, lengths, reduction="sum", zero_infinity=True
    )


def their_step() -> tuple[nn.Module, Step]:
    model, wavs = theirs(), audio()
    return model, lambda: model(wavs, labels=labels()).loss


def our_step(keep: bool = False) -> tuple[nn.Module, Step]:
    model, wavs = ours(), audio()
    kept = None
    if keep:
        latents, _ = model.wav2vec2.extract(wavs)
        kept = (latents.clone(), None)
    return model, lambda: our_loss(model, wavs, kept)


STACKS: dict[str, Callable[[], tuple[nn.Module, Step]]] = {
    REFERENCE: their_step,
    "w2v_plugin": our_step,
    "w2v_plugin, latents kept": partial(our_step, keep=True),
}


def prepared(name: str) -> tuple[nn.Module, Callable[[], None]]:
    """A model, and a whole step of it."""
    torch.manual_seed(0)
    model, loss = STACKS[name]()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step() -> None:
        (loss() / (ROWS * CHARACTERS)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, step


# --- step ----------------------------------------------------------------------------------------


def step_section(arguments: argparse.Namespace) -> None:
    found = work("time_steps", threads=arguments.threads, rounds=arguments.rounds)
    rows = []
    for name, times in found["times"].items():
        ratio, low, high = measure.ratios(times, found["times"][REFERENCE])
        median = f"{statistics.median(times):.2f}"
        rows.append([name, median, f"{ratio:.2f}", f"{low:.2f}-{high:.2f}"])
    losses = ", ".join(f"{name} {loss:.6f}" for name, loss in found["losses"].items())
    operations, peak = found["operations"] / 1e12, found["peak"]
    report(
        arguments,
        "step",
        "Fine-tuning step, frozen extractor",
        "Ratio: time over that of transformers in the same round, median and range; below 1 is "
        f"faster. transformers' step takes {operations:.2f} TFLOP, as counted by PyTorch: "
        f"{1000 * operations / peak:.1f} s at the {peak:.0f} GFLOP/s of the fastest of several "
        "float32 matrix products of the sizes of the model. Loss per character on equal weights, "
        f"without masks and dropout: {losses}.",
        measure.table(["stack", "median s", "ratio", "range"], rows),
    )


def time_steps(rounds: int) -> dict:
    losses = equal_losses()
    jobs = {name: prepared(name)[1] for name in STACKS}
    with FlopCounterMode(display=False) as counter:
        jobs[REFERENCE]()
    found = {"losses": losses, "operations": counter.get_total_flops()}
    times = measure.interleaved(jobs, rounds)
    return found | {"times": times, "peak": measure.gemm_peak()["best"]}


@torch.no_grad()
def equal_losses() -> dict[str, float]:
    """Of the same weights, in evaluation mode."""
    from w2v_plugin.checkpoints import load_checkpoint

    torch.manual_seed(0)
    reference = theirs().eval()
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        model = load_checkpoint(folder).eval()
    model.wav2vec2.normalize = False
    wavs, characters = audio(), ROWS * CHARACTERS
    return {
        REFERENCE: float(reference(wavs, labels=labels()).loss) / characters,
        "w2v_plugin": float(our_loss(model, wavs)) / characters,
    }


# --- memory --------------------------------------------------------------------------------------


def memory_section(arguments: argparse.Namespace) -> None:
    rounds = range(arguments.rounds)
    entries = {name: [memory_of(name, arguments.threads) for _ in rounds] for name in STACKS}
    rows = []
    for name, found in entries.items():
        row = [name, f"{statistics.median(entry['resident'] for entry in found):.0f}"]
        for measured in ("above", "less"):
            values = [entry[measured] for entry in found]
            reference = statistics.median(entry[measured] for entry in entries[REFERENCE])
            median, spread = statistics.median(values), f"{min(values):.0f}-{max(values):.0f}"
            row += [f"{median:.0f}", spread, f"{median / reference:.2f}"]
        rows.append(row)
    header = ["stack", "resident MiB"]
    for measured in ("peak above, MiB", "less gradients, MiB"):
        header += [measured, "range", "ratio"]
    report(
        arguments,
        "memory",
        "Memory of a fine-tuning step, frozen extractor",
        "A fresh process each, as many as rounds: median and range, ratio of medians. Resident: "
        "after a first step, with weights and optimizer state, without gradients, libraries "
        "included. Peak: highest in the second step, less that; and less the gradients, too.",
        measure.table(header, rows),
    )


def memory_of(name: str, threads: int) -> dict:
    """What a fresh process says of a stack."""
    return work("step_memory", threads=threads, name=name)


def step_memory(name: str) -> dict:
    model, step = prepared(name)
    step()
    resident = measure.resident_mib()
    above = measure.peak_mib(step) - resident
    gradients = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad) / 2**20
    return {"resident": resident, "above": above, "less": above - gradients}


# --- both ----------------------------------------------------------------------------------------


def report(arguments: argparse.Namespace, section: str, title: str, text: str, table: str) -> None:
    """Put a table and how it was made into the report."""
    threads = f"{arguments.threads} thread{'s' * (arguments.threads > 1)}"
    command = f"`python benchmarks/finetuning.py --only {section} --rounds {arguments.rounds}"
    command += f" --threads {arguments.threads}`"
    measure.write_section(
        f"{title}, BASE, 4 x 8 s, fp32, {threads}",
        f"{command}. {measure.circumstances()} {text}\n\n{table}",
    )


SECTIONS = {"step": step_section, "memory": memory_section}
WORKERS = {"time_steps": time_steps, "step_memory": step_memory}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=5, help="times: after one round of warm-up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        task, options = arguments.worker
        print(json.dumps(WORKERS[task](**json.loads(options))))
        return
    for name in arguments.only:
        SECTIONS[name](arguments)


if __name__ == "__main__":
    main()
