"""recipes/evaluate_streaming.py: the figures, from a model that streams to tables and a picture."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

from w2v_plugin import ChunkConfig, Wav2Vec2ASR
from w2v_plugin.commands import CannotStart
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.folders import save_asr
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.streaming_asr import Wav2Vec2StreamingASR
from w2v_plugin.text import CharVocabulary
from w2v_plugin.transcripts import Span, Transcript

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "recipes"))
import evaluate_streaming

COUNT = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 1, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    shape |= {"positions_kernel": 8, "positions_groups": 4}
    body = Wav2Vec2(**shape, extractor_norm="layer", normalize=False)
    ctc = Wav2Vec2CTC(body, vocab_size=32).eval()
    torch.nn.init.normal_(ctc.head.weight)
    folder = tmp_path_factory.mktemp("model")
    save_asr(folder, ctc, CharVocabulary())
    return folder


@pytest.fixture(scope="module")
def manifest(model, tmp_path_factory) -> Path:
    """Texts are what the model says, with a word more: so much is wrong, and known to be."""
    folder = tmp_path_factory.mktemp("audio")
    asr = Wav2Vec2ASR.from_hparams(model, run_opts={"device": "cpu"})
    rows = []
    for number in range(COUNT):
        path, seconds = folder / f"{number}.wav", 1.5 + 0.3 * number
        wav = 0.1 * torch.randn(
            int(seconds * 16_000), generator=torch.Generator().manual_seed(number)
        )
        soundfile.write(path, wav.numpy(), 16_000, subtype="FLOAT")
        text = asr.transcribe_file(path) + " A"
        rows.append(
            {"ID": str(number), "duration": seconds, "wav": path, "spk_id": "x", "wrd": text}
        )
    with (folder / "test.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "test.csv"


@pytest.fixture(scope="module")
def report(model, manifest, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("out") / "new"
    options = ["--model", str(model), "--manifest", str(manifest), "--output_folder", str(folder)]
    options += ["--chunks", "320", "640", "--lefts", "1.28", "all", "--latency_left", "1.28"]
    options += ["--hour", "--minutes", "2", "--noprogressbar"]
    evaluate_streaming.main(options)
    return folder, json.loads((folder / "results.json").read_text())


def test_streamed_is_masked(report, model, manifest) -> None:
    """Token for token, at every setting; offline is what the model says of the whole."""
    _, found = report
    full, *rows = found["error_rates"]
    assert (full["chunk"], full["left"]) == (None, None)
    assert full["offline"] == full["masked"] == full["streamed"] and full["different"] == 0
    assert [(row["chunk"], row["left"]) for row in rows] == [
        (16, 64),
        (16, None),
        (32, 64),
        (32, None),
    ]
    words = [row["wrd"].split() for row in csv.DictReader(manifest.read_text().splitlines())]
    expected = 100 * COUNT / sum(map(len, words))
    assert full["offline"]["WER"] == pytest.approx(expected, abs=0.01)
    for row in rows:
        assert row["masked"] == row["streamed"] and row["different"] == 0
        assert row["offline"] == full["offline"] and row["utterances"] == COUNT
    assert any(row["masked"] != full["offline"] for row in rows)


def test_masked_is_what_transcribe_says(report, model, manifest) -> None:
    """Another way to the same figure."""
    import jiwer

    asr = Wav2Vec2ASR.from_hparams(model, run_opts={"device": "cpu"})
    rows = list(csv.DictReader(manifest.read_text().splitlines()))
    texts = [asr.transcribe_file(row["wav"], chunk=ChunkConfig(16, 64)) for row in rows]
    wer = 100 * jiwer.wer([row["wrd"] for row in rows], texts)
    assert report[1]["error_rates"][1]["masked"]["WER"] == pytest.approx(wer, abs=0.01)


def test_spaces_are_tokens_too() -> None:
    """Two texts with the same characters at the same times."""
    characters = tuple(Span(text, 0.1 * i, 0.1 * i + 0.02, 1.0) for i, text in enumerate("ABC"))
    one = Transcript("AB C", characters=characters)
    assert evaluate_streaming.tokens(one) != evaluate_streaming.tokens(replace(one, text="A BC"))
    later = (*characters[:2], replace(characters[2], end=0.24))
    assert evaluate_streaming.tokens(one) != evaluate_streaming.tokens(
        replace(one, characters=later)
    )


def test_latencies(report) -> None:
    _, found = report
    rows = found["latencies"]
    assert list(rows) == ["320 ms", "640 ms", "overlap half"]
    assert [row["algorithmic_ms"] for row in rows.values()] == [325, 645, 1505]
    for row in rows.values():
        assert 0 < row["compute_ms"]["p50"] <= row["compute_ms"]["p95"] and row["rtf"] > 0
        assert row["unstable_words"] == 0 and row["state_mib"] > 0
        assert row["final_known_end_ms"]["p50"] > 0 and row["final_known_end_ms"]["n"] == COUNT
        timed = 0 if row["perceived_ms"] is None else row["perceived_ms"]["n"]
        assert row["words"]["timed"] == timed < row["words"]["said"]
        assert row["ends"]["said"] == row["first_text_ms"]["n"] == COUNT
    assert rows["320 ms"]["WER"] == found["error_rates"][1]["streamed"]["WER"]


def test_one_stream(report) -> None:
    """Of two minutes here: the state is what it was after the first."""
    hour = report[1]["one_stream"]
    assert hour["minutes"] == pytest.approx(2, abs=0.2) and hour["WER"] > 0
    assert hour["times_heard"] == pytest.approx(120 / (5.4 + COUNT * 0.5), rel=0.05)
    assert hour["state_bytes_first_third"] == hour["state_bytes_last_third"]
    assert hour["compute_ms_last_third"]["n"] == pytest.approx(60 / 0.32, rel=0.05)
    assert hour["cpu_rtf_first_third"] > 0 and hour["cpu_rtf_last_third"] > 0
    assert hour["resident_mib_end"] >= 50  # PyTorch alone is larger
    assert hour["WER_utterances_alone"] == report[1]["latencies"]["320 ms"]["WER"]


def test_what_it_leaves(report) -> None:
    folder, found = report
    tables = (folder / "tables.md").read_text()
    assert "| 320 ms | 1.28 s |" in tables and "0 of 3" in tables and "overlap half" in tables
    assert (folder / "latency.png").stat().st_size > 10_000
    assert found["commit"] and found["seconds"] == pytest.approx(5.4, abs=0.1)


def test_results_are_not_written_over(report, model, manifest) -> None:
    options = ["--model", str(model), "--manifest", str(manifest)]
    with pytest.raises(CannotStart, match="holds results"):
        evaluate_streaming.main([*options, "--output_folder", str(report[0])])


def test_an_interrupted_run_leaves_what_it_measured(
    model, manifest, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_streaming, "latencies", interrupt)
    options = ["--model", str(model), "--manifest", str(manifest), "--chunks", "320"]
    options += ["--lefts", "all", "--noprogressbar", "--output_folder", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        evaluate_streaming.main(options)
    found = json.loads((tmp_path / "results.json").read_text())
    assert [row["chunk"] for row in found["error_rates"]] == [None, 16]
    assert "| 320 ms | all |" in (tmp_path / "tables.md").read_text()


def test_utterances_that_cannot_be_timed_are_counted(model, manifest, tmp_path) -> None:
    """One has letters that the model does not know, one no text: all its words are errors."""
    rows = list(csv.DictReader(manifest.read_text().splitlines()))
    before = [row["wrd"] for row in rows]
    rows[0]["wrd"] += " 4711"
    rows[1]["wrd"] = ""
    asr = Wav2Vec2StreamingASR.from_hparams(model, run_opts={"device": "cpu"})
    data = evaluate_streaming.Utterances(asr, rows)
    assert [len(spans) > 0 for spans in data.spans] == [False, False, True]
    words = [len(text.split()) for text in before]  # all right, but for one more of each text
    wrong, said = 2 + (words[1] - 1) + 1, words[0] + 1 + words[2]
    heard = [text.removesuffix(" A") for text in before]
    assert data.error_rate(heard)["WER"] == pytest.approx(100 * wrong / said, abs=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--chunks", "330"], "whole frames of 20 ms"),
        (["--chunks", "-320"], "whole frames of 20 ms"),
        (["--lefts", "5.11"], "whole frames of 20 ms"),
        (["--limit", "0"], "--limit of 1"),
        (["--minutes", "1"], "--minutes of 2"),
    ],
)
def test_settings_that_make_no_sense(options, said, tmp_path) -> None:
    """Said before a model is loaded."""
    out = ["--model", "none", "--manifest", "none", "--output_folder", str(tmp_path / "out")]
    with pytest.raises(CannotStart, match=said):
        evaluate_streaming.main([*out, *options])


def test_models_that_cannot_stream(manifest, tmp_path) -> None:
    """Said before anything is computed for long."""
    body = Wav2Vec2(dim=16, layers=1, heads=2, ffn_dim=32, channels=(8,) * 7)
    save_asr(tmp_path / "model", Wav2Vec2CTC(body, vocab_size=32), CharVocabulary())
    options = ["--model", str(tmp_path / "model"), "--manifest", str(manifest)]
    with pytest.raises(evaluate_streaming.NotStreamable, match="overlap"):
        evaluate_streaming.main([*options, "--output_folder", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_some_utterances_from_all_of_the_list() -> None:
    rows = [{"ID": str(i)} for i in range(10)]
    assert [r["ID"] for r in evaluate_streaming.spread_evenly(rows, 4)] == ["0", "2", "5", "7"]
    assert evaluate_streaming.spread_evenly(rows, None) == rows
