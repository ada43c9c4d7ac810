"""The models that are compared: (samples,) or a padded batch -> logits, all from one checkpoint."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from w2v_plugin.ctc import Wav2Vec2CTC

Forward = Callable[[Tensor], Tensor]  # (batch, samples) -> (batch, frames, vocab)


def make_checkpoint(folder: Path) -> None:
    """A BASE model with random weights and a CTC head, written by transformers."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2ForCTC

    from w2v_plugin.text import CharVocabulary

    torch.manual_seed(0)
    Wav2Vec2ForCTC(Wav2Vec2Config()).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(CharVocabulary().lab2ind))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)


def transformers_sdpa(folder: Path, attention: str = "sdpa") -> Forward:
    """transformers' Wav2Vec2ForCTC."""
    from transformers import Wav2Vec2ForCTC

    model = Wav2Vec2ForCTC.from_pretrained(folder, attn_implementation=attention).eval()
    return lambda wavs: model(wavs).logits


def transformers_eager(folder: Path) -> Forward:
    """The same with attention in plain PyTorch."""
    return transformers_sdpa(folder, "eager")


def transformers_bf16(folder: Path) -> Forward:
    """The same with weights and activations in bfloat16."""
    from transformers import Wav2Vec2ForCTC

    model = Wav2Vec2ForCTC.from_pretrained(folder, dtype=torch.bfloat16).eval()
    return lambda wavs: model(wavs.bfloat16()).logits.float()


def transformers_dynamic_int8(folder: Path) -> Forward:
    """The same after PyTorch's dynamic quantization of linear layers."""
    import warnings

    from transformers import Wav2Vec2ForCTC

    model = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    quantized = copy.deepcopy(quantized)  # lets go of the mapped file
    return lambda wavs: quantized(wavs).logits


def torchaudio_base(folder: Path) -> Forward:
    """torchaudio's model, through its importer."""
    from torchaudio.models.wav2vec2.utils import import_huggingface_model
    from transformers import Wav2Vec2ForCTC

    model = import_huggingface_model(Wav2Vec2ForCTC.from_pretrained(folder)).eval()
    return lambda wavs: model(wavs)[0]


class FairseqArithmetic(nn.Module):
    """The order of operations of fairseq's Wav2VecCtc: (channels, time) convolutions, float32
    group norm, (time, batch, channels) layers on `F.multi_head_attention_forward`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import Wav2Vec2ForCTC

        self.hf = Wav2Vec2ForCTC.from_pretrained(folder).eval()
        with torch.no_grad():
            conv = self.hf.wav2vec2.encoder.pos_conv_embed.conv
            self.positions = nn.Parameter(conv.weight.clone()), conv.bias

    def forward(self, wavs: Tensor) -> Tensor:
        body = self.hf.wav2vec2
        x = wavs[:, None]
        for layer in body.feature_extractor.conv_layers:
            x = F.conv1d(x, layer.conv.weight, stride=layer.conv.stride)
            if hasattr(layer, "layer_norm"):
                norm = layer.layer_norm
                x = F.group_norm(x.float(), norm.num_groups, norm.weight, norm.bias).type_as(x)
            x = F.gelu(x)
        x = body.feature_projection.layer_norm(x.transpose(1, 2))
        x = body.feature_projection.projection(x)
        weight, bias = self.positions
        y = F.conv1d(x.transpose(1, 2), weight, bias, padding=64, groups=16)[..., :-1]
        x = body.encoder.layer_norm(x + F.gelu(y).transpose(1, 2)).transpose(0, 1)
        for layer in body.encoder.layers:
            x = layer.layer_norm(x + fairseq_attention(x, layer.attention))
            y = F.gelu(layer.feed_forward.intermediate_dense(x))
            x = layer.final_layer_norm(x + layer.feed_forward.output_dense(y))
        return self.hf.lm_head(x.transpose(0, 1))


def fairseq_attention(
    x: Tensor, a: nn.Module, padding: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """(time, batch, channels) through PyTorch's attention function, with transformers' weights."""
    return F.multi_head_attention_forward(
        x, x, x, a.embed_dim, a.num_heads, None,
        torch.cat([a.q_proj.bias, a.k_proj.bias, a.v_proj.bias]), None, None, False, dropout,
        a.out_proj.weight, a.out_proj.bias, training=dropout > 0, key_padding_mask=padding,
        need_weights=False, use_separate_proj_weight=True, q_proj_weight=a.q_proj.weight,
        k_proj_weight=a.k_proj.weight, v_proj_weight=a.v_proj.weight,
    )[0]  # fmt: skip


def fairseq_arithmetic(folder: Path) -> Forward:
    """What fairseq computes, in its order (fairseq itself does not install on these versions)."""
    return FairseqArithmetic(folder).eval()


def onnx_fp32(folder: Path) -> Forward:
    """Our ONNX export in onnxruntime."""
    return _onnx_session(onnx_files(folder)[0])


def onnx_int8(folder: Path) -> Forward:
    """The same with onnxruntime's dynamic quantization of matrix products."""
    return _onnx_session(onnx_files(folder)[1])


def onnx_files(folder: Path) -> tuple[Path, Path]:
    """float32 and INT8 files, made once: who only loads them shall not pay for their making."""
    whole, small = folder / "model.onnx", folder / "int8.onnx"
    if not small.is_file():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        from w2v_plugin.onnx_export import export_onnx

        export_onnx(_loaded(folder), whole)
        options = {"per_channel": True, "weight_type": QuantType.QInt8}
        quantize_dynamic(whole, small, op_types_to_quantize=["MatMul"], **options)
    return whole, small


def _onnx_session(path: Path) -> Forward:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(wavs: Tensor) -> Tensor:
        inputs = {"wavs": wavs.numpy(), "lengths": np.full(len(wavs), wavs.shape[1])}
        return torch.from_numpy(session.run(["logits"], inputs)[0])

    return run


def _loaded(folder: Path) -> Wav2Vec2CTC:
    """Our model, without normalization: transformers' peers get the bare waveform, too."""
    from w2v_plugin.checkpoints import load_checkpoint

    model = load_checkpoint(folder)
    model.wav2vec2.normalize = False
    return model


def ours(folder: Path, precision: str = "fp32") -> Forward:
    """This package, as its interfaces run it: loaded, then made ready by `optimize`."""
    from w2v_plugin.compression import optimize

    model = optimize(_loaded(folder), precision)
    return lambda wavs: model(wavs).logits


def ours_int8(folder: Path) -> Forward:
    """The same with INT8 weights and activations."""
    return ours(folder, "int8")


def ours_bf16(folder: Path) -> Forward:
    """The same with bfloat16 products."""
    return ours(folder, "bf16")


PEERS: dict[str, Callable[[Path], Forward]] = {
    "transformers sdpa": transformers_sdpa,
    "transformers eager": transformers_eager,
    "torchaudio": torchaudio_base,
    "fairseq's arithmetic": fairseq_arithmetic,
    "transformers bf16": transformers_bf16,
    "transformers, PyTorch dynamic INT8": transformers_dynamic_int8,
    "onnxruntime fp32": onnx_fp32,
    "onnxruntime dynamic INT8": onnx_int8,
    "w2v_plugin fp32": ours,
    "w2v_plugin bf16": ours_bf16,
    "w2v_plugin int8": ours_int8,
}
