"""Self-supervised pretraining of wav2vec 2.0: audio without transcripts -> a model folder.

    python recipes/pretrain.py hparams/pretrain/tiny.yaml \
        --train_csv unlabelled.csv --valid_csv dev.csv [--output_folder runs/mine] [--key value ...]

Every top-level key of the YAML can be overridden. SpeechBrain's options work too: --device cuda,
--precision bf16, --debug. On several processes: torchrun --nproc_per_node=2
recipes/pretrain.py ... (on CPUs add --device=cpu --distributed_backend=gloo); on several machines:
recipes/cluster/pretrain.slurm. Started again with the same output folder, an interrupted run goes
on where it stopped; other audio, another start or other batches are refused there.

First it prints what the run will cost (audio per update, passes, time and memory, measured by a
trial that leaves no trace); --dry_run ends there.

Writes into <output_folder>: model/ (what fine-tuning reads), warm_start/ (the same before the
contrastive stage, for comparison), steps.jsonl, curves.png, tensorboard/, train_log.txt, save/.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.logger import get_logger
from torch.utils.data import Dataset

from w2v_plugin.brains import PretrainBrain, WarmStartBrain
from w2v_plugin.circumstances import sha256
from w2v_plugin.continuation import start_from
from w2v_plugin.cost import measure, plan
from w2v_plugin.data import speech_dataset, training_loader
from w2v_plugin.folders import save_pretrained
from w2v_plugin.launch import join_group, read_hparams, told
from w2v_plugin.ranks import distributed
from w2v_plugin.same_training import OF_THE_ORDER, absolute, alone, check_same
from w2v_plugin.shards import named_corpora, pretraining_speech
from w2v_plugin.training import StepBrain, tri_stage
from w2v_plugin.warm_start import MelRegression
from w2v_plugin.whole_checkpoints import WholeCheckpointer

logger = get_logger(__name__)


def warm_start(
    hparams: dict[str, Any],
    run_opts: dict[str, Any],
    train: Dataset,
    valid: DynamicItemDataset,
) -> None:
    """Log-mel regression, then start the quantizer from what it found."""
    updates = hparams["warm_start_updates"]
    folder = Path(hparams["output_folder"]) / "warm_start"
    regression = MelRegression(hparams["wav2vec2"])
    counter = EpochCounter(limit=1)
    settings = {
        **hparams,
        "output_folder": folder,
        "lr": hparams["warm_start_lr"],
        "schedule": partial(tri_stage, total=updates, warmup=0.05, hold=0.0, final=0.02),
        "optimizer_step_limit": updates,
        "valid_every": updates,
        "epoch_counter": counter,
        "crop_s": hparams["crop_s"] / 2,
    }
    brain = WarmStartBrain(
        modules={"model": regression},
        opt_class=hparams["opt_class"],
        hparams=settings,
        run_opts=run_opts,
        checkpointer=WholeCheckpointer(folder / "save", {"model": regression, "counter": counter}),
    )
    brain.fit_on(train, valid)
    brain.on_evaluate_start(min_key="loss")  # a finished warm start is only loaded
    regression.release()
    if hparams["init_codes"]:
        init_codes(hparams, train, regression.directions)
    run_on_main(save_pretrained, args=[folder, hparams["model"]])


def init_codes(
    hparams: dict[str, Any],
    train: Dataset,
    directions: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Start codes from the latents of some training audio."""
    device = hparams["wav2vec2"].mask_embedding.device
    torch.manual_seed(hparams["seed"])
    (batch,) = training_loader(train, batch_s=256, crop_s=4, batches=1, seed=hparams["seed"])
    hparams["model"].to(device).init_codes(batch.to(device).sig.data, directions=directions)


def start(hparams: dict[str, Any]) -> bool:
    """Go on from the checkpoint `start_from`; whether its codes are taken over, too."""
    model = hparams["model"]
    taken = start_from(model, hparams["start_from"])
    hparams["wav2vec2"], hparams["quantizer"] = model.wav2vec2, model.quantizer
    return taken


def training_of(hparams: dict[str, Any]) -> dict[str, Any]:
    """What stays the same however often a pretraining is started again."""
    corpora = named_corpora(hparams["train_csv"])
    return {
        "start_from": absolute(hparams["start_from"]),
        **{name: hparams[name] for name in OF_THE_ORDER},
        "sha256 of train_csv": {name: sha256(path) for name, path in corpora.items()},
    }


def main(argv: list[str]) -> None:
    """Run the recipe with command-line arguments."""
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    join_group(run_opts)
    hparams = read_hparams(hparams_file, overrides)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    taken = hparams["start_from"] is not None and start(hparams)
    train = pretraining_speech(
        hparams["train_csv"],
        shard_urls=hparams["shard_urls"],
        keep_audio=hparams["keep_audio"],
        min_s=hparams["min_s"],
        temperature=hparams.get("sampling_temperature", 1.0),
        seed=hparams["seed"],
        ranks=torch.distributed.get_world_size() if distributed() else 1,
    )
    logger.info("Corpora\n%s", train.mixture)
    valid = speech_dataset(
        hparams["valid_csv"], max_s=hparams["max_s"], keep_audio=hparams["keep_audio"]
    )
    hours = train.mixture.seconds / 3600
    if hparams["compile_layers"]:  # one layer at a time: compiled once for all, for any length
        for layer in hparams["wav2vec2"].encoder.layers:
            layer.compile(dynamic=True)
    logger.info("The plan\n%s", plan(hparams, hours, measure(PretrainBrain, hparams, run_opts)))
    if hparams["dry_run"] is not False:  # a bare --dry_run arrives as None
        return
    folder = Path(hparams["output_folder"])
    checkpoints = [hparams["checkpointer"].checkpoints_dir, folder / "warm_start" / "save"]
    with alone(checkpoints[0]):
        check_same(checkpoints, folder, training_of(hparams))
        pretrain(hparams, run_opts, train, valid, taken)


def pretrain(
    hparams: dict[str, Any],
    run_opts: dict[str, Any],
    train: Dataset,
    valid: DynamicItemDataset,
    taken: bool,
) -> None:
    """Warm start, the contrastive stage, and the model folder; codes may be `taken` over."""
    if hparams["warm_start_updates"] > 0 and hparams["start_from"] is None:
        warm_start(hparams, run_opts, train, valid)
    elif hparams["init_codes"] and not taken:
        init_codes(hparams, train)
    brain = PretrainBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit_on(train, valid)
    brain.on_evaluate_start(max_key="accuracy")
    folder = Path(hparams["output_folder"])
    run_on_main(save_pretrained, args=[folder / "model", hparams["model"]])
    run_on_main(write_results, args=[folder, brain])


def write_results(folder: Path, brain: StepBrain) -> None:
    """The validation of the checkpoint that the model folder holds, in a file."""
    valid = [r for r in brain.monitor.records if "valid_accuracy" in r]
    scores = next((r for r in valid if r["step"] == brain.optimizer_step), {})
    (folder / "results.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(f"Model folder: {folder / 'model'}\n{json.dumps(scores)}")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]) or len(sys.argv) == 1:
        print(__doc__)
    else:
        sys.exit(told("pretrain", main, sys.argv[1:]))
