"""Model folders: what is written is what every loader reads, and nothing else."""

import copy
import errno
import re

import pytest
import soundfile
import torch
import yaml
from speechbrain.inference.ASR import EncoderASR

from w2v_plugin import Wav2Vec2, Wav2Vec2ASR, Wav2Vec2CTC, Wav2Vec2Encoder
from w2v_plugin.compression import optimize
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.folders import load_head, load_pretrained, save_asr, save_pretrained
from w2v_plugin.hf_export import export_hf
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer
from w2v_plugin.text import CharVocabulary

CPU = {"device": "cpu"}
WAVS, LENS = torch.randn(3, 12000, generator=torch.Generator().manual_seed(3)), [1.0, 0.7, 0.31]


def tiny(**kwargs):
    shape = {"dim": 32, "layers": 2, "heads": 4, "ffn_dim": 64, "channels": (16,) * 7}
    return Wav2Vec2(**{**shape, "positions_kernel": 16, "positions_groups": 4, **kwargs}).eval()


def tiny_ctc(vocab_size=32, **kwargs):
    """A model that says something: large head weights, and no favorite symbol."""
    torch.manual_seed(0)
    model = Wav2Vec2CTC(tiny(**kwargs), vocab_size=vocab_size).eval()
    with torch.no_grad():
        model.head.weight.normal_(std=3.0)
        model.head.bias -= model(WAVS).logits.mean((0, 1))
    return model


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_ours_and_stock_speechbrain_read_the_same_text(tmp_path, norm):
    """`EncoderASR`, which knows nothing of us, loads the folder and agrees, batch included."""
    save_asr(tmp_path / "model", tiny_ctc(extractor_norm=norm), CharVocabulary())
    ours = Wav2Vec2ASR.from_hparams(source=tmp_path / "model", run_opts=CPU)
    stock = EncoderASR.from_hparams(
        source=str(tmp_path / "model"), savedir=tmp_path / "stock", run_opts=CPU
    )
    texts, tokens = ours.transcribe_batch(WAVS, torch.tensor(LENS))
    theirs, their_tokens = stock.transcribe_batch(WAVS, torch.tensor(LENS))
    assert all(texts) and len(set(texts)) == 3
    assert [" ".join(text.split()) for text in theirs] == texts
    assert [list(row) for row in their_tokens] == tokens


def test_loaded_weights_equal_the_saved_ones(tmp_path):
    """Logits of the loaded model are those of the saved one made ready likewise, bit for bit."""
    model = tiny_ctc(norm_first=True, extractor_norm="layer", conv_bias=True)
    save_asr(tmp_path, model, CharVocabulary())
    asr = Wav2Vec2ASR.from_hparams(source=tmp_path, run_opts=CPU)
    with torch.no_grad():
        ready = optimize(copy.deepcopy(model))
        assert torch.equal(asr.mods["model"](WAVS).logits, ready(WAVS).logits)
    assert asr.mods["model"].wav2vec2.config == model.wav2vec2.config | {
        name: list(model.wav2vec2.config[name]) for name in ("channels", "kernels", "strides")
    }


def test_all_kinds_of_folder_load_in_the_encoder_and_for_fine_tuning(tmp_path):
    """A body, a pretraining and an ASR folder of the same encoder give the same vectors."""
    model = tiny_ctc()
    save_pretrained(tmp_path / "body", model.wav2vec2)
    whole = Wav2Vec2Pretraining(model.wav2vec2, GumbelQuantizer(16, codes=5, dim=8), dim=8)
    save_pretrained(tmp_path / "pretrained", whole)
    save_asr(tmp_path / "asr", model, CharVocabulary())
    for kind in ("body", "pretrained", "asr"):
        encoder = Wav2Vec2Encoder.from_hparams(source=tmp_path / kind, run_opts=CPU)
        other = tiny()
        load_pretrained(tmp_path / kind, other)
        with torch.no_grad():
            vectors = encoder.encode_batch(WAVS)  # packed: sums in another order
            assert torch.allclose(vectors, model.wav2vec2(WAVS).context, atol=1e-5)
            assert torch.equal(other(WAVS).context, model.wav2vec2(WAVS).context)


@pytest.mark.parametrize("full", ["wav2vec2.ckpt", "head.ckpt"])
def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path, monkeypatch, full):
    """Saved over an older model: that one stays loadable, and nothing half lies beside it."""
    save_asr(tmp_path, tiny_ctc(), CharVocabulary())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save = torch.save

    def full_disk(content, path):
        if path.name != full:
            return save(content, path)
        path.write_bytes(b"half of")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(torch, "save", full_disk)
        save_asr(tmp_path, tiny_ctc(norm_first=True), CharVocabulary())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save_asr(tmp_path, tiny_ctc(norm_first=True), CharVocabulary())
    assert Wav2Vec2ASR.from_hparams(source=tmp_path, run_opts=CPU)


