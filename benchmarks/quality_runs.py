"""One run of pretraining_quality.py: an arm, a seed, a learning rate, a budget of process time."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fairseq_pretraining import Fairseq
from pretraining_peers import NEGATIVES, Ours, Shape, SpeechBrain, Stack, Transformers
from torch import Tensor, nn

from w2v_plugin.audio import read_audio
from w2v_plugin.brains import PretrainBrain
from w2v_plugin.codes import perplexity
from w2v_plugin.frames import frame_lengths
from w2v_plugin.losses import contrastive_loss, sample_negatives
from w2v_plugin.manifests import read_manifest
from w2v_plugin.masking import span_mask
from w2v_plugin.training import tri_stage
from w2v_plugin.warm_start import MelRegression

TINY = Shape(
    dim=128,
    layers=4,
    heads=4,
    ffn_dim=512,
    channels=(32, 32, 64, 64, 64, 128, 128),
    layer_norm=True,
    positions=(32, 8),
    codes=160,
    target_dim=128,
)
RECIPE = "w2v_plugin, tiny.yaml"
STACKS: dict[str, type[Stack]] = {
    "transformers": Transformers,
    "SpeechBrain": SpeechBrain,
    "fairseq's arithmetic": Fairseq,
    "w2v_plugin, the peers' recipe": Ours,
}
ARMS = (*STACKS, RECIPE)
CROP, ROWS = 64_000, 3  # 4 s: batches of 12 s, as in tiny.yaml
LONGEST = 160_000  # of an utterance in evaluation
MASKS = {"": (0.65, 10), "_short": (0.45, 5)}
POINTS = 10  # evaluations of a run, beside the one before it
MAX_NORM = 5.0
WARM_SHARE = 0.2  # of the budget, at most, goes into the warm start
TINY_YAML = Path(__file__).resolve().parents[1] / "hparams" / "pretrain" / "tiny.yaml"


# --- data ----------------------------------------------------------------------------------------


def prepare(folder: Path, train: Path, dev: Path) -> None:
    """Decode both manifests once: all samples in a row, and where utterances end."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, manifest in (("train", train), ("dev", dev)):
        if (folder / f"{name}_ends.npy").is_file():
            continue
        wavs = [(32767 * read_audio(r["wav"])).round().short() for r in read_manifest(manifest)]
        np.save(folder / f"{name}.npy", torch.cat(wavs).numpy())
        np.save(folder / f"{name}_ends.npy", np.cumsum([len(wav) for wav in wavs]))


def utterances(folder: Path, name: str) -> list[np.ndarray]:
    """int16 samples of each, not read before they are used."""
    samples = np.load(folder / f"{name}.npy", mmap_mode="r")
    return np.split(samples, np.load(folder / f"{name}_ends.npy")[:-1])


def floats(samples: np.ndarray) -> Tensor:
    return torch.from_numpy(samples.astype(np.float32)) / 32767


def batches(folder: Path, seed: int) -> Iterator[Tensor]:
    """(3, 4 s) windows of random utterances; a function of the seed alone."""
    wavs = [wav for wav in utterances(folder, "train") if len(wav) >= CROP]
    draw = random.Random(seed)
    while True:
        rows = []
        for wav in draw.sample(wavs, ROWS):
            begin = draw.randrange(len(wav) - CROP + 1)
            rows.append(floats(wav[begin : begin + CROP]))
        yield torch.stack(rows)


# --- arms ----------------------------------------------------------------------------------------


class PeersRecipe:
    """The paper's recipe, scaled to the run, for any stack."""

    def __init__(self, arm: str, lr: float, seed: int, folder: Path) -> None:
        self.stack, self.lr = STACKS[arm](TINY), lr
        self.optimizer = self.stack.optimizer(lr)

    def prepared(self, wavs: Tensor) -> Tensor:
        """Zero mean, unit variance, as is usual for extractors with layer norms."""
        return F.layer_norm(wavs, wavs.shape[1:])

    def step(self, wavs: Tensor, done: float) -> None:
        """One update; `done` is the share of the budget that is spent."""
        self.optimizer.param_groups[0]["lr"] = self.lr * factor(done)
        self.stack.set_progress(done)
        self.stack(self.prepared(wavs)).backward()
        self.stack.update(self.optimizer, MAX_NORM)


def factor(done: float) -> float:
    """Of the learning rate: warm-up over 8 %, then linear decay, as in tiny.yaml."""
    return tri_stage(int(10_000 * done), 10_000, warmup=0.08, hold=0.0, final=0.02)


