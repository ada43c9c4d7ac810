"""Shards: the audio of the files, in one order whoever reads it, with gaps where one is broken."""

from __future__ import annotations

import http.server
import importlib.util
import json
import logging
import math
import pickle
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from speechbrain.utils.checkpoints import Checkpointer

from w2v_plugin.audio import read_audio
from w2v_plugin.corpora import ManifestSpeech
from w2v_plugin.data import TrainingLoader, training_loader
from w2v_plugin.errors import BadManifest
from w2v_plugin.manifests import Utterance, write_manifest
from w2v_plugin.sampling import CropSampler
from w2v_plugin.shard_files import ShardIndex, read_shard, write_shards
from w2v_plugin.shards import ShardSpeech, pretraining_speech

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("webdataset", reason="needs the extra `shards`: pip install webdataset")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on few cores


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty utterances of noise, 0.5-1.1 s; one ID has a dot and a slash."""
    folder = tmp_path_factory.mktemp("corpus")
    utterances = []
    for i in range(60):
        generator = torch.Generator().manual_seed(i)
        wav = 0.1 * torch.randn(8000 + 160 * i, generator=generator)
        path = folder / f"{i}.{('flac', 'wav')[i % 2]}"
        soundfile.write(path, wav.numpy(), 16_000)
        utterances.append(Utterance("b.ad/id" if i == 7 else f"u{i}", path, f"s{i % 3}", "go on"))
    write_manifest(folder / "all.csv", utterances)
    return folder / "all.csv"


@pytest.fixture
def index(manifest: Path, tmp_path: Path) -> Path:
    """About seven shards."""
    return write_shards(manifest, tmp_path / "shards", name="all", shard_mb=0.2).index


def lines(index: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in index.read_text().splitlines()]


def loader(speech: ShardSpeech, **settings: Any) -> TrainingLoader:
    settings = {"batch_s": 4.0, "crop_s": 1.0, "batches": 40, "seed": 3} | settings
    return training_loader(speech, **settings)


Batches = list[tuple[list[str], torch.Tensor]]


def heard(batches: TrainingLoader, epoch: int = 1) -> Batches:
    batches.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return [(batch.id, batch.sig.data) for batch in batches]


def same(a: Batches, b: Batches) -> bool:
    return len(a) == len(b) and all(
        x[0] == y[0] and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True)
    )


def speech(index: Path, **settings: Any) -> ShardSpeech:
    return ShardSpeech({"": index}, **{"seed": 5, "block_s": 9.0, **settings})


# --- writing -------------------------------------------------------------------------------------


def test_shards_hold_the_files_as_they_were(manifest: Path, index: Path) -> None:
    """Byte for byte, in random order, with what the manifest says; the index counts them."""
    found = {}
    for line in lines(index):
        with tarfile.open(index.parent / line["shard"]) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert {name.split(".")[0] for name in members} == set(line["samples"])
        assert len(line["samples"]) == line["utterances"]
        for key, samples in line["samples"].items():
            about = json.loads(members[f"{key}.json"])
            (suffix,) = {"wav", "flac"} & {n.split(".")[1] for n in members if n.startswith(key)}
            found[about["id"]] = members[f"{key}.{suffix}"]
            assert about["text"] == "go on" and about["speaker"] in {"s0", "s1", "s2"}
            assert samples == round(about["duration"] * 16_000)
    assert len(lines(index)) > 4 and len(found) == 60
    for i in range(60):
        path = manifest.parent / f"{i}.{('flac', 'wav')[i % 2]}"
        assert found["b.ad/id" if i == 7 else f"u{i}"] == path.read_bytes()
    assert list(found) != sorted(found)


def test_writing_again_gives_the_same_bytes(manifest: Path, index: Path, tmp_path: Path) -> None:
    again = write_shards(manifest, tmp_path / "again", name="all", shard_mb=0.2).index
    assert again.read_bytes() == index.read_bytes()
    for line in lines(index):
        shards = [folder / line["shard"] for folder in (index.parent, again.parent)]
        assert shards[0].read_bytes() == shards[1].read_bytes()


def test_files_that_are_gone_are_left_out(manifest: Path, tmp_path: Path) -> None:
    """With a count; nothing at all is an error."""
    rows = manifest.read_text().replace("/3.wav", "/gone.wav")
    (tmp_path / "some.csv").write_text(rows)
    summary = write_shards(tmp_path / "some.csv", tmp_path / "some", name="some")
    assert (summary.utterances, summary.skipped, summary.shards) == (59, 1, 1)
    assert "59 utterances, 0.01 h; 1 could not be read" in str(summary)
    (tmp_path / "none.csv").write_text(manifest.read_text().replace(str(manifest.parent), "/no"))
    with pytest.raises(BadManifest, match="none of its 60 audio files can be read"):
        write_shards(tmp_path / "none.csv", tmp_path / "none", name="none")


# --- the index -----------------------------------------------------------------------------------


def test_the_index_knows_counts_and_lengths(index: Path) -> None:
    found = ShardIndex(index, min_s=0.7)
    kept = [{k: n for k, n in line["samples"].items() if n >= 11_200} for line in lines(index)]
    assert found.counts == [len(samples) for samples in kept]
    assert [found.lengths(i) for i in range(len(kept))] == kept
    assert found.seconds == pytest.approx(sum(sum(s.values()) for s in kept) / 16_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.unlink(), "no such index"),
        (lambda index: index.write_text("{}\n"), r"index.jsonl:1: not a line of a shard index"),
        (lambda index: index.write_text('{"shard": '), "index.jsonl:1: not a line"),
        (lambda index: (index.parent / "all-000001.tar").unlink(), "all-000001.tar: no such shard"),
    ],
)
def test_a_bad_index_is_refused_before_training(index: Path, change: Any, message: str) -> None:
    change(index)
    with pytest.raises(BadManifest, match=message):
        ShardIndex(index)


def test_settings_that_leave_nothing(index: Path) -> None:
    with pytest.raises(BadManifest, match="no utterance of 2 s or more"):
        ShardIndex(index, min_s=2.0)
    with pytest.raises(BadManifest, match=r"expected \{\} where the shard's name goes"):
        ShardIndex(index, urls="https://host/shards")


# --- the order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
def test_lanes_share_every_pass(index: Path, ranks: int) -> None:
    """All lanes of all ranks together visit each shard once in a pass, then in another order."""
    source = speech(index, ranks=ranks)
    shards, lanes = len(lines(index)), source.lanes
    visits = [source.orders[0][n % lanes].visit(n // lanes) for n in range(5 * shards)]
    passes = [visits[i : i + shards] for i in range(0, len(visits), shards)]
    assert all(sorted(one) == list(range(shards)) for one in passes) and passes[0] != passes[1]


def test_every_utterance_is_heard_equally_often(index: Path) -> None:
    """Over many blocks of every lane, up to the visits that have only begun."""
    source = speech(index)
    counts = Counter[str]()
    for lane in range(source.lanes):
        for block in range(40):
            for _, _, _, visit, place in source.block(lane, block)[0]:
                counts[list(source.keys(0, lane, visit))[place]] += 1
    assert len(counts) == 60 and max(counts.values()) - min(counts.values()) <= source.lanes + 1
    assert min(counts.values()) > 10


@pytest.mark.parametrize("block_s", [0.3, 2.0, 9.0, 500.0])
def test_blocks_follow_each_other(index: Path, block_s: float) -> None:
    """No gap and no repeat within a visit, whatever the size of blocks and shards."""
    source = speech(index, block_s=block_s)
    for lane in range(source.lanes):
        items = [item for block in range(30) for item in source.block(lane, block)[0]]
        expected: list[tuple[int, int]] = []
        while len(expected) < len(items):
            visit = expected[-1][0] + 1 if expected else 0
            expected += [(visit, place) for place in range(len(source.keys(0, lane, visit)))]
        assert [item[3:] for item in items] == expected[: len(items)]


# --- reading -------------------------------------------------------------------------------------


def test_windows_are_parts_of_the_files(manifest: Path, index: Path) -> None:
    """The audio of each window stands in the file of its name, at the place that was drawn."""
    source = speech(index)
    sampler = CropSampler(source, budget_s=4.0, crop_s=0.6, batches=30, seed=1)
    for windows in sampler:
        for window, example in zip(windows, source.__getitems__(windows), strict=True):
            name = example["id"].split("-", 1)[1]
            number = 7 if name == "b_ad_id" else int(name[1:])
            path = manifest.parent / f"{number}.{('flac', 'wav')[number % 2]}"
            whole = read_audio(path)
            assert torch.equal(example["sig"], whole[window.start :][: window.samples])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(index: Path, workers: int) -> None:
    """Any number of them, in two epochs; three do not divide the lanes and read twice."""
    alone, helped = loader(speech(index)), loader(speech(index), workers=workers)
    assert same(heard(alone), heard(helped)) and same(heard(alone, 2), heard(helped, 2))


def test_a_run_resumes_in_the_middle_and_opens_only_what_it_needs(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Position 30 of the second epoch, after many shards: as the uninterrupted run."""
    whole = heard(loader(speech(index)), epoch=2)
    first = loader(speech(index))
    first.batch_sampler.set_epoch(2)  # type: ignore[union-attr]
    batches = iter(first)
    for _ in range(30):
        next(batches)
    Checkpointer(tmp_path / "save", {"loader": first}).save_checkpoint(end_of_epoch=False)
    opened = []

    def spy(url: str, complain: Any) -> Iterator[tuple[str, bytes]]:
        opened.append(url)
        return read_shard(url, complain)

    monkeypatch.setattr("w2v_plugin.shards.read_shard", spy)
    fresh = loader(speech(index))
    Checkpointer(tmp_path / "save", {"loader": fresh}).recover_if_possible()
    assert same(heard(fresh, epoch=2), whole[30:])
    everything = len(opened)
    opened.clear()
    from_start = loader(speech(index), batches=80)
    assert same(heard(from_start)[40:], whole) and everything < len(opened)


