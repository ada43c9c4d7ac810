"""Speed of a pretraining step of the BASE model against transformers.

2 x 5 s, fp32, random weights, forward, backward and AdamW, dropouts 0; transformers'
Wav2Vec2ForPreTraining draws its own masks and negatives. Every round runs every variant once in
shuffled order; the ratio is that of two times of one round. Writes its section of
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import measure
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
from transformers.models.wav2vec2 import modeling_wav2vec2 as hf

from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    times = measure.interleaved(step_jobs(), arguments.rounds)
    rows = []
    for name, values in times.items():
        ratio, low, high = measure.ratios(values, times["transformers (sdpa)"])
        median = statistics.median(values)
        rows.append([name, f"{median:.2f}", f"{ratio:.2f}", f"{low:.2f}-{high:.2f}"])
    measure.write_section(
        "Pretraining step, 2 x 5 s, fp32",
        f"`python benchmarks/pretraining.py --rounds {arguments.rounds} --threads "
        f"{arguments.threads}`. {measure.circumstances()} {arguments.threads} thread(s), default "
        "allocator. Ratio: time over that of the first row in the same round; below 1 is faster."
        f"\n\n{measure.table(['variant', 'median s', 'ratio', 'range'], rows)}",
    )


if __name__ == "__main__":
    main()
