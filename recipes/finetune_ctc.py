"""CTC fine-tuning at character level: transcribed audio -> a model folder that transcribes.

    python recipes/finetune_ctc.py hparams/ctc/tiny.yaml --pretrained runs/pretrain_tiny/model \
        --train_csv train.csv --valid_csv dev.csv --test_csvs "{test: test.csv}" [--key value ...]

Every top-level key of the YAML can be overridden; `--pretrained null` trains from scratch.
SpeechBrain's options work too: --device cuda, --precision bf16, --debug; torchrun as for
pretraining. Started again with the same output folder, an interrupted run goes on.

Writes into <output_folder>: model/ (for `w2v transcribe --model` and `from_hparams`), results.json,
wer_<test set>.txt (aligned errors), steps.jsonl, curves.png, tensorboard/, train_log.txt, save/.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import run_on_main

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.brains import CTCBrain
from w2v_plugin.data import by_length, speech_dataset
from w2v_plugin.folders import load_head, load_pretrained, save_asr
from w2v_plugin.launch import join_group, leave_group


def load_data(hparams: dict[str, Any], manifest: str) -> DynamicItemDataset:
    return speech_dataset(
        manifest,
        vocabulary=hparams["vocabulary"],
        max_s=hparams["max_s"],
        keep_audio=hparams["keep_audio"],
    )


def test(brain: CTCBrain, hparams: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Error rates of the best model on every test set, at every chunk size."""
    folder = Path(hparams["output_folder"])
    results = {}
    for name, manifest in hparams["test_csvs"].items():
        dataset = load_data(hparams, manifest)
        for setting in hparams["eval_chunks"]:
            brain.eval_chunk = ChunkConfig.read(setting)
            loader = by_length(dataset, hparams["batch_s"])
            brain.evaluate(dataset, min_key=hparams["best_by"], test_loader_kwargs=loader)
            key = name if brain.eval_chunk is None else f"{name}_{brain.eval_chunk.name}"
            results[key] = brain.test_scores
            run_on_main(write_alignments, args=[brain, folder / f"wer_{key}.txt"])
    return results


def write_alignments(brain: CTCBrain, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        brain.wer.write_stats(file)


def write_results(
    folder: Path, brain: CTCBrain, results: dict[str, dict[str, float]], seconds: float
) -> None:
    """results.json, and the same for people."""
    curve = [r for r in brain.monitor.records if "valid_WER" in r]
    report = {"test": results, "valid": curve, "seconds": seconds}
    (folder / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, scores in results.items():
        print(f"{name:<24} WER {scores['WER']:6.2f} %   CER {scores['CER']:6.2f} %")
    print(f"Model folder: {folder / 'model'}")


def main(argv: list[str]) -> None:
    """Run the recipe with command-line arguments."""
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    join_group(run_opts)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    if hparams["pretrained"]:
        load_pretrained(hparams["pretrained"], hparams["wav2vec2"])
        if load_head(hparams["pretrained"], hparams["model"], hparams["vocabulary"]):
            print(f"The head of {hparams['pretrained']} speaks of the same characters: it goes on.")
        if hparams["freeze_extractor"]:
            hparams["wav2vec2"].freeze_extractor()
    brain = CTCBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit_on(*(load_data(hparams, hparams[key]) for key in ("train_csv", "valid_csv")))
    seconds = brain.progress.seconds  # of the whole training; the best checkpoint knows less
    brain.on_evaluate_start(min_key=hparams["best_by"])
    folder = Path(hparams["output_folder"])
    run_on_main(save_asr, args=[folder / "model", hparams["model"], hparams["vocabulary"]])
    results = test(brain, hparams)
    run_on_main(write_results, args=[folder, brain, results, seconds])


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]) or len(sys.argv) == 1:
        print(__doc__)
    else:
        main(sys.argv[1:])
        leave_group()
