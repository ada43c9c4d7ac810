"""k micro-batches = one batch = k ranks: the same update, through the real training loop.

Run as a script, this file is also one of the two processes that it tests.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from speechbrain.dataio.batch import PaddedBatch
from torch import Tensor

from w2v_plugin import quantizer as quantizer_module
from w2v_plugin.brains import PretrainBrain
from w2v_plugin.launch import join_group, leave_group
from w2v_plugin.losses import sample_negatives
from w2v_plugin.masking import span_mask
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import PretrainingOutput, Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer, NearestQuantizer, one_hot

KINDS = {
    "gumbel": GumbelQuantizer,
    "nearest": NearestQuantizer,
    "ema": partial(NearestQuantizer, codebook="ema"),
}
SECONDS = (1.0, 0.8, 0.3, 0.9, 0.5, 0.64)
UPDATES = 2
# utterances of each micro-batch of each rank
CUTS = {"one": [((0, 1, 2),), ((3, 4, 5),)], "two": [((0,), (3, 2)), ((4, 1), (5,))]}


def noiseless(scores: Tensor, temperature: Tensor) -> Tensor:
    """Straight-through choice of the best code: noise would differ with the cut of a batch."""
    soft = (scores / temperature).softmax(-1)
    hard = one_hot(scores.detach().argmax(-1), scores.shape[-1], scores.dtype)
    return hard - soft.detach() + soft


class Planned(Wav2Vec2Pretraining):
    """Length, mask and negatives belong to the utterance (told by its first sample), not to the
    batch. Batches of the recipes are cropped; these are padded, which says more."""

    plans: dict[float, tuple[int, Tensor, Tensor]]

    def forward(self, wavs: Tensor, wav_lens: Tensor | None = None, **_: Any) -> PretrainingOutput:
        plans = [self.plans[wav[0].item()] for wav in wavs]
        wav_lens = torch.tensor([samples / wavs.shape[1] for samples, _, _ in plans])
        size = int(self.wav2vec2.extractor.frame_lengths(torch.tensor([wavs.shape[1]])))
        mask = torch.stack([mask[:size] for _, mask, _ in plans])
        width = int(mask.sum(1).max())
        negatives = torch.stack([negatives[:width] for _, _, negatives in plans])
        return super().forward(wavs, wav_lens, mask=mask, negatives=negatives)


def utterances() -> list[dict[str, Any]]:
    """Of different lengths; more and more of them is masked, so that counts differ, too."""
    torch.manual_seed(5)
    sizes = [int(16000 * s) for s in SECONDS]
    return [{"id": str(i), "sig": torch.randn(n).double()} for i, n in enumerate(sizes)]


def model_of(kind: str, diversity_weight: float, **shape: float) -> Planned:
    torch.manual_seed(0)
    wav2vec2 = Wav2Vec2(
        dim=16,
        layers=2,
        heads=2,
        ffn_dim=32,
        channels=(8,) * 7,
        extractor_norm="layer",
        positions_kernel=8,
        positions_groups=4,
        feature_grad_scale=0.1,
        **shape,  # type: ignore[arg-type]
    )
    quantizer = KINDS[kind](8, groups=2, codes=12, dim=8)
    model = Planned(
        wav2vec2, quantizer, dim=8, negatives=10, diversity_weight=diversity_weight
    ).double()
    frames = wav2vec2.extractor.frame_lengths(torch.tensor([len(u["sig"]) for u in utterances()]))
    model.plans = {}
    for i, (utterance, n) in enumerate(zip(utterances(), frames, strict=True)):
        mask = span_mask(n[None], 49, prob=0.2 + 0.12 * i, length=5)
        negatives = sample_negatives(mask.sum(1), int(mask.sum()), 10)[0]
        room = negatives.new_zeros(49 - len(negatives), 10)
        model.plans[utterance["sig"][0].item()] = (
            len(utterance["sig"]),
            mask[0],
            torch.cat([negatives, room]),
        )
    return model


def brain_of(model: Wav2Vec2Pretraining, folder: Path, accumulate: int) -> PretrainBrain:
    hparams = {
        "seed": 1,
        "output_folder": str(folder),
        "log_every": 1,
        "schedule": lambda step: 1.0,
        "grad_accumulation_factor": accumulate,
        "max_grad_norm": 1e9,
        "lr": 0.02,
        "slow_lr": 0.02,
        "stop_on_collapse": False,
    }
    options = {"device": "cpu", "distributed_backend": "gloo"}
    if "WORLD_SIZE" in os.environ:
        options["distributed_launch"] = True  # type: ignore[assignment]
    brain = PretrainBrain({"model": model}, torch.optim.SGD, hparams=hparams, run_opts=options)
    brain.on_fit_start()
    brain.on_stage_start(None)
    brain.modules.train()
    return brain


def train(brain: PretrainBrain, batches: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Updates of all these micro-batches; parameters, buffers and log afterwards."""
    everything = utterances()
    for _ in range(UPDATES):
        for rows in batches:
            brain.step += 1
            brain.fit_batch(PaddedBatch([everything[i] for i in rows]))
    assert brain.optimizer_step == UPDATES
    if brain.monitor.writer is not None:
        brain.monitor.writer.close()
    state = {name: value.clone() for name, value in brain.model.state_dict().items()}
    return {"state": state, "log": brain.monitor.records}


