"""Export to transformers' format: complete or not at all, and back again."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import CheckpointMismatch
from w2v_plugin.hf_checkpoints import hf_vocabulary, load_hf
from w2v_plugin.hf_export import export_hf, new_folder
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer, NearestQuantizer
from w2v_plugin.text import CharVocabulary


def tiny(**changes) -> Wav2Vec2:
    shape = {"dim": 16, "layers": 2, "heads": 2, "ffn_dim": 32, "channels": (8,) * 7}
    return Wav2Vec2(**{**shape, "positions_kernel": 8, "positions_groups": 4, **changes}).eval()


def same_state(x: nn.Module, y: nn.Module) -> bool:
    a, b = x.state_dict(), y.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def models() -> list[nn.Module]:
    layer = {"extractor_norm": "layer", "norm_first": True, "conv_bias": True}
    return [
        tiny(),
        Wav2Vec2CTC(tiny(**layer), vocab_size=9, dropout=0.1, mask_prob=0.3, mask_length=4),
        Wav2Vec2CTC(tiny(normalize=False), vocab_size=9),
        Wav2Vec2Pretraining(
            tiny(**layer, dropout=0.1, layer_drop=0.05),
            GumbelQuantizer(8, groups=2, codes=5, dim=6),
            dim=4,
            negatives=7,
            diversity_weight=0.2,
        ),
        tiny(channels=(4, 6, 8), kernels=(8, 4, 4), strides=(4, 4, 2)),
    ]


@pytest.mark.parametrize("index", range(5))
def test_export_and_load_restore_model_and_settings(index: int, tmp_path: Path) -> None:
    model = models()[index].eval()
    export_hf(model, tmp_path / "model")
    back = load_hf(tmp_path / "model")
    assert type(back) is type(model) and same_state(back, model)
    bodies = [m if isinstance(m, Wav2Vec2) else m.wav2vec2 for m in (model, back)]
    plain = [json.loads(json.dumps(body.config)) for body in bodies]
    assert plain[0] == plain[1]
    for name in ("mask_prob", "negatives", "temperature", "diversity_weight", "channel_mask_prob"):
        assert getattr(back, name, None) == getattr(model, name, None)


def test_export_appears_complete_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "model"

    def full_disk(*args, **kwargs) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr("w2v_plugin.hf_export.save_file", full_disk)
        export_hf(tiny(), target)
    assert not list(tmp_path.iterdir())
    export_hf(tiny(), target)
    with pytest.raises(FileExistsError, match="Choose another folder"):
        export_hf(tiny(), target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (
        len({path.stat().st_mode for path in target.iterdir()}) == 1
    )  # readable by the same people


def test_export_refuses_what_transformers_lacks(tmp_path: Path) -> None:
    quantizer = NearestQuantizer(8, groups=2, codes=5, dim=6)
    with pytest.raises(CheckpointMismatch, match=r"NearestQuantizer .* Export `model.wav2vec2`"):
        export_hf(Wav2Vec2Pretraining(tiny(), quantizer, dim=4), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_export_warns_that_transformers_has_one_eps(tmp_path: Path, caplog) -> None:
    export_hf(tiny(normalize_eps=1e-5), tmp_path / "model")
    assert "normalize_eps=1e-05 becomes 1e-07" in caplog.text


def test_a_folder_is_kept_only_if_all_went_well(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "deep" / "model") as new:
        (new / "half").touch()
        _ = 1 / 0
    assert not list((tmp_path / "deep").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file exists"), new_folder(tmp_path / "file"):
        pass


def test_a_vocabulary_is_written_with_its_blank(tmp_path: Path) -> None:
    """Wherever it is; fairseq's names of rows 0 and 1 become those of the published exports."""
    symbols = {"a": 0, "|": 1, "[PAD]": 2}
    vocabulary = CharVocabulary.from_symbols(symbols, "[PAD]")
    export_hf(Wav2Vec2CTC(tiny(), vocab_size=3), tmp_path / "last", vocabulary)
    assert json.loads((tmp_path / "last" / "config.json").read_text())["pad_token_id"] == 2
    assert hf_vocabulary(tmp_path / "last").lab2ind == symbols
    fairseq = CharVocabulary.from_symbols({"<s>": 0, "<pad>": 1, "é": 2}, "<s>")
    export_hf(Wav2Vec2CTC(tiny(), vocab_size=3), tmp_path / "fairseq", fairseq)
    back = hf_vocabulary(tmp_path / "fairseq")
    assert back.lab2ind == {"<pad>": 0, "<s>": 1, "é": 2} and back.get_blank_index() == 0
