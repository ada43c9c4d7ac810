"""A new language from a pretrained or fine-tuned model: transcribed audio -> a model folder.

    python recipes/transfer.py hparams/transfer/tiny.yaml --pretrained runs/pretrain_tiny/model \
        --train_csv train.csv --valid_csv dev.csv --test_csvs "{test: test.csv}" \
        --vocab vocab.json --output_folder runs/german

PRETRAINED is a model folder, or any checkpoint that `w2v convert` reads (folder, file, hub id); it
says what the model is. Manifests and vocab.json come from recipes/prepare/. If it is fine-tuned
for another language, the rows of its head go on whose characters both languages have.

By default all weights learn (`--adapters null`), and the model speaks the new language only. One
encoder for many languages, each with 1-3 % of parameters of its own beside it:

    ... --adapters mms --language deu      # pre-norm models: tiny, LARGE, XLS-R, MMS
    ... --adapters lora --language deu     # any, BASE too

    # one more, beside the first (of which nothing changes); PRETRAINED is that of the first, or:
    ... --adapters mms --language mal --pretrained runs/german/model \
        --model_folder runs/german/model

    w2v transcribe --model runs/german/model --language mal audio.wav
    w2v convert runs/german/model exported     # for transformers, as MMS: load_adapter("mal")

Every top-level key of the YAML can be overridden by --key value. SpeechBrain's options work too:
--device cuda, --precision bf16, --debug; torchrun as for pretraining. Started again with the same
output folder, an interrupted run goes on. Writes what recipes/finetune_ctc.py writes.
"""

from __future__ import annotations

import sys

from w2v_plugin.transfer import main

if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]) or len(sys.argv) == 1:
        print(__doc__)
    else:
        sys.exit(main(sys.argv[1:]))