def test_loading_leaves_nothing_in_the_working_folder(tmp_path, monkeypatch):
    """SpeechBrain likes to link the files of a model into the current folder."""
    save_asr(tmp_path / "model", tiny_ctc(), CharVocabulary())
    before = sorted(path.name for path in (tmp_path / "model").iterdir())
    monkeypatch.chdir(tmp_path)
    Wav2Vec2ASR.from_hparams(source="model", run_opts=CPU)
    Wav2Vec2Encoder.from_hparams(source="model", run_opts=CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before


def test_any_letters_survive_the_folder(tmp_path):
    """Letters that mean something to YAML, combining marks, and `Y`, which YAML calls true."""
    letters = [*"NYnyéß0~!#:'\"{}[]%,&*?്മ", "1", "!ref", "null"]
    vocabulary = CharVocabulary(letters)
    save_asr(tmp_path, tiny_ctc(len(vocabulary)), vocabulary)
    asr = Wav2Vec2ASR.from_hparams(source=tmp_path, run_opts=CPU)
    assert asr.tokenizer.letters == letters
    assert asr.tokenizer.lab2ind == vocabulary.lab2ind
    assert yaml.compose((tmp_path / "hyperparams.yaml").read_text(encoding="utf-8"))


def test_a_published_vocabulary_survives_the_folder(tmp_path):
    """Blank last, no <s>: indices come from tokenizer.ckpt, and so does the blank."""
    (tmp_path / "vocab.json").write_text('{"a": 0, "|": 1, "b": 2, "[UNK]": 3, "[PAD]": 4}')
    vocabulary = CharVocabulary.from_vocab_json(tmp_path / "vocab.json")
    save_asr(tmp_path / "model", tiny_ctc(5), vocabulary)
    asr = Wav2Vec2ASR.from_hparams(source=tmp_path / "model", run_opts=CPU)
    assert asr.tokenizer.lab2ind == vocabulary.lab2ind
    assert asr.tokenizer.get_blank_index() == 4
    assert asr.tokenizer.decode_tokens([0, 1, 3, 2]) == "a b"
    asr.transcribe_batch(WAVS)


def test_a_head_goes_on_only_with_the_same_characters(tmp_path):
    """Fine-tuning a fine-tuned model on more audio; for another language the head is new."""
    trained, vocabulary = tiny_ctc(), CharVocabulary()
    save_asr(tmp_path / "asr", trained, vocabulary)
    save_pretrained(tmp_path / "body", trained.wav2vec2)
    for folder, letters, kept in [
        ("asr", vocabulary.lab2ind, True),
        ("asr", CharVocabulary("".join(reversed("ETAONIHSRDLUMWCFGYPBVK'XJQZ"))).lab2ind, False),
        ("body", vocabulary.lab2ind, False),
    ]:
        model = Wav2Vec2CTC(tiny(), vocab_size=32)
        fresh = model.head.weight.clone()
        asked = CharVocabulary.from_symbols(letters, "<pad>")
        assert load_head(tmp_path / folder, model, asked) == kept
        assert torch.equal(model.head.weight, trained.head.weight if kept else fresh)


def test_a_published_head_goes_on_only_with_the_same_characters(tmp_path, caplog):
    """And says so where it does not; blank and special symbols may be called otherwise."""
    trained = tiny_ctc()
    export_hf(trained, tmp_path / "hf", CharVocabulary())
    export_hf(trained.wav2vec2, tmp_path / "body")
    export_hf(trained, tmp_path / "nameless")
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "|", *CharVocabulary().letters]  # as in fairseq
    fairseq = CharVocabulary.from_symbols({x: i for i, x in enumerate(symbols)}, "<s>")
    other = CharVocabulary("".join(reversed(CharVocabulary().letters)))
    for source, asked, message in [
        ("hf", CharVocabulary(), None),
        ("hf", fairseq, None),
        ("hf", other, "The head is new, that of .*hf speaks of other characters"),
        ("hf", CharVocabulary("AB"), "speaks of other characters"),
        ("nameless", CharVocabulary(), r"The head is new, nothing says .*vocab\.json"),
        ("body", CharVocabulary(), ""),
    ]:
        caplog.clear()
        model = Wav2Vec2CTC(tiny(), vocab_size=len(asked))
        fresh = model.head.weight.clone()
        assert load_head(tmp_path / source, model, asked) == (message is None)
        assert torch.equal(model.head.weight, trained.head.weight if message is None else fresh)
        warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(warnings) == bool(message) and re.search(message or "", " ".join(warnings))


