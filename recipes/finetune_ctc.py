"""CTC fine-tuning: transcribed audio -> a model folder that transcribes.

    python recipes/finetune_ctc.py hparams/ctc/tiny.yaml --pretrained runs/pretrain_tiny/model \
        --train_csv train.csv --valid_csv dev.csv --test_csvs "{test: test.csv}" [--key value ...]

Every top-level key of the YAML can be overridden; `--pretrained null` trains from scratch. Some
that help (hparams/ctc/*.yaml explain all of them):

    --published '!include:published/base_10h.yaml'   settings of the paper for so many labels
    --augment '!include:augment/speed.yaml' --keep_latents False
    --best_by CER --patience 5 --average 3
    --vocab texts/vocab.json                         other letters than English ones

SpeechBrain's options work too: --device cuda, --precision bf16, --debug; torchrun as for
pretraining. Started again with the same output folder, an interrupted run goes on.

Writes into <output_folder>: model/ (for `w2v transcribe --model` and `from_hparams`), results.json
(scores and how they came about), wer_<test set>.txt (aligned errors), hyp_<test set>.csv (for
`recipes/evaluate.py`), steps.jsonl, curves.png, tensorboard/, train_log.txt, save/.

Training leaves out, and names, transcripts with characters outside the vocabulary; development and
test sets keep them, and what cannot be said counts as errors.
"""

from __future__ import annotations

import sys

import speechbrain as sb

from w2v_plugin.finetuning import finetune, start
from w2v_plugin.launch import join_group, read_hparams, told


def main(argv: list[str]) -> None:
    """Run the recipe with command-line arguments."""
    hparams_file, run_opts, overrides = sb.parse_arguments(argv)
    join_group(run_opts)
    hparams = read_hparams(hparams_file, overrides)
    sb.create_experiment_directory(hparams["output_folder"], hparams_file, overrides)
    start(hparams)
    finetune(hparams, run_opts)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]) or len(sys.argv) == 1:
        print(__doc__)
    else:
        sys.exit(told("finetune_ctc", main, sys.argv[1:]))
