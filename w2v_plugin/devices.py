"""Which device and which precision: as asked, or what is fastest here, with the reason."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from w2v_plugin.compression import DTYPES, check_precision
from w2v_plugin.products import PackedLinear, available

WORTH_IT = 1.3  # times as fast as float32, or half precision is not chosen
SHAPE = (512, 1024, 1024)  # of the product that is timed: 10 s of audio through a layer of LARGE


@dataclass(frozen=True)
class Choice:
    """Where and how to compute, and why; `str()` of it is one line."""

    device: torch.device
    precision: str
    reason: str

    def __str__(self) -> str:
        return f"{self.device}, {self.precision} ({self.reason})"


def choose(device: str | None = None, precision: str = "auto") -> Choice:
    """Choose device and precision.

    Parameters
    ----------
    device : str, optional
        "cpu", "cuda", "cuda:1", "mps", "xla" …; None or "auto" for an accelerator if PyTorch
        finds one, else the CPU.
    precision : {"auto", "fp32", "bf16", "fp16", "int8"}
        "auto" times one matrix product in each precision (some 50 ms) and takes half precision
        where that is at least 1.3 times as fast: on accelerators as a rule, on CPUs only with
        instructions for it. It never takes INT8, which changes answers more.

    Raises
    ------
    ValueError
        There is no such device here, or it cannot do that precision.

    Example
    -------
    >>> print(choose("cpu", "fp32"))
    cpu, fp32 (as asked)
    """
    if device in (None, "auto"):
        found = torch.accelerator.current_accelerator(check_available=True)
        chosen, reason = found or torch.device("cpu"), "accelerator found"
        if found is None:
            reason = "no accelerator found"
    else:
        chosen, reason = _existing(str(device)), "as asked"
    if precision != "auto":
        check_precision(precision, chosen)
        return Choice(chosen, precision, reason)
    precision, speeds = _fastest(chosen)
    return Choice(chosen, precision, f"{reason}; {speeds}")


def _existing(name: str) -> torch.device:
    try:
        if name.startswith("xla"):
            import torch_xla  # noqa: F401 (makes the device known)
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = re.split(r"[.;]?\s*\n|[.;]\s", str(error))[0]  # some go on for pages
        raise ValueError(
            f"device={name!r} cannot be used here ({reason}). "
            'Use "cpu", or leave it out to take what is there.'
        ) from error
    return device


def _fastest(device: torch.device) -> tuple[str, str]:
    """Precision and the speeds that speak for it."""
    seconds = {}
    for precision in DTYPES:
        try:
            check_precision(precision, device)
            seconds[precision] = _seconds(DTYPES[precision], device)
        except (ValueError, RuntimeError, TypeError):  # the latter: accelerators without bf16
            if precision == "fp32":
                raise
    base = seconds.pop("fp32")
    ratios = {precision: base / value for precision, value in seconds.items()}
    said = ", ".join(f"{name} {ratio:.1f} x the speed of fp32" for name, ratio in ratios.items())
    best = max(ratios, key=lambda name: ratios[name], default="fp32")
    if ratios.get(best, 0) < WORTH_IT:
        return "fp32", said or "no half precision in this hardware"
    if best == "bf16" and ratios.get("fp16", 0) > 0.8 * ratios["bf16"]:
        best = "fp16"  # as fast, and rounds eight times as finely
    return best, said


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Time of the products between two looks at the result, the best of five."""
    rows, inputs, outputs = SHAPE
    x, weight = torch.ones(rows, inputs, device=device), torch.ones(outputs, inputs, device=device)
    if device.type == "cpu" and available():
        packed = PackedLinear(weight, None, dtype)

        def product() -> torch.Tensor:
            return packed(x)
    else:
        x, weight = x.to(dtype), weight.to(dtype)

        def product() -> torch.Tensor:
            return F.linear(x, weight)

    # looking takes an accelerator longer than a product, so that one would tell nothing
    products, times = 1 if device.type == "cpu" else 50, []
    with torch.inference_mode():
        for _ in range(6):
            start = time.perf_counter()
            for _ in range(products):
                y = product()
            y[0, 0].item()  # waits for the device
            times.append(time.perf_counter() - start)
    return min(times[1:])  # the first one compiles
