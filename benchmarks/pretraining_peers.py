"""Stacks that pretrain, each cut into the same parts: draw, extract, contextualize, head.

transformers and SpeechBrain run their own code, we ours; fairseq's arithmetic is in
fairseq_pretraining.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar
from unittest.mock import patch

import torch
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoder
from speechbrain.lobes.models.wav2vec import (
    EncoderWrapper,
    W2VLatentExtractor,
    W2VTargetQuantiser,
    compute_mask,
)
from speechbrain.lobes.models.wav2vec import (
    sample_negatives as speechbrain_negatives,
)
from speechbrain.nnet.losses import ContrastiveLoss
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
from transformers.modeling_outputs import Wav2Vec2BaseModelOutput
from transformers.models.wav2vec2 import modeling_wav2vec2 as hf

from w2v_plugin.losses import sample_negatives
from w2v_plugin.masking import span_mask
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.model_output import Wav2Vec2Output
from w2v_plugin.pretraining import Wav2Vec2Pretraining
from w2v_plugin.quantizer import GumbelQuantizer

MASK_PROB, MASK_LENGTH, NEGATIVES = 0.65, 10, 100  # as published
SPEECHBRAIN_KERNELS = (11, 3, 3, 3, 3, 3, 3)  # of its recipe


@dataclass(frozen=True)
class Shape:
    """A model with a Gumbel quantizer of two groups; the defaults are BASE."""

    dim: int = 768
    layers: int = 12
    heads: int = 12
    ffn_dim: int = 3072
    channels: tuple[int, ...] = (512,) * 7
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    layer_norm: bool = False  # in the extractor, with biases and pre-norm layers
    positions: tuple[int, int] = (128, 16)  # kernel and groups
    codes: int = 320
    target_dim: int = 256
    dropout: float = 0.1  # of hidden states, attention, inputs of encoder and quantizer


@dataclass
class Drawn:
    """Which frames are masked, and what each of them is told apart from."""

    mask: Tensor  # (batch, frames) bool
    negatives: Tensor | None = None  # indices, as the stack takes them


@dataclass
class Represented:
    """What evaluation looks at: the masked frames of one utterance."""

    context: Tensor  # (1, masked, target_dim)
    targets: Tensor  # (1, masked, target_dim)
    codes: Tensor  # (1, masked, 2)


class Stack(nn.Module):
    """One implementation. `forward` gives the loss per masked frame, as its recipe trains it."""

    MAX_NORM: ClassVar[float] = math.inf  # to which gradients are clipped
    FUSED: ClassVar[bool | None] = None  # AdamW in one pass over the parameters

    def draw(self, batch: int, frames: int) -> Drawn:
        """Masks and negatives by the stack's own functions."""
        raise NotImplementedError

    def extract(self, wavs: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames, channels)."""
        raise NotImplementedError

    def contextualize(self, latents: Tensor, mask: Tensor) -> Tensor:
        """Latents -> (batch, frames, dim)."""
        raise NotImplementedError

    def head(self, latents: Tensor, context: Tensor, drawn: Drawn) -> Tensor:
        """Quantizer and losses, per masked frame."""
        raise NotImplementedError

    def forward(self, wavs: Tensor, drawn: Drawn | None = None) -> Tensor:
        latents = self.extract(wavs)
        drawn = drawn or self.draw(*latents.shape[:2])
        return self.head(latents, self.contextualize(latents, drawn.mask), drawn)

    def represent(self, wavs: Tensor, mask: Tensor) -> Represented:
        """The masked frames of one utterance (1, samples), in evaluation mode."""
        raise NotImplementedError

    def set_progress(self, done: float) -> None:
        """Anneal the Gumbel temperature from 2 to 0.5, exponentially; `done` is a share."""
        self.temperature = max(2.0 * 0.25**done, 0.5)

    def optimizer(self, lr: float) -> torch.optim.AdamW:
        options = {"betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
        return torch.optim.AdamW(self.parameters(), lr=lr, fused=self.FUSED, **options)

    def update(self, optimizer: torch.optim.Optimizer, max_norm: float | None = None) -> None:
        """Clip, step, let go of the gradients."""
        limit = self.MAX_NORM if max_norm is None else max_norm
        nn.utils.clip_grad_norm_(self.parameters(), limit)
        optimizer.step()
        optimizer.zero_grad()


class Transformers(Stack):
    """transformers' Wav2Vec2ForPreTraining with SDPA."""

    MAX_NORM = 1.0  # its Trainer's default

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        family = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
        places = ("hidden", "attention", "feat_proj", "feat_quantizer")
        config = Wav2Vec2Config(
            hidden_size=shape.dim,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.ffn_dim,
            conv_dim=shape.channels,
            conv_kernel=shape.kernels,
            num_conv_pos_embeddings=shape.positions[0],
            num_conv_pos_embedding_groups=shape.positions[1],
            num_codevectors_per_group=shape.codes,
            codevector_dim=shape.target_dim,
            proj_codevector_dim=shape.target_dim,
            activation_dropout=0.0,
            layerdrop=0.0,
            attn_implementation="sdpa",
            **{f"{place}_dropout": shape.dropout for place in places},
            **(family if shape.layer_norm else {}),
        )
        self.model = Wav2Vec2ForPreTraining(config).train()

    def draw(self, batch: int, frames: int) -> Drawn:
        shape = (batch, frames)
        mask = hf._compute_mask_indices(shape, MASK_PROB, MASK_LENGTH, min_masks=2)
        negatives = hf._sample_negative_indices(shape, NEGATIVES, mask)
        return Drawn(torch.from_numpy(mask), torch.from_numpy(negatives))

    def forward(self, wavs: Tensor, drawn: Drawn | None = None) -> Tensor:
        frames = int(self.model._get_feat_extract_output_lengths(wavs.shape[1]))
        drawn = drawn or self.draw(len(wavs), frames)
        out = self.model(
            wavs, mask_time_indices=drawn.mask, sampled_negative_indices=drawn.negatives
        )
        return out.loss / drawn.mask.sum()

    def extract(self, wavs: Tensor) -> Tensor:
        return self.model.wav2vec2.feature_extractor(wavs).transpose(1, 2)

    def contextualize(self, latents: Tensor, mask: Tensor) -> Tensor:
        body = self.model.wav2vec2
        x = body._mask_hidden_states(body.feature_projection(latents)[0], mask_time_indices=mask)
        return body.encoder(x).last_hidden_state

    def head(self, latents: Tensor, context: Tensor, drawn: Drawn) -> Tensor:
        body = self.model.wav2vec2
        given = Wav2Vec2BaseModelOutput(context, body.feature_projection.layer_norm(latents))
        with patch.object(body, "forward", return_value=given):
            return self.forward(latents.new_zeros(len(latents), 400), drawn)

    def represent(self, wavs: Tensor, mask: Tensor) -> Represented:
        latents = self.extract(wavs)
        context = self.model.project_hid(self.contextualize(latents, mask)[mask])
        normed = self.model.wav2vec2.feature_projection.layer_norm(latents)[mask]
        vectors, _ = self.model.quantizer(normed[None])
        codes = self.model.quantizer.weight_proj(normed).unflatten(-1, (2, -1)).argmax(-1)
        return Represented(context[None], self.model.project_q(vectors), codes[None])

    def set_progress(self, done: float) -> None:
        super().set_progress(done)
        self.model.set_gumbel_temperature(self.temperature)


