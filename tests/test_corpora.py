"""Several corpora: shares by temperature, every utterance in its turn, names that differ."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import soundfile
import torch

from w2v_plugin.corpora import Corpus, ManifestSpeech, Mixture
from w2v_plugin.data import training_loader
from w2v_plugin.errors import BadManifest
from w2v_plugin.manifests import Utterance, write_manifest
from w2v_plugin.sampling import CropSampler


def corpus(folder: Path, name: str, seconds: list[float]) -> Path:
    """A manifest of noise; IDs are the same in every corpus."""
    (folder / name).mkdir()
    utterances = []
    for i, duration in enumerate(seconds):
        path = folder / name / f"{i}.wav"
        soundfile.write(path, 0.1 * torch.randn(round(16_000 * duration)).numpy(), 16_000)
        utterances.append(Utterance(f"u{i}", path, name))
    write_manifest(folder / f"{name}.csv", utterances)
    return folder / f"{name}.csv"


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """18 s of one language, 2 s of another."""
    folder = tmp_path_factory.mktemp("corpora")
    return {
        "large": corpus(folder, "large", [0.5 + 0.05 * (i % 5) for i in range(30)]),
        "small": corpus(folder, "small", [0.5, 0.6, 0.4, 0.5]),
    }


def test_one_corpus_is_heard_pass_by_pass(manifests: dict[str, Path]) -> None:
    """Everything once in each block, in another order."""
    speech = ManifestSpeech({"": manifests["large"]}, seed=1)
    orders = []
    for number in range(3):
        items, lengths = speech.block(0, number)
        orders.append(items)
        assert sorted(items) == [(0, row) for row in range(30)]
        assert lengths.tolist() == [int(speech.lengths[0][row]) for _, row in items]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_shares_of_what_is_heard(manifests: dict[str, Path], temperature: float) -> None:
    """Of 100 blocks, in seconds, to 2 %: crops take a little from the longer ones."""
    speech = ManifestSpeech(manifests, temperature=temperature)
    seconds = [c.seconds for c in speech.mixture.corpora]
    weights = [s**temperature for s in seconds]
    heard = Counter[int]()
    for batch in CropSampler(speech, budget_s=4.0, crop_s=4.0, batches=500):
        for window in batch:
            heard[window.item[0]] += window.samples
    share = heard[1] / heard.total()
    assert share == pytest.approx(weights[1] / sum(weights), rel=0.05)
    assert speech.mixture.shares[1] == pytest.approx(weights[1] / sum(weights))


def test_nothing_is_repeated_before_all_was_heard(manifests: dict[str, Path]) -> None:
    """Within a corpus, over the borders of blocks, whatever its share."""
    speech = ManifestSpeech(manifests, temperature=0.5, seed=5)
    for which, size in enumerate((30, 4)):
        order = [i for n in range(20) for i in speech.block(0, n)[0] if i[0] == which]
        for begin in range(0, len(order) - size, size):
            assert len(set(order[begin : begin + size])) == size


def test_the_order_follows_from_the_seed(manifests: dict[str, Path]) -> None:
    one, same, other = (ManifestSpeech(manifests, temperature=0.5, seed=s) for s in (1, 1, 2))
    assert one.block(0, 7)[0] == same.block(0, 7)[0] != other.block(0, 7)[0]


def test_names_tell_corpora_apart(manifests: dict[str, Path]) -> None:
    """Both have u0 ... u3; one batch mixes both."""
    speech = ManifestSpeech(manifests, temperature=0.0)
    (batch,) = training_loader(speech, batch_s=60, crop_s=2, batches=1)
    assert {name.split("/")[0] for name in batch.id} == {"large", "small"}
    assert "large/u0" in batch.id and "small/u0" in batch.id


def test_the_table_names_hours_and_shares() -> None:
    text = str(Mixture([Corpus("de", 90, 36_000.0), Corpus("ka", 10, 3600.0)], 0.5))
    assert text.splitlines() == [
        "de: 10.00 h, 90 utterances, 76.0 % of training",
        "ka: 1.00 h, 10 utterances, 24.0 % of training",
    ]


@pytest.mark.parametrize("block_s", [3.0, 50.0, None])
def test_spans_follow_each_other(block_s: float | None) -> None:
    """No gap, no overlap, and the long run has the right number, also below one per block."""
    mixture = Mixture([Corpus("a", 100, 1000.0), Corpus("b", 7, 50.0)], 0.5, block_s)
    for which, per_block in enumerate(mixture.per_block):
        ends = [mixture.spans(n)[which] for n in range(1000)]
        assert all(a[1] == b[0] for a, b in pairwise(ends))
        assert ends[-1][1] == pytest.approx(1000 * per_block, abs=0.5)


def test_short_utterances_are_left_out(manifests: dict[str, Path]) -> None:
    assert len(ManifestSpeech({"": manifests["small"]}, min_s=0.45).names[0]) == 3
    with pytest.raises(BadManifest, match="no usable utterance"):
        ManifestSpeech({"": manifests["small"]}, min_s=2.0)
