"""Wav2Vec2ASR and Wav2Vec2Encoder: the same answer alone or in company, or a clear error."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from w2v_plugin import (
    ChunkConfig,
    Wav2Vec2,
    Wav2Vec2ASR,
    Wav2Vec2CTC,
    Wav2Vec2Encoder,
    export_hf,
)
from w2v_plugin.audio import check_batch, read_audio
from w2v_plugin.errors import BadAudio, NotStreamable
from w2v_plugin.products import available
from w2v_plugin.text import CharVocabulary

CPU = {"device": "cpu"}
SPEECH = Path(
    os.environ.get("W2V_SPEECH", Path(__file__).resolve().parents[2] / "shared" / "speech")
)
LETTERS = "ETAONIHSRDLUMWCFGYPBVK'XJQZ"


def noise(samples, seed=0):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def make_model(extractor_norm="group", **kwargs):
    torch.manual_seed(0)
    shape = {"dim": 32, "layers": 2, "heads": 4, "ffn_dim": 64, "channels": (16,) * 7}
    shape |= {"positions_kernel": 16, "positions_groups": 4, "extractor_norm": extractor_norm}
    shape |= {"normalize": extractor_norm == "group"}
    model = Wav2Vec2CTC(Wav2Vec2(**shape, **kwargs), vocab_size=32).eval()
    with torch.no_grad():  # large weights, no favorite symbol: it says something
        model.head.weight.normal_(std=3.0)
        model.head.bias -= model(noise(16000)[None]).logits.mean((0, 1))
    return model


def make_asr(model=None):
    hparams = {"tokenizer": CharVocabulary()}
    return Wav2Vec2ASR({"model": model or make_model()}, hparams, run_opts=CPU)


@pytest.fixture(scope="module")
def asr():
    return make_asr()


@pytest.fixture(scope="module")
def encoder():
    return Wav2Vec2Encoder({"wav2vec2": make_model().wav2vec2}, {}, run_opts=CPU)


@pytest.fixture
def files(tmp_path):
    """Five wav files of different lengths, not sorted by it."""
    paths = []
    for i, samples in enumerate([9000, 16000, 400, 12345, 7000]):
        paths.append(tmp_path / f"{i}.wav")
        soundfile.write(paths[-1], noise(samples, i).numpy(), 16000, subtype="FLOAT")
    return paths


# --- one answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "chunk"),
    [("group", None), ("layer", None), ("layer", ChunkConfig(chunk=4, left=8))],
)
def test_a_batch_says_what_its_files_say_alone(files, norm, chunk):
    """Any grouping, either family, with and without chunks."""
    asr = make_asr(make_model(norm))
    alone = [asr.transcribe_file(path, chunk=chunk) for path in files]
    assert len(set(alone)) == len(alone)
    for batch_s in (0.1, 1.7, 60):
        together = list(asr.transcribe_files(files, batch_s=batch_s, chunk=chunk))
        assert together == list(zip(files, alone, strict=True))


def test_padding_is_never_heard(asr, encoder):
    """NaN in the padding is not an error and changes nothing."""
    wavs = torch.stack([noise(8000, 1), noise(8000, 2)])
    wav_lens = torch.tensor([1.0, 0.5])
    dirty = wavs.clone()
    dirty[1, 4000:] = float("nan")
    assert asr.transcribe_batch(dirty, wav_lens) == asr.transcribe_batch(wavs, wav_lens)
    assert torch.equal(encoder.encode_batch(dirty, wav_lens), encoder.encode_batch(wavs, wav_lens))


def test_forward_tokens_and_text_agree(asr):
    """`forward` is `transcribe_batch`, and texts are what the tokens spell."""
    wavs = noise(16000)[None]
    texts, tokens = asr(wavs)
    assert (texts, tokens) == asr.transcribe_batch(wavs, torch.ones(1))
    assert texts == [asr.tokenizer.decode_tokens(tokens[0])] != [""]


def test_group_norm_refuses_chunks(asr):
    """Its statistics hear the whole utterance: the error says so and what to do."""
    with pytest.raises(NotStreamable, match="extractor_norm='layer'"):
        asr.transcribe_batch(noise(16000)[None], chunk=ChunkConfig(chunk=16))


def test_chunks_change_what_is_heard():
    """A chunk as long as the file is the whole file; a short one is not."""
    asr = make_asr(make_model("layer"))
    wavs = noise(16000)[None]
    whole = asr.transcribe_batch(wavs)
    assert asr.transcribe_batch(wavs, chunk=ChunkConfig(chunk=49))[0] == whole[0]
    assert asr.transcribe_batch(wavs, chunk=ChunkConfig(chunk=1, left=0))[0] != whole[0]


@pytest.mark.skipif(
    not (available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this CPU has no bf16 instructions",
)
def test_precision_is_honored():
    """bf16 through run_opts: close to fp32, but not the same."""
    wavs = noise(16000)[None]
    full, vectors = (
        Wav2Vec2Encoder({"wav2vec2": make_model().wav2vec2}, {}, CPU | options).encode_batch(wavs)
        for options in ({}, {"precision": "bf16"})
    )
    assert vectors.dtype == torch.float32 and not torch.equal(vectors, full)
    assert torch.nn.functional.cosine_similarity(vectors, full, dim=-1).min() > 0.99


# --- vectors -------------------------------------------------------------------------------------


def test_layers_are_the_hidden_states(encoder):
    """-1 is the context, 0 the input of the first layer, n the output of the n-th."""
    wavs = noise(8000)[None]
    out = encoder.mods["wav2vec2"](wavs, output_hidden_states=True)
    assert torch.equal(encoder.encode_batch(wavs), out.context)
    for layer, hidden in enumerate(out.hidden_states):
        assert torch.equal(encoder.encode_batch(wavs, layer=layer), hidden)


def test_vectors_of_a_batch_are_those_of_its_files(encoder, files):
    """Padded frames are zero, and the mean does not see them."""
    wavs = [read_audio(path) for path in files]
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    wav_lens = torch.tensor([len(wav) / batch.shape[1] for wav in wavs])
    vectors, means = (encoder.encode_batch(batch, wav_lens, pool=pool) for pool in (None, "mean"))
    for path, row, mean in zip(files, vectors, means, strict=True):
        alone = encoder.encode_file(path)
        torch.testing.assert_close(row[: len(alone)], alone, rtol=0, atol=1e-5)
        assert not row[len(alone) :].any()
        torch.testing.assert_close(mean, alone.mean(0), rtol=0, atol=1e-5)
        torch.testing.assert_close(encoder.encode_file(path, pool="mean"), mean)


def test_a_probe_can_be_trained_on_the_vectors(encoder):
    """They carry no gradient, but are ordinary tensors."""
    vectors = encoder.encode_batch(noise(8000)[None])
    probe = torch.nn.Linear(32, 2)
    probe(vectors).sum().backward()
    assert probe.weight.grad.abs().sum() > 0 and not vectors.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "layer=3.*2 layers.*0 to 2"),
        ({"layer": -2}, "layer=-2"),
        ({"pool": "max"}, "mean"),
    ],
)
def test_wrong_layers_and_pools_are_refused(encoder, options, message):
    """Got, expected."""
    with pytest.raises(ValueError, match=message):
        encoder.encode_batch(noise(8000)[None], **options)


# --- bad batches ---------------------------------------------------------------------------------

GOOD = torch.full((2, 800), 0.1)
BAD_BATCHES = {
    "a list": ([[0.0] * 800], None, "expected a tensor"),
    "one waveform": (GOOD[0], None, r"\(800,\).*wav\[None\]"),
    "channels": (GOOD[..., None], None, r"\(2, 800, 1\)"),
    "int16": ((GOOD * 32768).to(torch.int16), None, "int16.*divide.*32768"),
    "no rows": (GOOD[:0], None, "no rows"),
    "no samples": (GOOD[:, :0], None, "row 0: 0 samples"),
    "short": (GOOD[:, :399], None, "row 0: 399 samples.*400"),
    "short valid part": (GOOD, torch.tensor([1.0, 0.4]), "row 1: 320 samples"),
    "NaN": (GOOD.index_fill(1, torch.tensor([7]), float("nan")), None, "row 0: holds NaN"),
    "infinite": (torch.stack([GOOD[0], GOOD[1] / 0]), None, "row 1: holds NaN or inf"),
    "lengths of others": (GOOD, torch.ones(3), r"\(3,\).*2 rows"),
    "absolute lengths": (GOOD, torch.tensor([1.0, 800.0]), r"row 1: wav_lens is 800.0.*\(0, 1\]"),
    "zero length": (GOOD, torch.tensor([0.0, 1.0]), "row 0: wav_lens is 0.0"),
    "NaN length": (GOOD, torch.tensor([1.0, float("nan")]), "row 1: wav_lens is nan"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batches_are_refused(asr, encoder, case):
    """By both interfaces, with the row."""
    wavs, wav_lens, message = BAD_BATCHES[case]
    for call in (asr.transcribe_batch, encoder.encode_batch):
        with pytest.raises(BadAudio, match=message):
            call(wavs, wav_lens)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floats_are_converted(dtype):
    """float64 and float16 become float32; nothing is padding, so no lengths remain."""
    wavs, wav_lens = check_batch(GOOD.to(dtype), torch.ones(2))
    assert wavs.dtype == torch.float32 and wav_lens is None


# --- files ---------------------------------------------------------------------------------------


def write_bad_files(folder):
    """One of each kind -> what the message says about it."""
    sound, rate = noise(16000).numpy(), 16000
    soundfile.write(folder / "short.wav", sound[:399], rate)
    soundfile.write(folder / "headeronly.wav", sound[:0], rate)
    soundfile.write(folder / "nan.wav", np.where(sound > 0.3, np.nan, sound), rate, "FLOAT")
    for name in ("cut.flac", "cut.wav"):
        soundfile.write(folder / name, sound, rate)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "empty.wav").touch()
    (folder / "text.mp3").write_text("This is not audio.\n" * 50)
    return {
        "short.wav": "399 samples.*400",
        "headeronly.wav": "0 samples",
        "nan.wav": "NaN",
        "cut.flac": "cannot be decoded|truncated",
        "cut.wav": "truncated: .*header promises 16000",
        "empty.wav": "cannot be decoded",
        "text.mp3": "cannot be decoded",
        "missing.wav": "no such file",
    }


def test_bad_files_are_named_and_the_others_transcribed(asr, files, tmp_path):
    """Each error names its file; order is kept; good files say what they say alone."""
    bad = write_bad_files(tmp_path)
    paths = [
        path for name, good in zip(bad, files * 2, strict=False) for path in (tmp_path / name, good)
    ]
    results = list(asr.transcribe_files(paths, batch_s=2))
    assert [path for path, _ in results] == paths
    for path, result in results:
        if path.name not in bad:
            assert result == asr.transcribe_file(path)
            continue
        assert isinstance(result, BadAudio)
        with pytest.raises(BadAudio, match=rf"{path.name}: .*({bad[path.name]})"):
            asr.transcribe_file(path)


def test_nothing_to_do_is_no_error(asr):
    """An empty list of files gives an empty list of texts."""
    assert list(asr.transcribe_files([])) == []


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "DOUBLE"])
def test_sample_formats_are_the_same_sound(tmp_path, subtype):
    """Integers of a file are scaled to [-1, 1]."""
    soundfile.write(tmp_path / "a.wav", noise(8000).numpy(), 16000, subtype)
    torch.testing.assert_close(read_audio(tmp_path / "a.wav"), noise(8000), rtol=0, atol=1 / 32768)


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_stereo_at_any_rate_is_its_resampled_mean(asr, tmp_path, rate):
    """Channels are averaged, then brought to 16 kHz."""
    left, right = noise(rate, 1), noise(rate, 2)
    soundfile.write(tmp_path / "a.flac", torch.stack([left, right], 1).numpy(), rate, "PCM_24")
    expected = torchaudio.functional.resample((left + right) / 2, rate, 16000)
    wav = read_audio(tmp_path / "a.flac")
    assert len(wav) == 16000
    torch.testing.assert_close(wav, expected, rtol=0, atol=1e-5)
    assert asr.transcribe_file(tmp_path / "a.flac")


def test_a_wav_written_into_a_pipe_is_not_truncated(tmp_path):
    """Its header claims 4 GB, because the writer did not know."""
    soundfile.write(tmp_path / "a.wav", noise(8000).numpy(), 16000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    assert len(read_audio(tmp_path / "a.wav")) == 8000


# --- published checkpoints -----------------------------------------------------------------------


def write_checkpoint(folder, model, tokens, **settings):
    """A folder as transformers writes it."""
    export_hf(model, folder)
    (folder / "vocab.json").write_text(json.dumps(tokens))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def test_published_checkpoint_with_its_own_vocabulary(tmp_path):
    """Symbols keep their indices; the blank is pad_token_id, wherever that is."""
    model = make_model()
    symbols = [*LETTERS.lower(), "|", "<unk>", "<s>", "</s>", "[PAD]"]
    with torch.no_grad():
        model.head.bias[-4:-1] -= 99.0
    tokens = {symbol: index for index, symbol in enumerate(symbols)}
    folder = write_checkpoint(tmp_path / "hf", model, tokens, pad_token_id=31)
    asr = Wav2Vec2ASR.from_checkpoint(folder, device="cpu")
    wavs = noise(32000)[None]
    best = torch.unique_consecutive(model(wavs).logits[0].argmax(-1)).tolist()
    assert 31 in best
    spelled = "".join(symbols[i] for i in best if i != 31).replace("|", " ")
    assert asr.transcribe_batch(wavs)[0] == [" ".join(spelled.split())]
    encoder = Wav2Vec2Encoder.from_checkpoint(folder, device="cpu")
    torch.testing.assert_close(encoder.encode_batch(wavs), model(wavs).context.detach())


def test_checkpoints_that_cannot_transcribe_say_so(tmp_path):
    """No head, no vocabulary."""
    export_hf(make_model().wav2vec2, tmp_path / "no_head")
    with pytest.raises(ValueError, match=r"no CTC head.*use Wav2Vec2Encoder"):
        Wav2Vec2ASR.from_checkpoint(tmp_path / "no_head", device="cpu")
    Wav2Vec2Encoder.from_checkpoint(tmp_path / "no_head", device="cpu")
    export_hf(make_model(), tmp_path / "no_vocab")
    with pytest.raises(FileNotFoundError, match=r"no vocab\.json.*what the outputs mean"):
        Wav2Vec2ASR.from_checkpoint(tmp_path / "no_vocab", device="cpu")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"deu": {"a": 0}}, "one vocabulary per language"),
        ({"a": 0, "b": 0, "<pad>": 1}, "the same index"),
        ({"a": 0, "b": 1}, "no CTC blank"),
    ],
)
def test_unusable_vocabularies_are_refused(tmp_path, tokens, message):
    """Each with the file."""
    (tmp_path / "vocab.json").write_text(json.dumps(tokens))
    with pytest.raises(ValueError, match=rf"vocab\.json: .*{message}"):
        CharVocabulary.from_vocab_json(tmp_path / "vocab.json")


def test_added_tokens_and_other_delimiters(tmp_path):
    """transformers 5 lists <s> and </s> in tokenizer_config.json; older ones in added_tokens."""
    (tmp_path / "vocab.json").write_text('{"a": 0, " ": 1, "[UNK]": 2, "[PAD]": 3}')
    decoder = {"4": {"content": "<s>"}, "3": {"content": "[PAD]"}}
    settings = {"word_delimiter_token": " ", "added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "added_tokens.json").write_text('{"</s>": 5}')
    vocabulary = CharVocabulary.from_vocab_json(tmp_path / "vocab.json")
    assert len(vocabulary) == 6 and vocabulary.letters == ["a"]
    assert vocabulary.decode_tokens([4, 0, 1, 2, 0, 5]) == "a a"
    assert vocabulary.encode_text("a a") == [0, 1, 0]


# --- real speech ---------------------------------------------------------------------------------


@pytest.mark.skipif(not SPEECH.is_dir(), reason="set W2V_SPEECH to a folder of real speech")
def test_real_files_of_several_formats(asr, encoder):
    """16 kHz flac, 8 kHz flac and ogg opus are read, and a batch says what each says alone."""
    kinds = ("LibriSpeech/**/*.flac", "digits_fsdd/**/*.flac", "german_*/**/*.o*")
    paths = [path for kind in kinds for path in sorted(SPEECH.glob(kind))[:2]]
    assert len(paths) == 6
    alone = [asr.transcribe_file(path) for path in paths]
    assert [text for _, text in asr.transcribe_files(paths)] == alone
    assert encoder.encode_file(paths[0], pool="mean").isfinite().all()