def test_ranks_hear_different_shards_at_a_time(index: Path) -> None:
    """As many batches on each, and never the same window."""
    settings = {"budget_s": 4.0, "crop_s": 1.0, "batches": 40, "ranks": 2}
    streams = [CropSampler(speech(index, ranks=2), rank=rank, **settings) for rank in range(2)]
    one, other = ({window for batch in stream for window in batch} for stream in streams)
    assert one and other and not one & other


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_shard_leaves_gaps(
    index: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    """What was readable is the same as before, the rest is missing, named and counted."""
    whole = heard(loader(speech(index)))
    shard = index.parent / "all-000002.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        broken = heard(loader(speech(index), workers=workers))
    assert len(broken) == len(whole)
    names = [set(lines(index)[i]["samples"]) for i in range(len(lines(index)))]
    missing = set()
    for (a, _), (b, wavs) in zip(whole, broken, strict=True):
        if wavs.any():  # a batch of nothing is a moment of silence
            assert set(b) <= set(a)
        missing |= set(a) - set(b)
    assert 2 < len(missing) < len(names[2]) and missing < names[2]
    assert "Left out of this epoch's batches" in caplog.text
    if workers == 0:  # workers write to the log of their own process
        assert len(re.findall(r"Left out \(\d+ so far\)", caplog.text)) == 1


def test_a_damaged_member_is_left_out(index: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next one is read."""
    shard = index.parent / "all-000001.tar"
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        member = next(m for m in tar if m.name.endswith("flac"))
    data[member.offset_data : member.offset_data + member.size] = bytes(member.size)
    shard.write_bytes(data)
    key = member.name.split(".")[0]
    with caplog.at_level(logging.WARNING):
        ids = {name for batch, _ in heard(loader(speech(index), batches=120)) for name in batch}
    assert len(ids) == 59 and key not in ids
    assert caplog.text.count(f"{key}: cannot be decoded") == 1


def test_a_shard_that_vanished_does_not_end_the_run(
    index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = speech(index)
    (index.parent / "all-000000.tar").unlink()
    with caplog.at_level(logging.WARNING):
        batches = heard(loader(source, batches=80))
    assert len(batches) == 80 and "No such file" in caplog.text


def test_workers_that_are_not_forked(index: Path) -> None:
    """What is open stays here; a copy reads for itself."""
    source = speech(index)
    sampler = CropSampler(source, budget_s=4.0, crop_s=1.0, batches=6)
    first = [source.__getitems__(windows) for windows in sampler]
    copy = pickle.loads(pickle.dumps(source))
    for windows, expected in zip(sampler, first, strict=True):
        for a, b in zip(copy.__getitems__(windows), expected, strict=True):
            assert a["id"] == b["id"] and torch.equal(a["sig"], b["sig"])


# --- from elsewhere ------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(index: Path) -> Iterator[str]:
    handler = partial(Quiet, directory=str(index.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as one:
        thread = threading.Thread(target=one.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{one.server_address[1]}/{{}}"
        one.shutdown()
        thread.join()


def test_over_http(index: Path, server: str) -> None:
    """The same batches, and the shards need not be beside the index."""
    expected = heard(loader(speech(index)))
    assert same(heard(loader(speech(index, urls=server))), expected)


def test_from_a_command(index: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Read to its end or not, a command is no reason for a warning; one that fails is."""
    expected = heard(loader(speech(index)))
    with caplog.at_level(logging.WARNING):
        urls = f"pipe:cat {index.parent}/{{}}"
        assert same(heard(loader(speech(index, urls=urls))), expected)
    assert not caplog.text
    complaints: list[str] = []
    command = f"pipe:head -c 100000 {index.parent}/all-000000.tar; exit 3"
    found = dict(read_shard(command, complaints.append))
    assert 0 < len(found) < lines(index)[0]["utterances"] and len(complaints) == 1


# --- several corpora, and how recipes name them --------------------------------------------------


def test_corpora_are_mixed_by_temperature(index: Path, manifest: Path, tmp_path: Path) -> None:
    """Ten times the hours, square root: 3.16 times the share; to 5 % over 60 blocks."""
    rows = manifest.read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(rows[:7]) + "\n")
    few = write_shards(tmp_path / "few.csv", tmp_path / "few", name="few").index
    source = ShardSpeech({"all": index, "few": few}, temperature=0.5, block_s=9.0)
    a, b = (corpus.seconds for corpus in source.mixture.corpora)
    seconds = Counter[int]()
    for lane in range(source.lanes):
        for block in range(60):
            items, lengths = source.block(lane, block)
            for item, samples in zip(items, lengths.tolist(), strict=True):
                seconds[item[2]] += samples
    assert seconds[0] / seconds[1] == pytest.approx((a / b) ** 0.5, rel=0.05)
    names = {name.split("/")[0] for batch, _ in heard(loader(source)) for name in batch}
    assert names == {"all", "few"}


def test_recipes_name_any_of_them(manifest: Path, index: Path) -> None:
    assert isinstance(pretraining_speech(manifest, min_s=0.1), ManifestSpeech)
    assert isinstance(pretraining_speech(str(index)), ShardSpeech)
    both = pretraining_speech({"a": index, "b": index}, ranks=2, temperature=0.5)
    assert isinstance(both, ShardSpeech) and both.lanes == 8
    for bad in ({}, {"a": index, "b": manifest}):
        with pytest.raises(BadManifest, match="all of them manifests or all of them indices"):
            pretraining_speech(bad)


@pytest.mark.parametrize("text", ["just words", "[a.csv]", "a: {b: c}", "a: [", "a: 3"])
def test_a_list_of_corpora_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "corpora.yaml"
    path.write_text(text)
    with pytest.raises(BadManifest, match=r"corpora\.yaml: (expected|cannot be read)"):
        pretraining_speech(path)


def recipe(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "recipes" / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line(manifest: Path, tmp_path: Path, capsys: Any) -> None:
    """A folder of shards and one line; what cannot be used is one line on stderr."""
    shards = recipe("prepare/shards.py")
    assert shards.main([f"--manifest={manifest}", f"--out={tmp_path}/s", "--shard_mb=0.5"]) == 0
    assert "60 utterances" in capsys.readouterr().out and (tmp_path / "s/all-000002.tar").is_file()
    assert shards.main([f"--manifest={tmp_path}/no.csv", f"--out={tmp_path}/t"]) == 2
    assert "no such manifest" in capsys.readouterr().err


def test_pretraining_reads_shards(manifest: Path, index: Path, tmp_path: Path) -> None:
    """The recipe, from two corpora and through a pipe; losses are numbers, audio was heard."""
    listed = tmp_path / "corpora.yaml"
    listed.write_text(f"a: {index}\nb: shards/index.jsonl\n")
    recipe("pretrain.py").main(
        [
            str(ROOT / "hparams/pretrain/tiny.yaml"),
            "--device=cpu",
            "--noprogressbar",
            f"--train_csv={listed}",
            f"--shard_urls=pipe:cat {index.parent}/{{}}",
            f"--valid_csv={manifest}",
            f"--output_folder={tmp_path}/run",
            "--wav2vec2={dim: 16, layers: 1, heads: 2, ffn_dim: 32, channels: [8,8,8,8,8,8,8]}",
            "--quantizer={channels: 8, codes: 20, dim: 8}",
            "--updates=4",
            "--valid_every=2",
            "--log_every=1",
            "--batch_s=4",
            "--warm_start_updates=2",
        ]
    )
    records = map(json.loads, (tmp_path / "run/steps.jsonl").read_text().splitlines())
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 4 and all(map(math.isfinite, losses))
    assert (tmp_path / "run/model").is_dir()
