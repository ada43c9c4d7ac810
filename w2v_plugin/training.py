"""What every Brain here shares: training counted in updates, with exact resume, and in chunks.

Everything random in a step follows from (seed, step, rank), so that an interrupted run that is
started again does exactly what it would have done. Learning rates are a function of the step for
the same reason.
"""

from __future__ import annotations

import math
import time
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
from torch.utils.data import Dataset

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.data import by_length, training_loader
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.monitor import Monitor
from w2v_plugin.ranks import all_sum, distributed


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


@register_checkpoint_hooks
class Progress:
    """Audio heard (all ranks) and time spent training; saved with every checkpoint.

    `seconds` is time by the clock in training, with reading of data, without validation;
    `cpu_seconds` is what this process computed in it, on all threads.
    """

    def __init__(self) -> None:
        self.samples: Tensor | int = 0  # a tensor stays on its device: reading it would wait
        self.seconds = self.cpu_seconds = 0.0
        self.start()

    def start(self) -> None:
        """Begin to count time here."""
        self.clock, self.cpu_clock = time.perf_counter(), time.process_time()

    def count(self) -> None:
        """Add the time since the last count."""
        clock, cpu_clock = self.clock, self.cpu_clock
        self.start()
        self.seconds += self.clock - clock
        self.cpu_seconds += self.cpu_clock - cpu_clock

    @property
    def audio_s(self) -> float:
        """Seconds of audio heard."""
        return int(self.samples) / SAMPLE_RATE

    @mark_as_saver
    def save(self, path: str | Path) -> None:
        times = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        torch.save({"audio_s": self.audio_s, **times}, path)

    @mark_as_loader
    def load(self, path: str | Path, end_of_epoch: bool = False) -> None:
        state = torch.load(path, weights_only=True)
        self.samples = round(state["audio_s"] * SAMPLE_RATE)
        self.seconds = state["seconds"]
        self.cpu_seconds = state.get("cpu_seconds", 0.0)  # older checkpoints do not know


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
        self.rank = torch.distributed.get_rank() if distributed() else 0
        self.logged = False  # whether this update is
        self.reference = torch.ones(())  # what `mean_loss` divided by in this update
        self.counted = torch.zeros(())  # frames or characters in this update, on this rank
        self.total = torch.zeros(())  # their loss

    def fit_on(self, train: Dataset, valid: DynamicItemDataset) -> None:
        """Run all updates; an epoch is `valid_every` of them, whatever the size of the corpus."""
        workers = getattr(self.hparams, "num_workers", 0)
        loader = training_loader(
            train,
            batch_s=self.hparams.batch_s,
            batches=self.hparams.valid_every * self.grad_accumulation_factor,
            crop_s=getattr(self.hparams, "crop_s", None),
            seed=self.hparams.seed,
            rank=self.rank,
            ranks=self.ranks,
            workers=workers,
        )
        self.train_sampler = loader.batch_sampler  # the Brain tells it the epoch
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("dataloader-TRAIN", loader)
        valid_loader = {**by_length(valid, self.hparams.batch_s), "num_workers": workers}
        self.fit(self.hparams.epoch_counter, loader, valid, valid_loader_kwargs=valid_loader)

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
        self.logged = (self.optimizer_step + 1) % self.hparams.log_every == 0
        factor = self.hparams.schedule(self.optimizer_step)
        for name, optimizer in self.optimizers_dict.items():
            for group in optimizer.param_groups:
                group["lr"] = self.peak_lr[name] * factor
        micro_step = (self.step - 1) % self.grad_accumulation_factor
        if micro_step == 0:
            self.counted = self.total = torch.zeros((), device=self.device)
        key = (self.hparams.seed * 1_000_003 + self.optimizer_step) * 4096
        # by place in the update: two ranks do what two micro-batches of one process do
        torch.manual_seed((key + micro_step * self.ranks + self.rank) % 2**63)

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
        self.total = self.total + total.detach()
        return total / self.reference

    def mean_of_update(self) -> float:
        """The loss of this update: over all its micro-batches and ranks (all of which must ask)."""
        total, count = all_sum(torch.stack([self.total.float(), self.counted.float()])).tolist()
        return total / max(count, 1)

    def optimizers_step(self) -> None:
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.ranks * self.grad_accumulation_factor > 1:
            batches = self.ranks * self.grad_accumulation_factor
            scale = self.reference * batches / all_sum(self.counted).clamp(min=1)
            torch._foreach_mul_(grads, scale)
        if self.logged:
            norm = torch.nn.utils.get_total_norm(grads) / self.scaler.get_scale()
            self.gradient_norm = float(norm)
        super().optimizers_step()
        for optimizer in self.optimizers_dict.values():  # the Brain forgets the frozen ones
            optimizer.zero_grad(set_to_none=True)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time: float, steps_since_ckpt: int) -> bool:
        # In the middle of an update there are gradients that no checkpoint holds. And ranks ask
        # each other whether it is time: logged updates are often enough for that.
        whole = self.step % self.grad_accumulation_factor == 0
        ask = self.logged or self.ckpt_interval_steps > 0
        return (
            whole
            and ask
            and super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)
        )

    def on_fit_batch_end(
        self, batch: PaddedBatch, outputs: Any, loss: Tensor, should_step: bool
    ) -> None:
        self.progress.samples = self.progress.samples + self.samples(batch) * self.ranks
        self.progress.count()
        if should_step and self.logged:
            self.log(self.describe(outputs, loss))

    def samples(self, batch: PaddedBatch) -> Tensor:
        """Samples of audio in a batch."""
        return (batch.sig.lengths * batch.sig.data.shape[1]).round().long().sum()

    def describe(self, outputs: Any, loss: Tensor) -> dict[str, float]:
        """What to log about an update, the same on all ranks, which all come here."""
        return {"loss": self.mean_of_update()}

    def log(self, scalars: dict[str, float]) -> None:
        scalars["lr"] = max(o.param_groups[0]["lr"] for o in self.optimizers_dict.values())
        scalars["grad_norm"] = self.gradient_norm
        scalars["audio_h"] = self.progress.audio_s / 3600
        scalars["seconds"] = self.progress.seconds
        self.monitor.write(self.optimizer_step, scalars)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        self.progress.start()

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


