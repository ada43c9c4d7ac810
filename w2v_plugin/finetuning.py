"""CTC fine-tuning: hyperparameters -> a model folder that transcribes, and its error rates.

`recipes/finetune_ctc.py` and what else fine-tunes call `finetune`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.metric_stats import ErrorRateStats

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.averaging import choose_weights
from w2v_plugin.brains import CTCBrain
from w2v_plugin.circumstances import circumstances, sha256
from w2v_plugin.data import by_length, speech_dataset
from w2v_plugin.folders import load_head, load_pretrained, save_asr
from w2v_plugin.hypotheses import Reference, write_hypotheses
from w2v_plugin.manifests import read_manifest
from w2v_plugin.same_training import OF_THE_ORDER, absolute, alone, check_same

# what a table of results may want to tell apart
SETTINGS = (
    *("pretrained", "published", "updates", "batch_s", "grad_accumulation_factor", "best_by"),
    *("freeze_extractor", "freeze_encoder_updates", "encoder_lr", "head_lr", "patience", "average"),
)


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
        Scores (`WER`, `CER`, `loss`) and what they count, by the name of the test set.

    Raises
    ------
    ValueError, BadManifest, NotStreamable
        The output folder has checkpoints of another training; see `check_end`.
    """
    check_end(hparams)
    checkpoints = hparams["checkpointer"].checkpoints_dir
    with alone(checkpoints):
        check_same([checkpoints], hparams["output_folder"], training_of(hparams))
        return train_and_test(hparams, run_opts)


def train_and_test(hparams: dict[str, Any], run_opts: Any) -> dict[str, dict[str, float]]:
    brain = CTCBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    train = load_data(hparams, hparams["train_csv"])
    valid = load_data(hparams, hparams["valid_csv"], evaluation=True)
    brain.fit_on(train, valid)
    progress = brain.progress  # of the whole training; the best checkpoint knows less
    spent = {"seconds": progress.seconds, "cpu_seconds": progress.cpu_seconds}
    spent["updates"] = brain.optimizer_step
    weights = choose_weights(brain, valid)
    folder = Path(hparams["output_folder"])
    model_folder = Path(hparams.get("model_folder", folder / "model"))
    save = hparams.get("save", save_asr)  # transfer.py saves the adapters of a language
    run_on_main(save, args=[model_folder, hparams["model"], hparams["vocabulary"]])
    results = test(brain, hparams)
    report = {"weights": weights, "test": results, "valid": brain.validations, **spent}
    run_on_main(write_results, args=[folder, describe(brain, hparams) | report, model_folder])
    return results


def check_end(hparams: dict[str, Any]) -> None:
    """Refuse what would fail after the last update: test sets, chunks, the mean of checkpoints.

    Raises
    ------
    ValueError, BadManifest
        They are not what they should be.
    NotStreamable
        There are chunks, and the model hears whole utterances only.
    """
    tests, chunks, average = hparams["test_csvs"], hparams["eval_chunks"], hparams.get("average", 1)
    if not isinstance(tests, Mapping):
        raise ValueError(f"test_csvs={tests!r}, expected names and manifests: {{test: test.csv}}")
    for name, manifest in tests.items():
        if Path(str(name)).name != name:  # it becomes part of files' names
            raise ValueError(f"test_csvs: {name!r}, expected a name that a file can have.")
        read_manifest(manifest)
    if not isinstance(average, int) or average < 1:
        raise ValueError(f"average={average!r}, expected a number of checkpoints, 1 or more.")
    try:
        found = [ChunkConfig.read(setting) for setting in chunks]
    except TypeError as error:
        raise ValueError(
            f"eval_chunks={chunks!r}, expected a list of null, frames, [frames, left]: [null, 16]"
        ) from error
    if any(found):
        hparams["model"].wav2vec2.check_streamable()


def training_of(hparams: dict[str, Any]) -> dict[str, Any]:
    """What stays the same however often a training is started again."""
    symbols = sorted(hparams["vocabulary"].lab2ind.items(), key=lambda item: item[1])
    return {
        "pretrained": absolute(hparams.get("pretrained")),
        "adapters": hparams.get("adapters"),
        "language": hparams.get("language"),
        "symbols": " ".join(str(symbol) for symbol, _ in symbols),
        **{name: hparams[name] for name in OF_THE_ORDER},
        "sha256 of train_csv": sha256(hparams["train_csv"]),
    }


def load_data(
    hparams: dict[str, Any], manifest: str, *, evaluation: bool = False
) -> DynamicItemDataset:
    return speech_dataset(
        manifest,
        vocabulary=hparams["vocabulary"],
        max_s=hparams["max_s"],
        keep_audio=hparams["keep_audio"],
        evaluation=evaluation,
    )


def test(brain: CTCBrain, hparams: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Error rates on every test set, at every chunk size; what was said goes into files."""
    folder = Path(hparams["output_folder"])
    results = {}
    for name, manifest in hparams["test_csvs"].items():
        dataset = load_data(hparams, manifest, evaluation=True)
        listed = sum(1 for _ in read_manifest(manifest))
        for setting in hparams["eval_chunks"]:
            brain.eval_chunk = ChunkConfig.read(setting)
            brain.evaluate(dataset, test_loader_kwargs=by_length(dataset, hparams["batch_s"]))
            key = name if brain.eval_chunk is None else f"{name}_{brain.eval_chunk.name}"
            scored = len(brain.wer.scores)
            counts = {"utterances": scored, "left_out": listed - scored}
            results[key] = {**brain.test_scores, **counted(brain.wer, brain.cer), **counts}
            run_on_main(write_said, args=[folder, key, brain.wer, dataset.data])
    return results


def counted(words: ErrorRateStats, characters: ErrorRateStats) -> dict[str, float]:
    """What the error rates are shares of."""
    return {
        "words": sum(score["num_ref_tokens"] for score in words.scores),
        "word_errors": sum(score["num_edits"] for score in words.scores),
        "characters": sum(score["num_ref_tokens"] for score in characters.scores),
        "character_errors": sum(score["num_edits"] for score in characters.scores),
    }


def write_said(folder: Path, key: str, words: ErrorRateStats, rows: dict[str, Any]) -> None:
    """References and hypotheses: aligned for people, as a table for comparisons."""
    with (folder / f"wer_{key}.txt").open("w", encoding="utf-8") as file:
        words.write_stats(file)
    said = {score["key"]: " ".join(score["hyp_tokens"]) for score in words.scores}
    texts = [Reference(i, row["spk_id"], row["wrd"]) for i, row in rows.items() if i in said]
    write_hypotheses(folder / f"hyp_{key}.csv", texts, [said[text.id] for text in texts])


def describe(brain: CTCBrain, hparams: dict[str, Any]) -> dict[str, Any]:
    """How the results came about."""
    manifests = [hparams["train_csv"], hparams["valid_csv"], *hparams["test_csvs"].values()]
    settings = {name: hparams[name] for name in SETTINGS if name in hparams}
    return {
        **circumstances(brain.device, *dict.fromkeys(manifests)),
        "seed": hparams["seed"],
        **hparams.get("notes", {}),
        "settings": settings | {"precision": brain.precision, "processes": brain.ranks},
    }


def write_results(folder: Path, report: dict[str, Any], model_folder: Path) -> None:
    """results.json, and the same for people."""
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")
    for name, scores in report["test"].items():
        left_out = f"   ({scores['left_out']} left out)" if scores["left_out"] else ""
        print(f"{name:<24} WER {scores['WER']:6.2f} %   CER {scores['CER']:6.2f} %{left_out}")
    print(f"Model folder: {model_folder}")
