"""What half precision and INT8 cost a trained model: WER and CER on the same files.

    python benchmarks/precision.py runs/demo/pretrained/model runs/demo/test.csv

Also says which parts INT8 costs most (deviation of the logits of the first files with only that
part in 8 bits), for `keep_fp32`. Writes its section of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jiwer
import measure
import torch

from w2v_plugin.audio import read_audio
from w2v_plugin.compression import int8_deviations
from w2v_plugin.conversion import open_folder
from w2v_plugin.interfaces import Wav2Vec2ASR
from w2v_plugin.manifests import read_manifest
from w2v_plugin.text import normalize_text

FILES = 5  # for the deviations


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a fine-tuned model")
    parser.add_argument("manifest", help="CSV with the columns wav and wrd")
    parser.add_argument("--name", help="of the model, for the title (default: its folder)")
    arguments = parser.parse_args()
    manifest = list(read_manifest(arguments.manifest))
    name = arguments.name or Path(arguments.model).resolve().parent.name
    measure.write_section(
        f"Precision of a trained model: {name}",
        f"`python benchmarks/precision.py {arguments.model} {arguments.manifest}`. "
        f"{measure.circumstances()} {len(manifest)} files, greedy decoding.\n\n"
        f"{accuracy(arguments.model, manifest)}\n\nDeviation of the logits with one part in INT8, "
        f"{FILES} files, worst first: {deviations(arguments.model, manifest[:FILES])}.",
    )


def accuracy(model: str, manifest: list[dict[str, str]]) -> str:
    """WER, CER and seconds for each precision that this CPU has."""
    rows = []
    for precision in ("fp32", "bf16", "int8"):
        try:
            asr = Wav2Vec2ASR.from_hparams(
                model, run_opts={"device": "cpu", "precision": precision}
            )
        except ValueError as error:
            print(error)
            continue
        references = [normalize_text(row["wrd"], asr.tokenizer.letters) for row in manifest]
        begin = time.perf_counter()
        results = asr.transcribe_files([row["wav"] for row in manifest])
        texts = [str(text) for _, text in results]
        seconds = time.perf_counter() - begin
        wer, cer = jiwer.wer(references, texts), jiwer.cer(references, texts)
        rows.append([precision, f"{100 * wer:.2f}", f"{100 * cer:.2f}", f"{seconds:.1f}"])
    return measure.table(["precision", "WER %", "CER %", "seconds"], rows)


def deviations(model: str, manifest: list[dict[str, str]]) -> str:
    wavs = [read_audio(row["wav"]) for row in manifest]
    found = int8_deviations(
        lambda: open_folder(model)[0],
        lambda m: torch.cat([out.logits for out in m.forward_packed(wavs)], dim=1),
    )
    return ", ".join(f"{part} {value:.1e}" for part, value in found.items())


if __name__ == "__main__":
    main()
