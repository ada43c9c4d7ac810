"""The weights that a fine-tuning ends with: the best checkpoint, or the mean of the best ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.checkpoints import average_checkpoints
from speechbrain.utils.logger import get_logger
from torch import Tensor

from w2v_plugin.brains import CTCBrain
from w2v_plugin.data import by_length
from w2v_plugin.validations import rank

logger = get_logger(__name__)


def mean_of_states(states: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of state dictionaries, for SpeechBrain's `average_checkpoints`.

    Summed in float64, so that what did not change in training does not change here.

    Example
    -------
    >>> mean_of_states({"x": torch.tensor([value])} for value in (1.0, 2.0, 6.0))
    {'x': tensor([3.])}
    """
    sums: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    count = 0
    for state in states:
        count += 1
        for name, value in state.items():
            kinds[name] = value.dtype
            sums[name] = sums[name] + value if name in sums else value.double()
    return {name: (value / count).to(kinds[name]) for name, value in sums.items()}


def choose_weights(brain: CTCBrain, valid: DynamicItemDataset) -> dict[str, Any]:
    """Load the best checkpoint or, if it is not worse on `valid`, the mean of the best ones.

    The checkpointer is let go of: from here on, the weights are chosen.

    Parameters
    ----------
    brain : CTCBrain
        Trained. Of its hyperparameters `best_by`, `average` and `batch_s` count.
    valid : DynamicItemDataset
        The development set.

    Returns
    -------
    dict
        For `results.json`: `average` (checkpoints in the mean, 1 for the best alone), `best` and,
        if there was one, `mean`: their scores on `valid`.

    Raises
    ------
    ValueError
        There is no checkpoint to choose.
    """
    best_by, keep = brain.hparams.best_by, getattr(brain.hparams, "average", 1)
    checkpointer, brain.checkpointer = brain.checkpointer, None
    found = checkpointer.find_checkpoints(
        importance_key=brain.importance,
        ckpt_predicate=lambda checkpoint: best_by in checkpoint.meta,
        max_num_checkpoints=keep,
    )
    if not found:
        raise ValueError(
            f"No checkpoint has a {best_by}: nothing was trained and validated. Expected updates "
            f"and valid_every of 1 or more, got epochs of {brain.hparams.valid_every} updates, "
            f"{brain.hparams.epoch_counter.limit} of them."
        )
    checkpointer.load_checkpoint(found[0])
    best = float(found[0].meta[best_by])
    chosen: dict[str, Any] = {"average": 1, "best": {best_by: best}}
    if len(found) < 2:
        return chosen
    model = checkpointer.recoverables["model"]  # names parameters as its files do, also compiled
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(average_checkpoints(found, "model", averager=mean_of_states))
    rate, brain.eval_chunk = brain.rates[best_by]
    brain.evaluate(valid, test_loader_kwargs=by_length(valid, brain.hparams.batch_s))
    brain.eval_chunk = None
    score = brain.test_scores[rate]
    logger.info("%s: best %.2f, mean of the %d best %.2f", best_by, best, len(found), score)
    if rank(brain.test_scores, rate) > rank(found[0].meta, best_by):
        model.load_state_dict(state)
        return chosen | {"mean": {best_by: score}}
    return chosen | {"average": len(found), "mean": {best_by: score}}
