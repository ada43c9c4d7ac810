"""SpeechBrain Brains: how the models are trained.

`StepBrain` holds what all of them share. Everything random in a step follows from (seed, step,
rank), so that an interrupted run that is started again does exactly what it would have done.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
import torch.nn.functional as F
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.metric_stats import ErrorRateStats
from torch import Tensor, nn

from w2v_plugin.attention import ChunkConfig
from w2v_plugin.data import crop
from w2v_plugin.decoding import greedy
from w2v_plugin.errors import TrainingCollapsed
from w2v_plugin.frames import SAMPLE_RATE
from w2v_plugin.model import PretrainingOutput, Wav2Vec2Output
from w2v_plugin.monitor import Monitor
from w2v_plugin.quantizer import perplexity


def tri_stage(
    step: int, total: int, *, warmup: float = 0.1, hold: float = 0.4, final: float = 0.05
) -> float:
    """Share of the peak learning rate: linear warm-up, constant, linear decay.

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

    Hyperparameters that it reads: `seed`, `log_every` (updates), `output_folder`, and
    `schedule`, a function from the update to a share of the peak learning rate.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.monitor = Monitor(self.hparams.output_folder)
        self.progress = Progress()
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("progress", self.progress)
        self.peak_lr: dict[str, float] = {}
        self.gradient_norm = math.nan

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
        micro_step = self.step % self.grad_accumulation_factor
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        key = (self.hparams.seed * 1_000_003 + self.optimizer_step) * 4096
        torch.manual_seed((key + micro_step * 64 + rank) % 2**63)

    def due(self) -> bool:
        """Whether this update is logged."""
        return self.optimizer_step % self.hparams.log_every == 0

    def optimizers_step(self) -> None:
        if (self.optimizer_step + 1) % self.hparams.log_every == 0:
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads) / self.scaler.get_scale()
            self.gradient_norm = float(norm)
        super().optimizers_step()

    def on_fit_batch_end(
        self, batch: PaddedBatch, outputs: Any, loss: Tensor, should_step: bool
    ) -> None:
        self.progress.audio_s += float((batch.sig.lengths * batch.sig.data.shape[1]).sum())
        self.progress.seconds += time.perf_counter() - self.batch_started
        if should_step and self.due():
            self.log(self.describe(outputs, loss))

    def describe(self, outputs: Any, loss: Tensor) -> dict[str, float]:
        """What to log about a training step."""
        return {"loss": loss.item()}

    def log(self, scalars: dict[str, float]) -> None:
        scalars["lr"] = max(o.param_groups[0]["lr"] for o in self.optimizers_dict.values())
        scalars["grad_norm"] = self.gradient_norm
        scalars["audio_h"] = self.progress.audio_s / SAMPLE_RATE / 3600
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


class WarmStartBrain(StepBrain):
    """Trains `MelRegression`. Further hyperparameters: `lr`, `crop_s`."""

    def compute_forward(self, batch: PaddedBatch, stage: sb.Stage) -> Tensor:
        wavs, wav_lens = batch.to(self.device).sig
        return self.modules.model(*crop(wavs, wav_lens, int(self.hparams.crop_s * SAMPLE_RATE)))

    def compute_objectives(self, predictions: Tensor, batch: PaddedBatch, stage: sb.Stage) -> Tensor:
        return predictions