def same(a: dict[str, Any], b: dict[str, Any], kind: str) -> None:
    """Weights and codebook after all updates, and what was logged about them."""
    fresh = model_of(kind, 0.0).state_dict()
    for name, value in a["state"].items():
        # relative to the update, not to the weight: float64 sums, divided by a count in float32
        moved = float((value - fresh[name]).abs().double().max())
        gap = float((value - b["state"][name]).abs().double().max())
        assert gap <= 1e-6 * moved + 1e-14, (name, gap, moved)
    clocks = {"seconds", "audio_h"}  # audio is estimated from one rank
    for one, other in zip(a["log"], b["log"], strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - clocks:  # logged sums are float32
            assert one[name] == pytest.approx(other[name], rel=2e-5, abs=1e-7), name


# --- one process ---------------------------------------------------------------------------------

MICRO_BATCHES = [((0, 1, 2), (3, 4, 5)), ((0,), (1, 2, 3, 4), (5,)), ((4,), (5, 0), (3,), (1, 2))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", MICRO_BATCHES)
def test_micro_batches_are_one_batch(
    kind: str, cut: tuple[tuple[int, ...], ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates, all losses but the diversity, all of the log: the codebook's state, too."""
    monkeypatch.setattr(quantizer_module, "gumbel_choice", noiseless)
    rows = [sum(cut, ())]
    found = train(brain_of(model_of(kind, 0.0), tmp_path / "a", len(cut)), cut)
    expected = train(brain_of(model_of(kind, 0.0), tmp_path / "b", 1), rows)
    for record in (*found["log"], *expected["log"]):  # nonlinear: of each micro-batch
        del record["diversity"], record["prob_perplexity"]
    same(found, expected, kind)
    fresh = model_of(kind, 0.0).state_dict()
    assert all(  # everything that learns has moved
        not torch.equal(value, fresh[name])
        for name, value in expected["state"].items()
        if name.startswith("wav2vec2.") and "positions" not in name
    )


@pytest.mark.parametrize("cut", [*MICRO_BATCHES, *(sum(ranks, ()) for ranks in CUTS.values())])
def test_micro_batches_have_different_counts(cut: tuple[tuple[int, ...], ...]) -> None:
    """Otherwise a mean of means would pass for a mean."""
    masks = [mask for _, mask, _ in model_of("nearest", 0.0).plans.values()]
    counts = [sum(int(masks[i].sum()) for i in rows) for rows in cut]
    assert len(set(counts)) > 1 and min(counts) > 1


# --- two processes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes with gloo leave behind."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, "OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    try:
        for process in processes:
            _, stderr = process.communicate(timeout=150)
            assert process.returncode == 0, stderr[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", CUTS)
def test_ranks_are_one_process(
    kind: str, cut: str, ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All losses, diversity included: two ranks with k micro-batches are one process with k
    batches of the utterances of both."""
    monkeypatch.setattr(quantizer_module, "gumbel_choice", noiseless)
    batches = [sum(rows, ()) for rows in zip(*CUTS[cut], strict=True)]
    expected = train(brain_of(model_of(kind, 0.5), tmp_path, len(batches)), batches)
    first, second = (torch.load(ranks / f"{kind}_{cut}_{rank}") for rank in (0, 1))
    same(first, expected, kind)
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name


def test_layers_drop_without_a_search_for_unused_parameters(ranks: Path) -> None:
    """Each rank drops other layers; parameters stay the same on both, and finite."""
    first, second = (torch.load(ranks / f"drop_{rank}")["state"] for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name]) and bool(value.isfinite().all()), name


def test_dead_codes_of_all_ranks_restart_alike(ranks: Path) -> None:
    """On latents of both ranks, in proportion; one without latents gives none."""
    for name, share in (("even", 0.5), ("empty", 0.0)):
        (book, z), (other, z_other) = (torch.load(ranks / f"{name}_{rank}") for rank in (0, 1))
        assert torch.equal(book, other)
        first, second = (
            (book[0][:, None] == x[:, 0]).all(-1).any(1).double() for x in (z, z_other)
        )
        assert bool((first + second == 1).all())
        assert abs(float(second.mean()) - share) < 0.15  # 200 codes: standard error 0.035


def worker(folder: Path) -> None:
    """One of the two processes."""
    rank = int(os.environ["RANK"])
    join_group({"distributed_backend": "gloo"})
    quantizer_module.gumbel_choice = noiseless
    for kind in KINDS:
        for name, cut in CUTS.items():
            brain = brain_of(model_of(kind, 0.5), folder / "run", len(cut[rank]))
            brain.monitor.records.clear()
            torch.save(train(brain, cut[rank]), folder / f"{kind}_{name}_{rank}")
    brain = brain_of(model_of("nearest", 0.5, layer_drop=0.5, dropout=0.1), folder / "run", 1)
    torch.save(train(brain, CUTS["one"][rank]), folder / f"drop_{rank}")
    for name, sizes in (("even", (60, 60)), ("empty", (60, 0))):
        torch.manual_seed(0)
        quantizer = NearestQuantizer(8, codes=200, dim=8, restart_every=1)
        quantizer.USAGE_DECAY = 1.0
        quantizer.running_usage.zero_()
        torch.manual_seed(1 + rank)
        latents = torch.randn(sizes[rank], 8)
        with torch.no_grad():
            quantizer.observe(quantizer(latents))
        quantizer.after_update()
        z = quantizer.project(latents)
        torch.save((quantizer.codebook.detach(), z.detach()), folder / f"{name}_{rank}")
    leave_group()


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
