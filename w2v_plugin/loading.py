"""Where interfaces come from: model folders and published checkpoints, made ready for a device.

Both ways end in `Interface`, a SpeechBrain `Pretrained` whose model is optimized for where it shall
work (compression.py): packed or quantized on a CPU, in the chosen precision elsewhere.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from speechbrain.inference.interfaces import Pretrained
from torch import Tensor, nn

from w2v_plugin.audio import check_batch
from w2v_plugin.checkpoints import AnyModel, load_checkpoint
from w2v_plugin.compression import optimize
from w2v_plugin.devices import Choice, choose
from w2v_plugin.frames import HOP
from w2v_plugin.language_folders import choose_language, open_language, per_language
from w2v_plugin.model import Wav2Vec2
from w2v_plugin.model_output import Wav2Vec2Output
from w2v_plugin.overlap import Windows

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

PathLike = str | Path


class Interface(Pretrained):
    """What all interfaces share: loading, device and precision, batches without padding.

    `choice` says where it works and why; `windows` how long audio is cut, see `Windows`.
    """

    choice: Choice
    windows = Windows()

    def __init__(
        self,
        modules: dict[str, nn.Module],
        hparams: dict[str, Any],
        run_opts: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if missing := [name for name in self.MODULES_NEEDED if name not in modules]:
            raise ValueError(
                f"{type(self).__name__} needs modules {missing}, got {sorted(modules)}. A folder "
                "written by pretraining has no head: fine-tune it, or use Wav2Vec2Encoder."
            )
        options: dict[str, Any] = {
            key: hparams[key] for key in ("precision", "keep_fp32") if key in hparams
        }
        options |= run_opts or {}
        asked = options.pop("precision", "fp32")
        self.choice = choose(options.pop("device", None), asked)
        if (asked, hparams.get("precision")) == (
            "auto",
            "int8",
        ) and self.choice.device.type == "cpu":
            self.choice = Choice(self.choice.device, "int8", "as the weights are stored")
        keep_fp32 = options.pop("keep_fp32", ())
        self._compiled = options.pop("compile", False)
        model = modules[self.MODULES_NEEDED[0]]
        optimize(
            model,
            self.choice.precision,
            device=self.choice.device,
            keep_fp32=keep_fp32,
            compile=self._compiled,
        )
        options |= {"device": str(self.choice.device), "precision": "fp32"}  # no autocast on top
        super().__init__(modules=modules, hparams=hparams, run_opts=options, **kwargs)
        logger.info("%s on %s", type(self).__name__, self.choice)

    @classmethod
    def from_hparams(
        cls,
        source: PathLike,
        hparams_file: str = "hyperparams.yaml",
        *,
        language: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a model folder written by our recipes.

        Parameters
        ----------
        source : str or Path
            The folder, or the id of a Hugging Face repository that holds one. Its YAML file can
            run code: use sources that you trust. Nothing is written for a local folder.
        hparams_file : str
            Name of the YAML file inside.
        language : str, optional
            Of a local folder of languages (`save_language`), see `set_language`; None for the only
            one. A class that does not transcribe gets vectors of the body that all share then.
        **kwargs
            As in SpeechBrain: `savedir`, `overrides`, and run_opts={"device": "cuda",
            "precision": "fp16"} with the values of `from_checkpoint`, whose `keep_fp32` and
            `compile` may be there, too. The folder itself says the default precision.

        Raises
        ------
        FileNotFoundError
            No such folder, or it is of another kind.
        CheckpointMismatch
            The weights do not fit the model that the YAML file describes.
        ValueError
            There is no such language, or several to choose from.
        """
        folder = Path(source).expanduser()
        if folder.is_dir():
            _check_folder(folder, hparams_file)
            source = folder
            speaks = "model" in cls.MODULES_NEEDED and per_language(folder) is not None
            if language is not None or speaks:
                return cls._in_language(folder, language, **kwargs)
        elif folder.is_absolute() or len(folder.parts) != 2:
            raise FileNotFoundError(
                f"{source}: no such folder. Expected a folder with {hparams_file}, such as "
                "<output_folder>/model, or the id of a Hugging Face repository."
            )
        if language is not None:
            raise ValueError(
                f"language={language!r}: {source} is no local folder. Download it first, or load "
                "an MMS model with from_checkpoint."
            )
        return super().from_hparams(str(source), hparams_file, **kwargs)

    @classmethod
    def _in_language(
        cls, folder: Path, language: str | None, run_opts: dict[str, Any] | None = None
    ) -> Self:
        """From a folder of languages; only `run_opts` of what SpeechBrain knows means something."""
        language = choose_language(folder, language)
        model, _ = open_language(folder, language)
        instance = cls(*cls._adopt(model, folder, language), run_opts=run_opts)
        instance.source = folder
        return instance

    @classmethod
    def from_checkpoint(
        cls,
        source: PathLike,
        *,
        device: str | None = None,
        precision: str = "fp32",
        padding: str = "exact",
        language: str | None = None,
        keep_fp32: Collection[str] = (),
        compile: bool = False,
    ) -> Self:
        """Load a published checkpoint.

        Parameters
        ----------
        source : str or Path
            See `load_checkpoint`. To transcribe, it needs a CTC head and a vocabulary; to encode,
            heads do not matter.
        device : str, optional
            "cpu", "cuda:1", …; None for an accelerator if there is one.
        precision : {"fp32", "bf16", "fp16", "int8", "auto"}
            Of matrix products. "int8" works on CPUs; "auto" takes half precision where that is
            faster, see `choose`.
        padding : {"exact", "mask", "reference"}
            See `Wav2Vec2`.
        language : str, optional
            Of a multilingual model (MMS), see `set_language`.
        keep_fp32 : collection of str
            Parts that INT8 or half precision shall leave alone on a CPU, see `optimize`.
        compile : bool
            Run through `torch.compile`, which takes a minute at the first call and, on a CPU,
            a C++ compiler.
        """
        model = load_checkpoint(source, padding=padding, language=language)
        modules, hparams = cls._adopt(model, source, language)
        run_opts = {"precision": precision, "keep_fp32": keep_fp32, "compile": compile}
        instance = cls(modules, hparams, run_opts=run_opts | ({"device": device} if device else {}))
        instance.source = source
        return instance

    source: PathLike | None = None  # where `set_language` finds more of them

    @classmethod
    @abstractmethod
    def _adopt(
        cls, model: AnyModel, source: PathLike, language: str | None
    ) -> tuple[dict[str, nn.Module], dict[str, Any]]:
        """Modules and hparams for a loaded checkpoint."""

    @property
    def _packs(self) -> bool:
        """Whether batches are packed: on a CPU, unless padding is meant to change the answer.

        What is compiled is `forward`, which takes padded batches.
        """
        model = self.mods[self.MODULES_NEEDED[0]]
        body = model if isinstance(model, Wav2Vec2) else model.wav2vec2
        on_cpu = self.choice.device.type == "cpu"
        return on_cpu and not self._compiled and body.padding == "exact"

    def _run(self, wavs: list[Tensor], **options: Any) -> list[Wav2Vec2Output]:
        """Waveforms (samples,) -> an output of batch size 1 for each."""
        model = self.mods[self.MODULES_NEEDED[0]]
        device = self.choice.device
        if self._packs:
            outs = model.forward_packed([wav.to(device, torch.float32) for wav in wavs], **options)
        else:
            lengths = torch.tensor([len(wav) for wav in wavs], dtype=torch.float64)
            batch = nn.utils.rnn.pad_sequence(list(wavs), batch_first=True)
            outs = model(*check_batch(batch, lengths / batch.shape[1], device), **options).rows()
        results = [x for out in outs for x in (out.context, out.logits) if x is not None]
        if not all(bool(x.isfinite().all()) for x in results):
            raise FloatingPointError(
                f"The model gave NaN or infinity in {self.choice.precision}. Use "
                'precision="bf16" or "fp32".'
            )
        return outs

    @property
    def _longest_s(self) -> float:
        """Longest audio that is not cut into windows, which count in frames of 20 ms."""
        model = self.mods[self.MODULES_NEEDED[0]]
        body = model if isinstance(model, Wav2Vec2) else model.wav2vec2
        published = math.prod(body.extractor.strides) == HOP
        return self.windows.length_s if published else math.inf


def _check_folder(folder: Path, hparams_file: str) -> None:
    inner = folder / "model" / hparams_file
    if inner.is_file():  # an output folder: its YAML is that of the training
        raise FileNotFoundError(f"{folder} is the output of a run; its model is {inner.parent}.")
    if (folder / hparams_file).is_file():
        return
    hint = "Expected a folder written by training, such as <output_folder>/model."
    if (folder / "config.json").is_file():
        hint = "It looks like a transformers checkpoint: load it with from_checkpoint."
    raise FileNotFoundError(f"{folder}: no {hparams_file} in this folder. {hint}")
