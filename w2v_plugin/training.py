"""What every Brain here shares: training counted in updates, with exact resume.

Everything random in a step follows from (seed, step, rank), so that an interrupted run that is
started again does exactly what it would have done. Learning rates are a function of the step for
the same reason.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from torch import Tensor, nn

from w2v_plugin.data import BucketSampler, by_length, collate, durations
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.monitor import Monitor


def tri_stage(
    step: int, total: int, *, warmup: float = 0.1, hold: float = 0.4, final: float = 0.05
) -> float:
    """Share of the peak learning rate: linear warm-up, constant, linear decay (as in the paper).

    Fairseq's code decays exponentially to the same end.

    Parameters
    ----------
    step, total : int
        This update and how many there will be.
    warmup, hold : float
        Shares of `total`; the rest is decay.
    final : float
        What remains of the peak at the end.

    Example
    -------
    >>> [round(tri_stage(step, 100), 3) for step in (0, 9, 30, 100)]
    [0.1, 1.0, 1.0, 0.05]
    """
    begin, end = max(warmup * total, 1), (warmup + hold) * total
    if step < begin:
        return min((step + 1) / begin, 1.0)
    if step < end:
        return 1.0
    return max(1.0 - (1.0 - final) * (step - end) / max(total - end, 1), final)


def distributed() -> bool:
    """Whether several processes train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def all_sum(x: Tensor) -> Tensor:
    """Sum over ranks, without gradient."""
    x = x.detach().clone().float()
    if distributed():
        torch.distributed.all_reduce(x)
    return x


@register_checkpoint_hooks
class Progress:
    """Audio heard and time spent in training steps; saved with every checkpoint."""

    def __init__(self) -> None:
        self.audio_s = 0.0
        self.seconds = 0.0

    @mark_as_saver
    def save(self, path: str | Path) -> None:
        torch.save({"audio_s": self.audio_s, "seconds": self.seconds}, path)

    @mark_as_loader
    def load(self, path: str | Path, end_of_epoch: bool = False) -> None:
        state = torch.load(path, weights_only=True)
        self.audio_s, self.seconds = state["audio_s"], state["seconds"]


