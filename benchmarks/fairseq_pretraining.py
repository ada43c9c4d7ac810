"""What fairseq computes in a pretraining step, in its order.

fairseq does not install beside current PyTorch, so this is its order of operations on
transformers' parameters; `tests/parity/test_pretraining_peers.py` holds its loss and gradients
equal to transformers'.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from peers import fairseq_attention
from pretraining_peers import MASK_LENGTH, MASK_PROB, NEGATIVES, Drawn, Shape, Stack, Transformers
from torch import Tensor, nn
from transformers.models.wav2vec2 import modeling_wav2vec2 as hf


class Fairseq(Transformers):
    """What fairseq computes, in its order, with transformers' parameters.

    (channels, time) convolutions, norms in float32, (time, batch, channels) layers on
    `F.multi_head_attention_forward` with frames padded to an even number, masked frames only in the
    head, one-hot times codebook as a broadcast product, gathered negatives that are compared with
    the positive as vectors.
    """

    MAX_NORM = math.inf  # its recipes do not clip, but measure the norm
    GRADIENT_SCALE, DIVERSITY_WEIGHT, PENALTY_WEIGHT = 0.1, 0.1, 10.0

    forward = Stack.forward

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.dropout, self.pre_norm = shape.dropout, shape.layer_norm

    def draw(self, batch: int, frames: int) -> Drawn:
        mask = hf._compute_mask_indices(
            (batch, frames), MASK_PROB, MASK_LENGTH, min_masks=2
        )  # transformers' copy of fairseq's function, without its last step:
        fewest = mask.sum(1).min()
        for row in mask:
            masked = np.flatnonzero(row)
            row[np.random.choice(masked, len(masked) - fewest, replace=False)] = False
        own = torch.arange(fewest)[:, None].expand(-1, NEGATIVES).flatten()
        negatives = torch.randint(0, int(fewest) - 1, (batch, len(own)))
        negatives[negatives >= own] += 1
        offset = torch.arange(batch)[:, None] * int(fewest)
        return Drawn(torch.from_numpy(mask), negatives + offset)

    def extract(self, wavs: Tensor) -> Tensor:
        x = wavs[:, None]
        for layer in self.model.wav2vec2.feature_extractor.conv_layers:
            x = F.conv1d(x, layer.conv.weight, layer.conv.bias, layer.conv.stride)
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                x = F.group_norm(x.float(), norm.num_groups, norm.weight, norm.bias).type_as(x)
            elif norm is not None:
                y = x.transpose(1, 2).float()
                y = F.layer_norm(y, y.shape[-1:], norm.weight, norm.bias)
                x = y.type_as(x).transpose(1, 2)
            x = F.gelu(x)
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient * self.GRADIENT_SCALE)
        return x.transpose(1, 2)

    def contextualize(self, latents: Tensor, mask: Tensor) -> Tensor:
        body, training = self.model.wav2vec2, self.training
        x = body.feature_projection.projection(body.feature_projection.layer_norm(latents))
        x = F.dropout(x, self.dropout, training)
        x[mask] = body.masked_spec_embed
        encoder = body.encoder
        x = x + encoder.pos_conv_embed(x)
        x = x if self.pre_norm else encoder.layer_norm(x)
        frames = x.shape[1]
        padding = None
        if frames % 2:
            x = F.pad(x, (0, 0, 0, 1))
            padding = torch.zeros(x.shape[:2], dtype=torch.bool)
            padding[:, -1] = True
        x = F.dropout(x, self.dropout, training).transpose(0, 1)
        for layer in encoder.layers:
            x = self.layer(x, layer, padding)
        x = x.transpose(0, 1)[:, :frames]
        return encoder.layer_norm(x) if self.pre_norm else x

    def layer(self, x: Tensor, layer: nn.Module, padding: Tensor | None) -> Tensor:
        drop = self.dropout if self.training else 0.0

        def attend(y: Tensor) -> Tensor:
            return F.dropout(fairseq_attention(y, layer.attention, padding, drop), drop)

        def feed(y: Tensor) -> Tensor:
            y = F.gelu(layer.feed_forward.intermediate_dense(y))
            return F.dropout(layer.feed_forward.output_dense(y), drop)

        if self.pre_norm:
            x = x + attend(layer.layer_norm(x))
            return x + feed(layer.final_layer_norm(x))
        x = layer.layer_norm(x + attend(x))
        return layer.final_layer_norm(x + feed(x))

    def head(self, latents: Tensor, context: Tensor, drawn: Drawn) -> Tensor:
        rows = len(latents)
        normed = self.model.wav2vec2.feature_projection.layer_norm(latents)
        normed = F.dropout(normed, self.dropout, self.training)
        vectors, perplexity = self.quantize(normed[drawn.mask].view(rows, -1, normed.shape[-1]))
        targets = self.model.project_q(vectors)
        masked, width = targets.shape[1:]
        assert drawn.negatives is not None
        gathered = targets.view(-1, width)[drawn.negatives.view(-1)]
        negatives = gathered.view(rows, masked, -1, width).permute(2, 0, 1, 3)
        context = self.model.project_hid(context[drawn.mask].view(rows, masked, -1))
        same = (targets == negatives).all(-1)
        candidates = torch.cat([targets[None], negatives])
        logits = torch.cosine_similarity(context.float(), candidates.float(), dim=-1)
        logits = logits.type_as(context) / 0.1
        if same.any():
            logits[1:][same] = -math.inf
        logits = logits.transpose(0, 2).reshape(-1, len(candidates))
        first = torch.zeros(len(logits), dtype=torch.long)
        contrastive = F.cross_entropy(logits, first, reduction="sum")
        size = self.model.quantizer.codevectors.shape[1]
        extra = self.DIVERSITY_WEIGHT * (size - perplexity) / size
        extra = extra + self.PENALTY_WEIGHT * latents.float().pow(2).mean()
        return contrastive / len(logits) + extra

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, masked, channels) -> codevectors, and perplexity of the mean probabilities."""
        quantizer = self.model.quantizer
        groups, size = quantizer.num_groups, quantizer.num_vars
        scores = quantizer.weight_proj(x.reshape(-1, x.shape[-1])).view(-1, size)
        probs = torch.softmax(scores.view(-1, groups, size).float(), dim=-1).mean(0)
        perplexity = torch.exp(-(probs * torch.log(probs + 1e-7)).sum(-1)).sum()
        if self.training:
            chosen = F.gumbel_softmax(scores.float(), tau=quantizer.temperature, hard=True)
            chosen = chosen.type_as(scores)
        else:
            best = scores.argmax(-1, keepdim=True)
            chosen = torch.zeros_like(scores).scatter_(-1, best, 1.0)
        product = chosen.view(-1, groups * size)[..., None] * quantizer.codevectors
        vectors = product.view(len(product), groups, size, -1).sum(2)
        return vectors.view(*x.shape[:2], -1), perplexity
