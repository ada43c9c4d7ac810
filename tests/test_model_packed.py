"""Packed utterances: each as if it were alone, whatever lies beside it in the row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig, attention_mask, packed_parts
from w2v_plugin.ctc import Wav2Vec2CTC
from w2v_plugin.errors import BadAudio
from w2v_plugin.frames import frame_lengths, receptive_field
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.model_output import Wav2Vec2Output

FAMILIES = {
    "group": {"extractor_norm": "group", "norm_first": False},
    "group_pre_norm": {"extractor_norm": "group", "norm_first": True, "conv_bias": True},
    "layer": {"extractor_norm": "layer", "norm_first": True, "conv_bias": True},
    "adapters": {"extractor_norm": "layer", "norm_first": True, "adapter_dim": 4},
    "relative": {"extractor_norm": "layer", "norm_first": True, "conformer": "relative"},
    "rotary": {"extractor_norm": "layer", "norm_first": True, "conformer": "rotary"},
}
LENGTHS = (5000, 400, 719, 16001, 720, 12345)
# sums in another order; in float32 the contract, with utterances 10000 times as loud as others
PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 1e-4)]


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def make(family: str, dtype: torch.dtype, **options) -> Wav2Vec2CTC:
    torch.manual_seed(0)
    shape = {"dim": 32, "layers": 2, "heads": 4, "ffn_dim": 48, "channels": (16,) * 7}
    body = Wav2Vec2(**shape, **FAMILIES[family], positions_kernel=30, **options)
    model = Wav2Vec2CTC(body, vocab_size=20).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


def make_wavs(dtype: torch.dtype, lengths=LENGTHS) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    levels = [0.1, 10.0, 1e-3, 0.1, 1.0, 0.0]  # the last one is silent
    pairs = zip(lengths, levels, strict=False)
    return [level * torch.randn(n, dtype=dtype, generator=draw) for n, level in pairs]


def check(out: Wav2Vec2Output, expected: Wav2Vec2Output, tolerance: float) -> None:
    """Everything that an output holds, and nothing for padding."""
    assert out.context.shape == expected.context.shape
    assert out.frame_lengths.tolist() == expected.frame_lengths.tolist() == [out.context.shape[1]]
    ours, theirs = (
        [x.context, *([] if x.logits is None else [x.logits]), *(x.hidden_states or ())]
        for x in (out, expected)
    )
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_alone(family, normalize, dtype, tolerance) -> None:
    """Both heads and headless, with all hidden states, beside loud, quiet and silent ones."""
    model, wavs = make(family, dtype, normalize=normalize), make_wavs(dtype)
    for part in (model, model.wav2vec2):
        outs = part.forward_packed(wavs, output_hidden_states=True)
        for out, wav in zip(outs, wavs, strict=True):
            check(out, part(wav[None], output_hidden_states=True), tolerance)
            assert len(out.hidden_states) == 3
        assert outs[0].logits is None or part is model
        assert part.forward_packed(wavs)[0].hidden_states is None


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(
    "chunk",
    [ChunkConfig(4), ChunkConfig(4, 0), ChunkConfig(7, 3), ChunkConfig(1, 5), ChunkConfig(99)],
)
@pytest.mark.parametrize("family", ["layer", "adapters"])
def test_packed_in_chunks_equals_alone(family, chunk, dtype, tolerance) -> None:
    """Every utterance begins with a chunk of its own, wherever it lies in the row."""
    model, wavs = make(family, dtype, normalize=False), make_wavs(dtype)
    for out, wav in zip(model.forward_packed(wavs, chunk=chunk), wavs, strict=True):
        check(out, model(wav[None], chunk=chunk), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_padded(family, dtype, tolerance) -> None:
    """With padding="exact", the padded batch is the same thing in another form."""
    model, wavs = make(family, dtype), make_wavs(dtype)
    batch = nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    rows = model(batch, torch.tensor(LENGTHS) / max(LENGTHS), output_hidden_states=True).rows()
    for out, row in zip(model.forward_packed(wavs, output_hidden_states=True), rows, strict=True):
        check(out, row, tolerance)


@pytest.mark.parametrize("order", [(3, 0, 5, 1, 4, 2), (2, 2, 2), (1,)])
def test_neighbors_do_not_matter(order) -> None:
    """Any order, repetitions, one alone."""
    model, wavs = make("group", torch.float64), make_wavs(torch.float64)
    outs = model.forward_packed(wavs)
    for index, out in zip(order, model.forward_packed([wavs[i] for i in order]), strict=True):
        check(out, outs[index], 1e-12)


def test_an_utterance_without_a_frame_is_refused() -> None:
    with pytest.raises(BadAudio, match="399 samples are less than one frame"):
        make("group", torch.float32).forward_packed([torch.zeros(800), torch.zeros(399)])


# --- pieces --------------------------------------------------------------------------------------


def test_parts_lie_one_after_the_other() -> None:
    """Slices over the row, and the mask that each would have alone."""
    cpu, chunk = torch.device("cpu"), ChunkConfig(2, 1)
    parts = packed_parts([3, 1, 4], chunk, cpu)
    assert [(part.frames.start, part.frames.stop) for part in parts] == [(0, 3), (3, 4), (4, 8)]
    for part, size in zip(parts, (3, 1, 4), strict=True):
        assert torch.equal(part.mask, attention_mask(None, size, chunk, cpu))
    assert all(part.mask is None for part in packed_parts([3, 1], None, cpu))


def test_outputs_are_cut_in_every_field() -> None:
    """`rows` of a padded batch and `unpack` of a row."""
    x = torch.arange(24.0).view(2, 6, 2)
    out = Wav2Vec2Output(x, torch.tensor([6, 2]), (x + 100, x + 200), x + 300)
    first, second = out.rows()
    assert torch.equal(first.context, x[:1]) and torch.equal(second.context, x[1:, :2])
    assert torch.equal(second.logits, x[1:, :2] + 300) and second.frame_lengths.tolist() == [2]
    assert torch.equal(second.hidden_states[1], x[1:, :2] + 200)
    row = Wav2Vec2Output(x[:1], torch.tensor([6]))
    parts = row.unpack([1, 3, 2])
    assert torch.equal(torch.cat([part.context for part in parts], 1), x[:1])
    assert [part.frame_lengths.tolist() for part in parts] == [[1], [3], [2]]
    assert parts[0].logits is None and parts[0].hidden_states is None


@pytest.mark.parametrize(
    ("kernels", "strides"), [((10, 3, 2), (5, 2, 2)), ((4, 4, 1), (2, 3, 1)), ((1,), (7,))]
)
def test_receptive_field_is_the_least_for_a_frame(kernels, strides) -> None:
    field = receptive_field(kernels, strides)
    assert frame_lengths(field, kernels, strides) == 1
    assert frame_lengths(field - 1, kernels, strides) == 0