class PretrainBrain(StepBrain):
    """Contrastive pretraining of `modules.model`, a `Wav2Vec2Pretraining`.

    Further hyperparameters: `lr`, `slow_lr` (extractor and quantizer projection), `crop_s`,
    and optionally `chunk_sampler`.
    """

    def learning_rates(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        slow = [*self.model.wav2vec2.extractor.parameters()]
        slow += [*self.model.wav2vec2.projection.norm.parameters()]
        slow += [p for n, p in self.model.quantizer.named_parameters() if n != "codebook"]
        known = {id(p) for p in slow}
        rest = [p for p in self.model.parameters() if id(p) not in known]
        return {"slow": (slow, self.hparams.slow_lr), "main": (rest, self.hparams.lr)}

    def compute_forward(self, batch: PaddedBatch, stage: sb.Stage) -> PretrainingOutput:
        wavs, wav_lens = batch.to(self.device).sig
        if stage == sb.Stage.TRAIN:
            wavs, wav_lens = crop(wavs, wav_lens, int(self.hparams.crop_s * SAMPLE_RATE))
            return self.modules.model(wavs, wav_lens, chunk=sample_chunk(self.hparams, stage))
        generator = torch.Generator(wavs.device).manual_seed(self.step)
        return self.modules.model(wavs, wav_lens, generator=generator)

    def compute_objectives(
        self, predictions: PretrainingOutput, batch: PaddedBatch, stage: sb.Stage
    ) -> Tensor:
        contrastive, count = predictions.contrastive, predictions.contrastive.count
        if stage != sb.Stage.TRAIN:
            self.sums["loss"] += float(contrastive.loss)
            self.sums["correct"] += float(contrastive.correct)
            self.sums["chance"] += float(predictions.chance)  # type: ignore[arg-type]
            self.sums["count"] += float(count)
            self.sums["shared"] += float(contrastive.shared * count)
            self.sums["shares"] += predictions.quantized.shares * count
        return predictions.loss / count.clamp(min=1)

    def on_fit_batch_end(
        self, batch: PaddedBatch, outputs: PretrainingOutput, loss: Tensor, should_step: bool
    ) -> None:
        if should_step:
            self.model.quantizer.after_update()
        super().on_fit_batch_end(batch, outputs, loss, should_step)

    def describe(self, outputs: PretrainingOutput, loss: Tensor) -> dict[str, float]:
        contrastive, quantized = outputs.contrastive, outputs.quantized
        count = contrastive.count.clamp(min=1)
        record = {
            "loss": loss.item(),
            "contrastive": (contrastive.loss / count).item(),
            "accuracy": (contrastive.correct / count).item(),
            "diversity": quantized.diversity.item(),
            "commitment": quantized.commitment.item(),
            "feature_penalty": outputs.penalty.item(),
            "code_perplexity": quantized.code_perplexity.mean().item(),
            "prob_perplexity": quantized.prob_perplexity.mean().item(),
            "codes_used": quantized.usage.mean().item(),
            "shared_negatives": contrastive.shared.item(),
            "masked_share": (outputs.mask.sum() / outputs.frame_lengths.sum()).item(),
            "temperature": self.model.quantizer.temperature,
        }
        check_collapse(record)
        return record

    def score(self, stage_loss: float) -> dict[str, float]:
        count = max(self.sums["count"], 1)
        shares = self.sums["shares"] / count  # (groups, codes)
        return {
            "loss": self.sums["loss"] / count,
            "accuracy": self.sums["correct"] / count,
            "chance": self.sums["chance"] / count,
            "code_perplexity": float(perplexity(shares).mean()),
            "codes_used": float((shares > 0).float().mean()),
            "shared_negatives": self.sums["shared"] / count,
        }

    def save(self, scores: dict[str, float]) -> None:
        check_collapse({**scores, "contrastive": scores["loss"]})
        self.checkpointer.save_and_keep_only(meta=scores, max_keys=["accuracy"])


def check_collapse(record: dict[str, float]) -> None:
    """Stop when one code stands for everything.

    Then all negatives equal the positive and are left out, and the loss is 0.000: it looks like
    success. The codes without noise tell.
    """
    if record["code_perplexity"] >= 2.0:
        return
    raise TrainingCollapsed(
        f"The codebook collapsed: code perplexity {record['code_perplexity']:.2f} (1 = a single "
        f"code), contrastive loss {record['contrastive']:.3f}, accuracy {record['accuracy']:.3f}. "
        "The loss means nothing from here on. Start again with a lower lr, a warm start "
        "(warm_start_updates), a lower penalty_weight or a higher diversity_weight."
    )


class CTCBrain(StepBrain):
    """CTC fine-tuning of `modules.model`, a `Wav2Vec2CTC`.

    Further hyperparameters: `vocabulary`, `encoder_lr`, `head_lr`, `freeze_encoder_updates`
    (updates in which only the head learns), `keep_latents` (keep a frozen extractor's output in
    memory), and optionally `chunk_sampler`. `eval_chunk` restricts what evaluation sees.
    """

    eval_chunk: ChunkConfig | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: dict[str, Tensor] = {}

    def learning_rates(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {
            "head": (list(self.model.head.parameters()), self.hparams.head_lr),
            "encoder": (list(self.model.wav2vec2.parameters()), self.hparams.encoder_lr),
        }

    def freeze_optimizers(self, optimizers: dict[str, Any]) -> dict[str, Any]:
        if self.optimizer_step < self.hparams.freeze_encoder_updates:
            return {"head": optimizers["head"]}
        return optimizers

    def latents(self, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        """Output of a frozen extractor; computed once per utterance."""
        wavs, wav_lens = batch.sig
        new = [i for i, name in enumerate(batch.id) if name not in self.kept]
        if new:
            latents, lengths = self.model.wav2vec2.extract(wavs[new], wav_lens[new])
            for i, row, length in zip(new, latents, lengths.tolist(), strict=True):
                self.kept[batch.id[i]] = row[:length].clone()
        rows = [self.kept[name] for name in batch.id]
        lengths = torch.tensor([len(row) for row in rows], device=wavs.device)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths

    def compute_forward(self, batch: PaddedBatch, stage: sb.Stage) -> Wav2Vec2Output:
        batch = batch.to(self.device)
        training = stage == sb.Stage.TRAIN
        chunk = sample_chunk(self.hparams, stage) if training else self.eval_chunk
        frozen = self.model.wav2vec2.feature_grad_scale == 0
        if self.hparams.keep_latents and frozen and stage != sb.Stage.TEST:
            return self.modules.model(None, latents=self.latents(batch), chunk=chunk)
        return self.modules.model(*batch.sig, chunk=chunk)

    def compute_objectives(
        self, predictions: Wav2Vec2Output, batch: PaddedBatch, stage: sb.Stage
    ) -> Tensor:
        """Negative log-likelihood per character, in nats."""
        assert predictions.logits is not None
        vocabulary, (tokens, token_lens) = self.hparams.vocabulary, batch.tokens
        lengths = torch.round(token_lens * tokens.shape[1]).long()
        loss = F.ctc_loss(
            predictions.logits.float().log_softmax(-1).transpose(0, 1),
            tokens,
            predictions.frame_lengths,
            lengths,
            blank=vocabulary.get_blank_index(),
            reduction="sum",
            zero_infinity=True,
        ) / lengths.sum().clamp(min=1)
        if stage != sb.Stage.TRAIN:
            self.read(predictions, batch)
        return loss

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        super().on_stage_start(stage, epoch)
        self.wer, self.cer = ErrorRateStats(), ErrorRateStats(split_tokens=True)

    def read(self, predictions: Wav2Vec2Output, batch: PaddedBatch) -> None:
        """Decode greedily and count the errors."""
        assert predictions.logits is not None
        vocabulary = self.hparams.vocabulary
        blank = vocabulary.get_blank_index()
        found = [
            vocabulary.decode_tokens(tokens).split()
            for tokens in greedy(predictions.logits, predictions.frame_lengths, blank)
        ]
        truth = [vocabulary.decode_tokens(vocabulary.encode_text(t)).split() for t in batch.wrd]
        self.wer.append(batch.id, found, truth)
        self.cer.append(batch.id, found, truth)

    def score(self, stage_loss: float) -> dict[str, float]:
        return {
            "loss": float(stage_loss),
            "WER": float(self.wer.summarize("error_rate")),
            "CER": float(self.cer.summarize("error_rate")),
        }

    def on_stage_end(self, stage: sb.Stage, stage_loss: float, epoch: int | None = None) -> None:
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TEST:
            self.test_scores = self.score(stage_loss)

    def save(self, scores: dict[str, float]) -> None:
        self.checkpointer.save_and_keep_only(meta=scores, min_keys=["WER"])


def sample_chunk(hparams: Any, stage: sb.Stage) -> ChunkConfig | None:
    """Draw a chunk for this batch from SpeechBrain's dynamic chunk sampler, if there is one."""
    sampler = getattr(hparams, "chunk_sampler", None)
    config = None if sampler is None else sampler(stage)
    if config is None:
        return None
    left = config.left_context_size
    return ChunkConfig(config.chunk_size, None if left is None else left * config.chunk_size)