def test_quiet_audio_sounds_as_it_did_in_pretraining(tmp_path):
    """What is added to the variance comes with the weights, and is saved with them again."""
    quiet, trained = WAVS * 1e-3, tiny(normalize_eps=1e-5)
    save_pretrained(tmp_path / "source", trained)
    model, again = tiny(), tiny()
    load_pretrained(tmp_path / "source", model)
    save_pretrained(tmp_path / "model", model)
    load_pretrained(tmp_path / "model", again)
    with torch.no_grad():
        expected = trained(quiet).context
        assert torch.equal(model(quiet).context, expected)
        assert torch.equal(again(quiet).context, expected)


def test_misshapen_weights_are_named(tmp_path):
    """A folder whose weights belong to another model is refused, with the key."""
    save_asr(tmp_path, tiny_ctc(), CharVocabulary())
    state = torch.load(tmp_path / "wav2vec2.ckpt", weights_only=True)
    state["projection.linear.weight"] = torch.zeros(32, 8)
    torch.save(state, tmp_path / "wav2vec2.ckpt")
    with pytest.raises(CheckpointMismatch, match=r"projection\.linear\.weight.*\(32, 8\)"):
        Wav2Vec2ASR.from_hparams(source=tmp_path, run_opts=CPU)


def test_missing_weights_are_named(tmp_path):
    """Copying half a folder is a common accident."""
    save_asr(tmp_path, tiny_ctc(), CharVocabulary())
    (tmp_path / "head.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"head\.ckpt"):
        Wav2Vec2ASR.from_hparams(source=tmp_path, run_opts=CPU)
    (tmp_path / "wav2vec2.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match="called model/"):
        load_pretrained(tmp_path, tiny())


@pytest.mark.parametrize(
    ("key", "value"), [("heads", 2), ("norm_first", True), ("normalize", False)]
)
def test_another_architecture_of_the_same_shapes_is_refused(tmp_path, key, value):
    """Weights would load; the answer would be another. The message says how to build it alike."""
    save_pretrained(tmp_path, tiny())
    other = Wav2Vec2(**{**tiny().config, key: value})
    with pytest.raises(CheckpointMismatch, match=rf"{key}=.*--wav2vec2 '\{{{key}: "):
        load_pretrained(tmp_path, other)
    load_pretrained(tmp_path, tiny())


def test_an_output_folder_is_not_a_model_folder(tmp_path):
    """The message names the folder inside it that is."""
    save_asr(tmp_path / "model", tiny_ctc(), CharVocabulary())
    (tmp_path / "hyperparams.yaml").write_text("seed: 1")
    with pytest.raises(FileNotFoundError, match="its model is"):
        Wav2Vec2ASR.from_hparams(source=tmp_path)


def test_wrong_folders_say_what_to_do(tmp_path):
    """No folder, another kind of folder, a folder without a head."""
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Wav2Vec2ASR.from_hparams(source=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no hyperparams\.yaml.*written by training"):
        Wav2Vec2ASR.from_hparams(source=tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="from_checkpoint"):
        Wav2Vec2Encoder.from_hparams(source=tmp_path)
    save_pretrained(tmp_path, tiny())
    with pytest.raises(ValueError, match="has no head: fine-tune it, or use Wav2Vec2Encoder"):
        Wav2Vec2ASR.from_hparams(source=tmp_path, run_opts=CPU)


def test_stock_speechbrain_transcribes_a_file(tmp_path):
    """A file through SpeechBrain's reader equals the same file through ours."""
    save_asr(tmp_path / "model", tiny_ctc(), CharVocabulary())
    soundfile.write(tmp_path / "a.wav", WAVS[0].numpy() * 0.1, 16000, subtype="FLOAT")
    ours = Wav2Vec2ASR.from_hparams(source=tmp_path / "model", run_opts=CPU)
    stock = EncoderASR.from_hparams(source=str(tmp_path / "model"), run_opts=CPU)
    wav = stock.load_audio(str(tmp_path / "a.wav"), savedir=tmp_path / "cache")
    text = stock.transcribe_batch(wav[None], torch.ones(1))[0][0]
    assert " ".join(text.split()) == ours.transcribe_file(tmp_path / "a.wav")
