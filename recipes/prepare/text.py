"""Transcripts as the corpus has them -> normalized ones, and the vocabulary that they need.

Reads manifests (ID,duration,wav,spk_id,wrd) and writes manifests of the same names into --out, with
vocab.json or pieces.model for `vocab:` of a fine-tuning recipe, text_report.md to read, the same as
.json, and left_out.tsv: what was left out of training, and why.

Texts get Unicode NFC, one case, plain letters for ligatures and full-width forms, ' and - for
typographic ones; punctuation and invisible characters are dropped. Utterances to train with are
left out, and named, if they have digits or symbols that are read nobody knows how, characters in
fewer than --min-count utterances, damaged or no text, or more text than audio; and with
--apart-texts, if a manifest of --also has the same text, since prompts repeat. Manifests given with
--also lose nothing: what the model cannot say there counts as errors.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from w2v_plugin.text_options import add_text_options, text_choices
from w2v_plugin.text_preparation import prepare_texts

EXAMPLES = r"""examples
  German, lower case, apostrophes inside words; & is read "und":
    python recipes/prepare/text.py --manifest raw/train.csv --also raw/dev.csv raw/test.csv \
        --out runs/german --map '&= und '
  upper case as in the published English vocabulary, hyphens kept inside words:
    python recipes/prepare/text.py --manifest raw/train.csv --out runs/english --case upper \
        --inside "'-"
  Malayalam; two spellings of one sound made one:
    python recipes/prepare/text.py --manifest raw/train.csv --out runs/malayalam \
        --map 'ൌ=ൗ' --map 'ു്=്'
  Turkish (two letters i); Arabic without points; Persian with its zero-width non-joiner:
    python recipes/prepare/text.py --manifest raw/train.csv --out runs/turkish --text-language tr
    python recipes/prepare/text.py --manifest raw/train.csv --out runs/arabic --drop 'ًٌٍَُِّْٰ'
    python recipes/prepare/text.py --manifest raw/train.csv --out runs/persian --keep $'\u200c'
  500 pieces of words instead of characters; whole numbers spelled by num2words:
    python recipes/prepare/text.py --manifest raw/train.csv --out runs/pieces --units unigram \
        --size 500 --digits spell --text-language de

Then: python recipes/finetune_ctc.py ... --vocab runs/german/vocab.json --train_csv \
    runs/german/train.csv ...
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--manifest", type=Path, required=True, help="to train with: decides the vocabulary")
    add("--also", type=Path, nargs="+", default=[], help="to validate and test with")
    add("--out", type=Path, required=True, help="folder to write")
    add_text_options(add)
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 and one message on stderr where the texts cannot be used."""
    options = parser().parse_args(argv)
    try:
        report = prepare_texts(
            options.manifest, options.out, also=options.also, **text_choices(options)
        )
        print(report, flush=True)
    except BrokenPipeError:  # `text.py … | head`: whoever reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"text.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntext.py: interrupted, nothing was written.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