class ChunkBrain(StepBrain):
    """Trains and validates in chunks, so that the model can stream.

    Hyperparameters, both optional: `chunk_sampler`, SpeechBrain's dynamic chunk sampler, draws what
    a batch may see; `valid_chunks` says what validation sees, as for `ChunkConfig.read`: each batch
    is looked at once for each of them. Scores of the first one have plain names and pick the
    checkpoint; the others have a suffix, as in WER_640ms_5120ms or WER_full.
    """

    eval_chunk: ChunkConfig | None = None  # what evaluation sees now

    @property
    def valid_chunks(self) -> list[ChunkConfig | None]:
        """What validation sees, in turn."""
        return [ChunkConfig.read(x) for x in getattr(self.hparams, "valid_chunks", [None])]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        sampler = getattr(self.hparams, "chunk_sampler", None)
        if any(self.valid_chunks) or (sampler is not None and sampler.chunkwise_prob > 0):
            self.model.wav2vec2.check_streamable()

    def evaluate_batch(self, batch: PaddedBatch, stage: sb.Stage) -> Tensor:
        if stage != sb.Stage.VALID:
            return super().evaluate_batch(batch, stage)
        losses = []
        for self.eval_chunk in self.valid_chunks:  # noqa: B020 (what evaluation sees now)
            losses.append(super().evaluate_batch(batch, stage))
        self.eval_chunk = None
        return losses[0]

    def chunk(self, stage: sb.Stage) -> ChunkConfig | None:
        """What this batch may see."""
        return sample_chunk(self.hparams, stage) if stage == sb.Stage.TRAIN else self.eval_chunk

    def named(self, scores: dict[ChunkConfig | None, dict[str, Any]]) -> dict[str, Any]:
        """Scores at several chunks -> one dictionary, the first ones with plain names."""
        (_, first), *others = scores.items()
        return first | {
            f"{name}_{'full' if chunk is None else chunk.name}": value
            for chunk, more in others
            for name, value in more.items()
        }


def sample_chunk(hparams: Any, stage: sb.Stage) -> ChunkConfig | None:
    """Draw a chunk for this batch from SpeechBrain's dynamic chunk sampler, if there is one."""
    sampler = getattr(hparams, "chunk_sampler", None)
    config = None if sampler is None else sampler(stage)
    if config is None:
        return None
    left = config.left_context_size
    return ChunkConfig(config.chunk_size, None if left is None else left * config.chunk_size)
