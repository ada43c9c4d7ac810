"""What the training loop adds to the bare step: one recipe on real audio, taken to pieces."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

HPARAMS = Path(__file__).resolve().parents[1] / "hparams" / "pretrain"
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": (
        "base_librispeech.yaml",
        {
            "batch_s": 32.0,  # 4 x 8 s
            "crop_s": 8.0,
            "grad_accumulation_factor": 1,
            "wav2vec2": {"layer_drop": 0.0},
            "num_workers": 0,
        },
    ),
    "tiny": ("tiny.yaml", {}),
}


class Finished(Exception):
    """Enough updates: leave the loop before validation and checkpoints."""


class Stopwatch:
    """Adds up the seconds within functions that do not call each other."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable) -> Callable:
        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def loop_overhead(shape: str, manifest: str, steps: int, kept: bool) -> dict:
    """Seconds of `steps` updates, and those of them in the bare step."""
    from w2v_plugin.data import speech_dataset
    from w2v_plugin.manifests import read_manifest
    from w2v_plugin.shards import pretraining_speech

    with tempfile.TemporaryDirectory() as folder:
        hparams = recipe(shape, manifest, folder, steps)
        train = pretraining_speech(manifest, keep_audio=kept, min_s=8.0, seed=hparams["seed"])
        if kept:  # read everything once: in the long run it is in memory
            for row in read_manifest(manifest):
                train.reader(row["wav"])
        return run(hparams, train, speech_dataset(manifest), steps)


def recipe(shape: str, manifest: str, folder: str, steps: int) -> dict[str, Any]:
    """The hyperparameters of a recipe, with as much of it as is timed."""
    from hyperpyyaml import load_hyperpyyaml

    name, changes = RECIPES[shape]
    places = {"train_csv": manifest, "valid_csv": manifest, "output_folder": folder}
    still = {"lr": 1e-6, "slow_lr": 1e-6, "stop_on_collapse": False}
    run = {"updates": steps + 1, "valid_every": steps + 1, "log_every": 5}
    with (HPARAMS / name).open(encoding="utf-8") as file:
        return load_hyperpyyaml(file, {**places, **run, **still, **changes})


def run(hparams: dict[str, Any], train: Any, valid: Any, steps: int) -> dict:
    """Train for one update of warm-up and `steps` that count."""
    from w2v_plugin.brains import PretrainBrain

    watch, ends, inside = Stopwatch(), [], []
    brain = PretrainBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts={"max_grad_norm": hparams["max_grad_norm"], "noprogressbar": True},
    )
    fit_batch, init_optimizers = brain.fit_batch, brain.init_optimizers

    def counted(batch: Any) -> torch.Tensor:
        loss = fit_batch(batch)
        ends.append(time.perf_counter())
        inside.append(watch.seconds)
        if len(ends) > steps:
            raise Finished
        return loss

    def with_watch() -> None:
        init_optimizers()
        for optimizer in brain.optimizers_dict.values():
            optimizer.step = watch.wrap(optimizer.step)

    brain.fit_batch, brain.init_optimizers = counted, with_watch
    with (
        patch.object(brain.model, "forward", watch.wrap(brain.model.forward)),
        patch.object(torch.Tensor, "backward", watch.wrap(torch.Tensor.backward)),
        patch("torch.nn.utils.clip_grad_norm_", watch.wrap(torch.nn.utils.clip_grad_norm_)),
        contextlib.suppress(Finished),
    ):
        brain.fit_on(train, valid)
    return {"whole": ends[-1] - ends[0], "bare": inside[-1] - inside[0], "steps": steps}
