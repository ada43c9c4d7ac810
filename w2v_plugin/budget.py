"""CTC fine-tuning that ends when so much compute is spent, whatever an update costs.

Arms of a study have updates of different price: a frozen extractor halves it, and with few labels
its output is soon all kept. Equal numbers of updates would favor the dear ones.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from torch import Tensor

from w2v_plugin.brains import CTCBrain
from w2v_plugin.data import by_length, collate, durations
from w2v_plugin.sampling import BucketSampler
from w2v_plugin.validations import rank

# of a budget, as schedules count it: in seconds, warm-ups could begin where they end
WHOLE = 1_000_000


class Parts:
    """An endless stream cut into parts: each iteration goes on where the last one stopped.

    Parameters
    ----------
    stream : Iterator
        Never ends by itself.
    over : callable
        Asked before every item whether this part ends here.

    Example
    -------
    >>> heard = []
    >>> parts = Parts(iter(range(100)), over=lambda: len(heard) % 3 == 2)
    >>> for batch in parts:
    ...     heard.append(batch)
    >>> heard
    [0, 1]
    """

    def __init__(self, stream: Iterator[Any], over: Callable[[], bool]) -> None:
        self.stream, self.over = stream, over

    def __iter__(self) -> Iterator[Any]:
        while not self.over():
            yield next(self.stream)


class BudgetBrain(CTCBrain):
    """CTC fine-tuning for `seconds` of compute; ends up with the best weights it had.

    Compute is CPU time of this process on a CPU, time by the clock on an accelerator, of training
    steps alone: reading audio and validation are the same for everybody. The last update is
    finished. On one process only, and not resumed: a run of minutes is repeated.

    Hyperparameters beyond those of `CTCBrain`: `seconds`; `epoch_counter`, whose limit is the
    number of validations, in equal parts of the budget; `schedule`, a function of the millionths of
    the budget that are spent (not of the update) to a share of the peak learning rate; `best_by`,
    the score that picks among the validations.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spent = 0.0
        self.best_score = math.inf
        self.best_state: dict[str, Tensor] = {}
        schedule, seconds = self.hparams.schedule, self.hparams.seconds
        self.hparams.schedule = lambda update: schedule(WHOLE * self.spent / seconds)

    def compute_clock(self) -> float:
        """Seconds, of which differences count."""
        if torch.device(self.device).type == "cpu":
            return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()

    def over(self) -> bool:
        """Whether it is time for the next validation."""
        epochs = self.hparams.epoch_counter
        return self.spent >= self.hparams.seconds * epochs.current / epochs.limit

    def fit_on(self, train: DynamicItemDataset, valid: DynamicItemDataset) -> None:
        """Spend the budget."""
        batch_s = self.hparams.batch_s
        sampler = BucketSampler(
            durations(train), budget_s=batch_s, batches=sys.maxsize, seed=self.hparams.seed
        )
        parts = Parts(iter(sampler), self.over)
        self.fit(
            self.hparams.epoch_counter,
            train,
            valid,
            train_loader_kwargs={"batch_sampler": parts, "collate_fn": collate},
            valid_loader_kwargs=by_length(valid, batch_s),
        )
        self.model.load_state_dict(self.best_state)

    def on_fit_batch_start(self, batch: Any, should_step: bool) -> None:
        self.began = self.compute_clock()
        super().on_fit_batch_start(batch, should_step)

    def on_fit_batch_end(self, batch: Any, outputs: Any, loss: Tensor, should_step: bool) -> None:
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        self.spent += self.compute_clock() - self.began

    def save(self, scores: dict[str, float]) -> None:
        """Keep the best weights, in memory."""
        score = rank(scores, self.hparams.best_by)
        if score < self.best_score:
            self.best_score = score
            self.best_state = {k: v.clone() for k, v in self.model.state_dict().items()}
