"""Self-supervised pretraining of wav2vec 2.0: audio without transcripts -> a model folder.

    python recipes/pretrain.py hparams/pretrain/tiny.yaml \
        --train_csv unlabelled.csv --valid_csv dev.csv [--output_folder runs/mine] [--key value ...]

Every top-level key of the YAML can be overridden. SpeechBrain's options work too: --device cuda,
--precision bf16, --debug. On several processes: torchrun --nproc_per_node=2 recipes/pretrain.py ...
(on CPUs add --device=cpu --distributed_backend=gloo). Started again with the same output folder,
an interrupted run goes on where it stopped.

Writes into <output_folder>: model/ (what fine-tuning reads), warm_start/ (the same before the
contrastive stage, for comparison), steps.jsonl, curves.png, tensorboard/, train_log.txt, save/.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import ddp_init_group, run_on_main
from speechbrain.utils.epoch_loop import EpochCounter

from w2v_plugin.brains import PretrainBrain, WarmStartBrain
from w2v_plugin.data import collate, crop, speech_dataset
from w2v_plugin.folders import save_pretrained
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.training import StepBrain, leave_group, tri_stage
from w2v_plugin.warm_start import MelRegression


def warm_start(
    hparams: dict[str, Any],
    run_opts: dict[str, Any],
    train: DynamicItemDataset,
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
        checkpointer=Checkpointer(folder / "save", {"model": regression, "counter": counter}),
    )
    brain.fit_on(train, valid)
    brain.on_evaluate_start(min_key="loss")  # a finished warm start is only loaded
    init_quantizer(regression, hparams, train)
    regression.release()
    run_on_main(save_pretrained, args=[folder, hparams["wav2vec2"]])


@torch.no_grad()
def init_quantizer(
    regression: MelRegression, hparams: dict[str, Any], train: DynamicItemDataset
) -> None:
    """Start codes from the latents of some training audio."""
    device = regression.head.weight.device
    torch.manual_seed(hparams["seed"])
    chosen = torch.randperm(len(train))[:64].tolist()
    wavs, wav_lens = collate([train[i] for i in chosen]).to(device).sig
    wavs, wav_lens = crop(wavs, wav_lens, 4 * SAMPLE_RATE)
    wav2vec2 = hparams["wav2vec2"]
    latents, lengths = wav2vec2.extract(wavs, wav_lens)
    rows = zip(wav2vec2.projection.norm(latents), lengths.tolist(), strict=True)
    normed = torch.cat([row[:length] for row, length in rows])
    quantizer = hparams["quantizer"].to(device)
    quantizer.init_from_data(normed, regression.directions(normed))


def main(argv: list[str]) -> None:
    """Run the recipe with command-line arguments."""
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    ddp_init_group(run_opts)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    train = speech_dataset(
        hparams["train_csv"], max_s=hparams["max_s"], keep_audio=hparams["keep_audio"]
    )
    valid = speech_dataset(
        hparams["valid_csv"], max_s=hparams["max_s"], keep_audio=hparams["keep_audio"]
    )
    if hparams["warm_start_updates"] > 0:
        warm_start(hparams, run_opts, train, valid)
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
    run_on_main(save_pretrained, args=[folder / "model", hparams["wav2vec2"]])
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
        main(sys.argv[1:])
        leave_group()
