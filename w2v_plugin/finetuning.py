"""CTC fine-tuning: hyperparameters -> a model folder that transcribes, and its error rates.

`recipes/finetune_ctc.py` and what else fine-tunes call `finetune`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import run_on_main

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.brains import CTCBrain
from w2v_plugin.data import by_length, speech_dataset
from w2v_plugin.folders import load_head, load_pretrained, save_asr


def start(hparams: dict[str, Any]) -> None:
    """Weights of `pretrained`, a head of the same characters, and what stays frozen."""
    if not hparams["pretrained"]:
        return
    load_pretrained(hparams["pretrained"], hparams["wav2vec2"])
    if load_head(hparams["pretrained"], hparams["model"], hparams["vocabulary"]):
        print(f"The head of {hparams['pretrained']} speaks of the same characters: it goes on.")
    if hparams["freeze_extractor"]:
        hparams["wav2vec2"].freeze_extractor()


def finetune(hparams: dict[str, Any], run_opts: Any) -> dict[str, dict[str, float]]:
    """Train, keep the best model as a folder, and test it.

    Parameters
    ----------
    hparams : dict
        A loaded YAML such as `hparams/ctc/tiny.yaml`, its model ready to be trained.
    run_opts : RunOptions
        As `speechbrain.parse_arguments` returns them.

    Returns
    -------
    dict
        Scores (`WER`, `CER`, `loss`) by the name of the test set.
    """
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
    return results


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
