"""Speed of the BASE model against named peers, in one run: `make bench`.

Two jobs, fp32, random weights: the forward pass of one 10 s file (against transformers with sdpa
and torchaudio), and a pretraining step of 2 x 5 s with forward, backward and AdamW, dropouts 0
(against transformers' Wav2Vec2ForPreTraining with its own masks and negatives). Every round runs
every variant once in shuffled order; the ratio is that of two times of one round, so that what
disturbs the machine disturbs both. Writes benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchaudio
import transformers
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining, Wav2Vec2Model
from transformers.models.wav2vec2 import modeling_wav2vec2 as hf

from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer

HERE = Path(__file__).resolve().parent
NO_DROPOUT = dict.fromkeys(
    (
        "hidden_dropout",
        "attention_dropout",
        "activation_dropout",
        "feat_proj_dropout",
        "feat_quantizer_dropout",
        "layerdrop",
    ),
    0.0,
)


def forward_jobs() -> dict[str, Callable[[], object]]:
    """One 10 s file through models of the same shape."""
    wavs = torch.randn(1, 160_000)
    ours = Wav2Vec2().eval()
    theirs = Wav2Vec2Model(Wav2Vec2Config(attn_implementation="sdpa")).eval()
    audio = torchaudio.models.wav2vec2_base().eval()
    return {
        "transformers (sdpa)": lambda: theirs(wavs),
        "w2v_plugin": lambda: ours(wavs),
        "torchaudio": lambda: audio(wavs),
    }


def step_jobs() -> dict[str, Callable[[], object]]:
    """A whole pretraining step of 2 x 5 s."""
    wavs = torch.randn(2, 80_000)
    theirs = Wav2Vec2ForPreTraining(Wav2Vec2Config(attn_implementation="sdpa", **NO_DROPOUT))
    quantizer = GumbelQuantizer(codes=320)
    ours = Wav2Vec2Pretraining(Wav2Vec2(), quantizer)
    optimizers = {m: torch.optim.AdamW(m.parameters(), lr=1e-5) for m in (theirs, ours)}

    def their_step() -> None:
        frames = int(theirs._get_feat_extract_output_lengths(wavs.shape[1]))
        mask = hf._compute_mask_indices((2, frames), mask_prob=0.65, mask_length=10)
        negatives = hf._sample_negative_indices((2, frames), 100, mask)
        out = theirs(
            wavs,
            mask_time_indices=torch.from_numpy(mask),
            sampled_negative_indices=torch.from_numpy(negatives),
        )
        update(theirs, out.loss / mask.sum())

    def our_step() -> None:
        out = ours(wavs)
        update(ours, out.loss / out.contrastive.count)

    def update(model: torch.nn.Module, loss: torch.Tensor) -> None:
        loss.backward()
        optimizers[model].step()
        optimizers[model].zero_grad()

    return {"transformers (sdpa)": their_step, "w2v_plugin": our_step}


def measure(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds per round and variant, after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(rounds + 1):
        for name in random.sample(list(jobs), len(jobs)):
            begin = time.perf_counter()
            jobs[name]()
            if i:
                times[name].append(time.perf_counter() - begin)
    return times


def rows(title: str, times: dict[str, list[float]]) -> list[str]:
    """Markdown: median seconds, and the ratio to the first variant with its range."""
    reference = next(iter(times.values()))
    lines = [f"\n## {title}\n", "| variant | median s | ratio | range |", "|---|---|---|---|"]
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, reference, strict=True)]
        lines.append(
            f"| {name} | {statistics.median(values):.2f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f}-{max(ratios):.2f} |"
        )
    return lines


def processor() -> str:
    """Name of the CPU, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    lines = [
        "# Speed against peers",
        "",
        f"Written by `python benchmarks/peers.py --rounds {arguments.rounds} --threads "
        f"{arguments.threads}` at commit {commit}. {processor()}, {arguments.threads} thread(s), "
        f"default allocator, torch {torch.__version__}, transformers {transformers.__version__}. "
        "Ratio: time over that of the first row in the same round; below 1 is faster.",
    ]
    with torch.inference_mode():
        lines += rows("Forward, 10 s, fp32", measure(forward_jobs(), arguments.rounds))
    lines += rows("Pretraining step, 2 x 5 s, fp32", measure(step_jobs(), arguments.rounds))
    (HERE / "RESULTS.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
