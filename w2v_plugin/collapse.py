"""Pretraining in figures: what a batch adds, what is logged, and when a codebook has collapsed."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from w2v_plugin.codes import perplexity
from w2v_plugin.errors import TrainingCollapsed
from w2v_plugin.pretraining import PretrainingOutput

logger = logging.getLogger(__name__)


def tally(out: PretrainingOutput) -> dict[str, Tensor]:
    """What a batch adds to the sums over masked frames from which all that is logged is made."""
    contrastive, quantized, count = out.contrastive, out.quantized, out.contrastive.count
    sums = {
        "count": count,
        "contrastive": contrastive.loss,
        "accuracy": contrastive.correct,
        "shared_negatives": contrastive.shared * count,
        "diversity": quantized.diversity * count,
        "prob_perplexity": quantized.prob_perplexity.mean() * count,
        "commitment": quantized.commitment,
        "feature_penalty": out.penalty,
        "codes": quantized.counts,
        "masked": out.mask.sum(),
        "frames": out.frame_lengths.sum(),
    }
    if out.chance is not None:
        sums["chance"] = out.chance
    return {name: value.detach().float() for name, value in sums.items()}


def means(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over masked frames, and what the codes say: the best ones, without noise."""
    count = max(float(sums["count"]), 1.0)
    codes = sums["codes"]
    perplexities = perplexity(codes / codes.sum(1, keepdim=True).clamp(min=1))
    apart = ("count", "codes", "masked", "frames")
    return {
        **{name: float(value) / count for name, value in sums.items() if name not in apart},
        "code_perplexity": float(perplexities.mean()),
        "least_perplexity": float(perplexities.min()),
        "codes_used": float((codes > 0).float().mean()),
    }


COLLAPSED = 2.0  # codes in effect (perplexity)
FEW = 0.05  # of all codes


def check_collapse(
    record: dict[str, float], frames: float, codes: int, *, stop: bool = True
) -> None:
    """Stop when one code stands for everything in at least 30 masked frames; warn before.

    Then all negatives equal the positive and are left out, and the loss is 0.000: it looks like
    success. The codes without noise tell.
    """
    perplexity, least = record["code_perplexity"], record["least_perplexity"]
    if frames < 30 or least >= max(COLLAPSED, FEW * codes):
        return
    seen = (
        f"code perplexity {perplexity:.2f} of {codes} (1 = a single code), {least:.2f} in the "
        f"poorest group; contrastive loss {record['contrastive']:.3f}, accuracy "
        f"{record['accuracy']:.3f}. "
    )
    remedy = (
        "a lower lr or slow_lr, a warm start (warm_start_updates), codes that start from data "
        "(init_codes), a lower penalty_weight, a higher diversity_weight (Gumbel) or a smaller "
        "restart_every (nearest)."
    )
    if perplexity >= COLLAPSED:
        logger.warning(
            "Few codes are left: %sTargets that are all alike teach nothing. If this does not "
            "rise, start again with %s",
            seen,
            remedy,
        )
        return
    message = (
        f"The codebook collapsed: {seen}All negatives equal the true target and are left out, so "
        f"that the loss means nothing from here on. Start again with {remedy}"
    )
    if stop:
        raise TrainingCollapsed(message + " stop_on_collapse: False goes on all the same.")
    logger.warning("%s Going on, as stop_on_collapse: False says.", message)