class SpeechBrain(Stack):
    """SpeechBrain's own lobes, put together as its LibriSpeech recipe does.

    Its shape differs: sinusoidal positions, pre-norm layers, layer norm and no bias in the
    extractor. It draws its negatives together with their vectors, in the head.
    """

    MAX_NORM = 5.0  # its default

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.extractor = W2VLatentExtractor(list(shape.channels), list(shape.kernels))
        encoder = TransformerEncoder(
            shape.layers,
            shape.heads,
            shape.ffn_dim,
            d_model=shape.dim,
            dropout=shape.dropout,
            activation=nn.GELU,
            normalize_before=True,
        )
        self.encoder = EncoderWrapper(
            shape.channels[-1], shape.dim, encoder, dropout_encoder_input=shape.dropout
        )
        self.quantizer = W2VTargetQuantiser(
            shape.channels[-1], shape.target_dim, num_vars=shape.codes
        )
        self.project = nn.Linear(shape.dim, shape.target_dim)
        self.contrastive = ContrastiveLoss(0.1)

    def draw(self, batch: int, frames: int) -> Drawn:
        mask = compute_mask((batch, frames), [frames] * batch, MASK_PROB, MASK_LENGTH)
        return Drawn(torch.from_numpy(mask))

    def extract(self, wavs: Tensor) -> Tensor:
        return self.extractor(wavs, normalize_signal=False)

    def contextualize(self, latents: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(latents, torch.ones(len(latents)), mask=mask)["embeddings"]

    def head(self, latents: Tensor, context: Tensor, drawn: Drawn) -> Tensor:
        rows, mask = len(latents), drawn.mask
        embeddings = self.project(context[mask])
        embeddings = embeddings.view(rows, -1, embeddings.shape[-1])
        targets, meta = self.quantizer(latents[mask].view(rows, -1, latents.shape[-1]))
        negatives = speechbrain_negatives(targets, NEGATIVES)
        loss, _ = self.contrastive(embeddings, targets, negatives)
        return loss / mask.sum() + 0.1 * meta["diversity_loss"]

    def represent(self, wavs: Tensor, mask: Tensor) -> Represented:
        latents = self.extract(wavs)
        context = self.project(self.contextualize(latents, mask)[mask])
        chosen = latents[mask]
        targets, _ = self.quantizer(chosen[None])
        scores = self.quantizer.quantiser.weight_proj(chosen)
        return Represented(context[None], targets, scores.unflatten(-1, (2, -1)).argmax(-1)[None])

    def set_progress(self, done: float) -> None:
        super().set_progress(done)
        self.quantizer.quantiser.curr_temp = self.temperature


class Ours(Stack):
    """`Wav2Vec2Pretraining` with the Gumbel quantizer, as in the published recipe."""

    FUSED = True

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        wav2vec2 = Wav2Vec2(
            dim=shape.dim,
            layers=shape.layers,
            heads=shape.heads,
            ffn_dim=shape.ffn_dim,
            channels=shape.channels,
            kernels=shape.kernels,
            extractor_norm="layer" if shape.layer_norm else "group",
            conv_bias=shape.layer_norm,
            norm_first=shape.layer_norm,
            positions_kernel=shape.positions[0],
            positions_groups=shape.positions[1],
            normalize=False,
            dropout=shape.dropout,
            attention_dropout=shape.dropout,
            feature_grad_scale=0.1,
        )
        quantizer = GumbelQuantizer(
            shape.channels[-1], groups=2, codes=shape.codes, dim=shape.target_dim
        )
        self.model = Wav2Vec2Pretraining(
            wav2vec2,
            quantizer,
            dim=shape.target_dim,
            negatives=NEGATIVES,
            mask_prob=MASK_PROB,
            mask_length=MASK_LENGTH,
            equal_masks=True,
            quantizer_dropout=shape.dropout,
        )

    def draw(self, batch: int, frames: int) -> Drawn:
        lengths = torch.full((batch,), frames)
        mask = span_mask(lengths, frames, prob=MASK_PROB, length=MASK_LENGTH, equal_counts=True)
        counts = mask.sum(1)
        return Drawn(mask, sample_negatives(counts, int(counts.max()), NEGATIVES))

    def forward(self, wavs: Tensor, drawn: Drawn | None = None) -> Tensor:
        given = {} if drawn is None else {"mask": drawn.mask, "negatives": drawn.negatives}
        out = self.model(wavs, **given)
        return out.loss / out.contrastive.count

    def extract(self, wavs: Tensor) -> Tensor:
        return self.model.wav2vec2.extract(wavs)[0]

    def contextualize(self, latents: Tensor, mask: Tensor) -> Tensor:
        return self.model.wav2vec2.contextualize(latents, mask=mask).context

    def head(self, latents: Tensor, context: Tensor, drawn: Drawn) -> Tensor:
        body = self.model.wav2vec2
        given = Wav2Vec2Output(context, torch.full((len(context),), context.shape[1]))
        with (
            patch.object(body, "extract", return_value=(latents, None)),
            patch.object(body, "contextualize", return_value=given),
        ):
            return self.forward(latents.new_zeros(len(latents), 400), drawn)

    def represent(self, wavs: Tensor, mask: Tensor) -> Represented:
        body = self.model.wav2vec2
        latents, _ = body.extract(wavs)
        context = self.model.project_context(self.contextualize(latents, mask)[mask])
        out = self.model.quantizer(body.projection.norm(latents)[mask][None])
        return Represented(context[None], self.model.project_targets(out.vectors), out.codes)

    def set_progress(self, done: float) -> None:
        super().set_progress(done)
        self.model.quantizer.updates.fill_(round(done * 277_258))  # from 2 to 0.5, as published


def speechbrain_base(shape: Shape) -> SpeechBrain:
    """With the kernels and the number of heads of its recipe."""
    return SpeechBrain(replace(shape, kernels=SPEECHBRAIN_KERNELS, heads=8))