class TinyRecipe:
    """hparams/pretrain/tiny.yaml: model, optimizers, schedules and warm start are its own."""

    def __init__(self, arm: str, lr: float, seed: int, folder: Path) -> None:
        from hyperpyyaml import load_hyperpyyaml

        places = {"train_csv": "", "valid_csv": "", "output_folder": str(folder / "unused")}
        with TINY_YAML.open(encoding="utf-8") as file:
            self.hparams: dict[str, Any] = load_hyperpyyaml(file, {**places, "seed": seed})
        self.model = self.hparams["model"]
        self.stack = Ours(TINY)
        self.stack.model = self.model
        some = batches(folder, seed=2**31)  # not those of a run
        self.init_wavs = torch.cat([next(some) for _ in range(21)])
        self.regression: MelRegression | None = MelRegression(self.hparams["wav2vec2"])
        trained = [p for p in self.regression.parameters() if p.requires_grad]
        self.optimizers = [self.hparams["opt_class"](trained, lr=self.hparams["warm_start_lr"])]
        self.warm_updates, self.warmed = 0, 0.0

    def prepared(self, wavs: Tensor) -> Tensor:
        return wavs

    def step(self, wavs: Tensor, done: float) -> None:
        if self.regression is not None:
            total = self.hparams["warm_start_updates"]
            share = max(self.warm_updates / total, done / WARM_SHARE)
            if share < 1.0:
                self.warm_step(self.regression, wavs.view(2 * ROWS, -1), share)
                return
            self.begin(self.regression, done)
        updates = self.hparams["updates"]
        spent = (done - self.warmed) / (1 - self.warmed)
        for optimizer, lr in zip(self.optimizers, self.lrs, strict=True):
            optimizer.param_groups[0]["lr"] = lr * self.hparams["schedule"](int(spent * updates))
        out = self.model(wavs)
        (out.loss / out.contrastive.count).backward()
        self.model.quantizer.observe(out.quantized)
        self.update()
        self.model.quantizer.after_update()

    def warm_step(self, regression: MelRegression, wavs: Tensor, share: float) -> None:
        """One update of the log-mel regression, on windows of half the length."""
        rate = tri_stage(int(share * 10_000), 10_000, warmup=0.05, hold=0.0, final=0.02)
        self.optimizers[0].param_groups[0]["lr"] = self.hparams["warm_start_lr"] * rate
        regression(wavs).backward()
        self.update()
        self.warm_updates += 1

    def begin(self, regression: MelRegression, done: float) -> None:
        """Codes from what the warm start found, then the contrastive stage."""
        self.model.init_codes(self.init_wavs, None, regression.directions)
        regression.release()
        groups = PretrainBrain.learning_rates(
            SimpleNamespace(model=self.model, hparams=SimpleNamespace(**self.hparams))
        )
        make = self.hparams["opt_class"]
        self.optimizers = [make(parameters, lr=lr) for parameters, lr in groups.values()]
        self.lrs = [lr for _, lr in groups.values()]
        self.regression, self.warmed = None, done

    def update(self) -> None:
        for optimizer in self.optimizers:
            parameters = optimizer.param_groups[0]["params"]
            nn.utils.clip_grad_norm_(parameters, self.hparams["max_grad_norm"])
            optimizer.step()
            optimizer.zero_grad()


# --- a run ---------------------------------------------------------------------------------------


def train_arm(arm: str, lr: float, seed: int, budget_s: float, data: str, path: str) -> None:
    """Train for `budget_s` seconds of process time and write the curve to `path`."""
    torch.set_num_threads(1)
    folder, make = Path(data), TinyRecipe if arm == RECIPE else PeersRecipe
    seed_all(seed)
    recipe = make(arm, lr, seed, folder)
    seed_all(seed)
    stream, spent, updates = batches(folder, seed), 0.0, 0
    curve = [evaluate(recipe, folder) | {"seconds": 0.0}]
    while True:
        if spent >= len(curve) * budget_s / POINTS:
            curve.append(evaluate(recipe, folder) | {"seconds": spent})
            print(f"{arm}, seed {seed}, lr {lr:g}: {spent:.0f} s, {curve[-1]}", flush=True)
        if spent >= budget_s:
            break
        wavs, begin = next(stream), time.process_time()
        recipe.step(wavs, spent / budget_s)
        spent += time.process_time() - begin
        updates += 1
    shown = recipe.hparams["lr"] if isinstance(recipe, TinyRecipe) else lr
    result = {"arm": arm, "lr": shown, "seed": seed, "updates": updates, "curve": curve}
    partial = Path(path).with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)


def seed_all(seed: int) -> None:
    """Stacks draw from all three."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@torch.no_grad()
def evaluate(recipe: PeersRecipe | TinyRecipe, folder: Path) -> dict[str, float]:
    """Accuracy and chance with both kinds of masks, code perplexity and usage.

    Utterance by utterance, so that there is no padding to treat. Masks, negatives and random
    contexts follow from the number of the utterance: they are the same for all stacks.
    """
    stack = recipe.stack.eval()
    scores: dict[str, float] = {}
    histogram = torch.zeros(2, TINY.codes)
    for suffix, (prob, length) in MASKS.items():
        totals = torch.zeros(3)  # correct, correct by chance, frames
        for number, samples in enumerate(utterances(folder, "dev")):
            generator = torch.Generator().manual_seed(number)
            wavs = recipe.prepared(floats(samples[:LONGEST])[None])
            frames = frame_lengths(wavs.shape[1])
            mask = span_mask(
                torch.tensor([frames]), frames, prob=prob, length=length, generator=generator
            )
            masked = mask.sum(1)
            negatives = sample_negatives(masked, int(masked), NEGATIVES, generator)
            found = stack.represent(wavs, mask)
            guess = torch.randn(found.context.shape, generator=generator)
            valid = torch.ones(1, int(masked), dtype=torch.bool)
            heard, blind = (
                contrastive_loss(context, found.targets, negatives, valid=valid, codes=found.codes)
                for context in (found.context, guess)
            )
            totals += torch.stack([heard.correct, blind.correct, heard.count]).float()
            if not suffix:
                histogram += F.one_hot(found.codes[0], TINY.codes).sum(0)
        scores[f"accuracy{suffix}"] = float(totals[0] / totals[2])
        scores[f"chance{suffix}"] = float(totals[1] / totals[2])
    stack.train()
    shares = histogram / histogram.sum(1, keepdim=True)
    scores["perplexity"] = float(perplexity(shares).mean())
    scores["usage"] = float((histogram > 0).float().mean())
    return scores