class StepBrain(sb.Brain):
    """Training counted in updates.

    Hyperparameters that it reads: `seed`, `output_folder`, `log_every` and `valid_every`
    (updates), `batch_s` (padded seconds of audio per batch and process), `epoch_counter`,
    `schedule` (a function from the update to a share of the peak learning rate), and optionally
    `crop_s` and `num_workers` (processes that read audio).

    Losses are sums over frames or characters; the gradient is divided once, by their number in all
    micro-batches and on all ranks, so that batches can be cut in any way.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.monitor = Monitor(self.hparams.output_folder)
        self.progress = Progress()
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("progress", self.progress)
        self.peak_lr: dict[str, float] = {}
        self.gradient_norm = math.nan
        self.ranks = torch.distributed.get_world_size() if distributed() else 1
        self.reference = torch.ones(())  # what `mean_loss` divided by in this update
        self.counted = torch.zeros(())  # frames or characters in this update, on this rank

    def fit_on(self, train: DynamicItemDataset, valid: DynamicItemDataset) -> None:
        """Run all updates; an epoch is `valid_every` of them, whatever the size of the corpus."""
        sampler = BucketSampler(
            durations(train),
            budget_s=self.hparams.batch_s,
            batches=self.hparams.valid_every * self.grad_accumulation_factor * self.ranks,
            crop_s=getattr(self.hparams, "crop_s", math.inf),
            seed=self.hparams.seed,
        )
        self.train_sampler = sampler  # the Brain forgets it outside of DDP: no reshuffling
        workers = {"num_workers": getattr(self.hparams, "num_workers", 0)}
        self.fit(
            self.hparams.epoch_counter,
            train,
            valid,
            train_loader_kwargs={"batch_sampler": sampler, "collate_fn": collate, **workers},
            valid_loader_kwargs={**by_length(valid, self.hparams.batch_s), **workers},
        )

    @property
    def model(self) -> Any:
        """The model itself, not its DistributedDataParallel wrapper."""
        return getattr(self.modules.model, "module", self.modules.model)

    def learning_rates(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        """Parameters and peak learning rate by name; one optimizer each.

        Not one optimizer with groups: the Brain clips the first group of an optimizer only.
        """
        return {"all": (list(self.model.parameters()), self.hparams.lr)}

    def init_optimizers(self) -> None:
        self.optimizers_dict = {}
        for name, (parameters, lr) in self.learning_rates().items():
            trainable = [p for p in parameters if p.requires_grad]
            if not trainable:
                continue
            self.optimizers_dict[name] = self.opt_class(trainable, lr=lr)
            self.peak_lr[name] = lr
            if self.checkpointer is not None:
                self.checkpointer.add_recoverable(f"optimizer_{name}", self.optimizers_dict[name])

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.monitor.resume(self.optimizer_step)

    def on_fit_batch_start(self, batch: PaddedBatch, should_step: bool) -> None:
        self.batch_started = time.perf_counter()
        factor = self.hparams.schedule(self.optimizer_step)
        for name, optimizer in self.optimizers_dict.items():
            for group in optimizer.param_groups:
                group["lr"] = self.peak_lr[name] * factor
        micro_step = (self.step - 1) % self.grad_accumulation_factor
        if micro_step == 0:
            self.counted = torch.zeros((), device=self.device)
        rank = torch.distributed.get_rank() if distributed() else 0
        key = (self.hparams.seed * 1_000_003 + self.optimizer_step) * 4096
        torch.manual_seed((key + micro_step * 64 + rank) % 2**63)

    def due(self) -> bool:
        """Whether this update is logged."""
        return self.optimizer_step % self.hparams.log_every == 0

    def mean_loss(self, total: Tensor, count: Tensor) -> Tensor:
        """A loss to return from `compute_objectives`: `total` over (about) `count`.

        In training, all micro-batches and ranks of an update divide by one number, the mean count
        of its first micro-batches; `optimizers_step` then corrects that to the true total.
        """
        if not torch.is_grad_enabled():
            return total / count.clamp(min=1)
        if (self.step - 1) % self.grad_accumulation_factor == 0:
            self.reference = (all_sum(count) / self.ranks).clamp(min=1)
        self.counted = self.counted + count
        return total / self.reference

    def optimizers_step(self) -> None:
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.ranks * self.grad_accumulation_factor > 1:
            batches = self.ranks * self.grad_accumulation_factor
            scale = self.reference * batches / all_sum(self.counted).clamp(min=1)
            torch._foreach_mul_(grads, scale)
        if (self.optimizer_step + 1) % self.hparams.log_every == 0:
            norm = torch.nn.utils.get_total_norm(grads) / self.scaler.get_scale()
            self.gradient_norm = float(norm)
        super().optimizers_step()
        for optimizer in self.optimizers_dict.values():  # the Brain forgets the frozen ones
            optimizer.zero_grad(set_to_none=True)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time: float, steps_since_ckpt: int) -> bool:
        # in the middle of an update there are gradients that no checkpoint holds
        whole = self.step % self.grad_accumulation_factor == 0
        return whole and super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)

    def on_fit_batch_end(
        self, batch: PaddedBatch, outputs: Any, loss: Tensor, should_step: bool
    ) -> None:
        self.progress.audio_s += self.audio_s(batch) * self.ranks
        self.progress.seconds += time.perf_counter() - self.batch_started
        if should_step and self.due():
            self.log(self.describe(outputs, loss))

    def audio_s(self, batch: PaddedBatch) -> float:
        """Seconds of audio in a batch, cropped as the Brain crops it."""
        samples = batch.sig.lengths * batch.sig.data.shape[1]
        limit = getattr(self.hparams, "crop_s", math.inf) * SAMPLE_RATE
        return float(samples.clamp(max=limit).sum()) / SAMPLE_RATE

    def describe(self, outputs: Any, loss: Tensor) -> dict[str, float]:
        """What to log about a training step."""
        return {"loss": loss.item()}

    def log(self, scalars: dict[str, float]) -> None:
        scalars["lr"] = max(o.param_groups[0]["lr"] for o in self.optimizers_dict.values())
        scalars["grad_norm"] = self.gradient_norm
        scalars["audio_h"] = self.progress.audio_s / 3600
        scalars["seconds"] = self.progress.seconds
        self.monitor.write(self.optimizer_step, scalars)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        self.sums: dict[str, Any] = defaultdict(float)

    def on_stage_end(self, stage: sb.Stage, stage_loss: float, epoch: int | None = None) -> None:
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        scores = self.score(stage_loss)
        if stage == sb.Stage.VALID:
            seconds = {"valid_seconds": self.progress.seconds}
            self.monitor.write(
                self.optimizer_step, {**{f"valid_{k}": v for k, v in scores.items()}, **seconds}
            )
            self.hparams.train_logger.log_stats(
                {"update": self.optimizer_step},
                train_stats={"loss": self.train_loss},
                valid_stats=scores,
            )
            self.monitor.plot()
            self.save(scores)

    def score(self, stage_loss: float) -> dict[str, float]:
        """Scores of a finished validation or test pass."""
        return {"loss": float(stage_loss)}

    def save(self, scores: dict[str, float]) -> None:
        """Keep the best and the latest checkpoint."""
        self.checkpointer.save_and_keep_only(meta=scores, min_keys=["loss"])


def leave_group() -> None:
    """End a process of a distributed run: without this, one that exits late may abort."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
