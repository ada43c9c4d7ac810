"""Device and precision: as asked or what is fastest, and one readable line about it."""

from __future__ import annotations

import sys

import pytest
import torch

from w2v_plugin import devices, products
from w2v_plugin.devices import choose


def speeds(monkeypatch, **seconds: float | Exception) -> None:
    """Let each precision take so long, and every device do every one of them."""
    names = {dtype: name for name, dtype in devices.DTYPES.items()}

    def fake(dtype: torch.dtype, device: torch.device) -> float:
        result = seconds[names[dtype]]
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(devices, "_seconds", fake)
    monkeypatch.setattr(devices, "check_precision", lambda precision, device: None)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"fp32": 1.0, "bf16": 0.5, "fp16": 0.9}, "bf16"),
        ({"fp32": 1.0, "bf16": 0.5, "fp16": 0.51}, "fp16"),  # as fast, and finer
        ({"fp32": 1.0, "bf16": 0.3, "fp16": 0.5}, "bf16"),
        ({"fp32": 1.0, "bf16": 2.0, "fp16": 0.4}, "fp16"),
        ({"fp32": 1.0, "bf16": 0.8, "fp16": 0.8}, "fp32"),  # 1.25 times: not worth it
        ({"fp32": 1.0, "bf16": 3.0, "fp16": 9.0}, "fp32"),
    ],
)
def test_auto_takes_what_is_worth_it(monkeypatch, seconds, expected) -> None:
    """Half precision from 1.3 times the speed on; the reason has the numbers."""
    speeds(monkeypatch, **seconds)
    choice = choose("cpu", "auto")
    assert choice.precision == expected
    for name in ("bf16", "fp16"):
        assert f"{name} {1 / seconds[name]:.1f} x the speed of fp32" in choice.reason
    assert str(choice) == f"cpu, {expected} ({choice.reason})" and "\n" not in str(choice)


@pytest.mark.parametrize("error", [RuntimeError("no bf16 here"), TypeError("no such type")])
def test_auto_goes_on_without_a_precision(monkeypatch, error) -> None:
    """Accelerators without bf16 say so only when asked; one without float32 is broken."""
    speeds(monkeypatch, fp32=1.0, bf16=error, fp16=0.5)
    assert choose("cpu", "auto").precision == "fp16"
    speeds(monkeypatch, fp32=1.0, bf16=error, fp16=error)
    assert str(choose("cpu", "auto")) == "cpu, fp32 (as asked; no half precision in this hardware)"
    speeds(monkeypatch, fp32=RuntimeError("broken"), bf16=0.5, fp16=0.5)
    with pytest.raises(RuntimeError, match="broken"):
        choose("cpu", "auto")


def test_auto_asks_what_the_processor_can_do(monkeypatch) -> None:
    """Without instructions nothing but float32 is even timed, and INT8 never."""
    timed = []
    monkeypatch.setattr(devices, "_seconds", lambda dtype, device: timed.append(dtype) or 1.0)
    monkeypatch.setattr("w2v_plugin.compression.available", lambda: False)
    assert choose("cpu", "auto").precision == "fp32"
    assert timed == [torch.float32]


def test_an_accelerator_is_taken_where_there_is_one(monkeypatch) -> None:
    """With None and "auto"; the reason says which case it was."""
    for device in (None, "auto"):
        for found, name in ((torch.device("meta"), "meta"), (None, "cpu")):
            monkeypatch.setattr(
                torch.accelerator, "current_accelerator", lambda check_available, found=found: found
            )
            choice = choose(device, "fp32")
            assert str(choice.device) == name
            assert choice.reason == ("no " if found is None else "") + "accelerator found"


ABSENT = ["tpu", "", "CPU", "meta", "vulkan", "cuda:99"]
ABSENT += [] if torch.backends.mps.is_available() else ["mps"]


@pytest.mark.parametrize("device", ABSENT)
def test_absent_devices_are_refused_in_one_line(device) -> None:
    """PyTorch's reason, without the pages that follow it."""
    with pytest.raises(
        ValueError, match=rf"^device='{device}' cannot be used here \(.+\)\. Use"
    ) as e:
        choose(device)
    message = str(e.value)
    assert "\n" not in message and len(message) < 350 and message.endswith("what is there.")


def test_absent_library_is_named(monkeypatch) -> None:
    """XLA lives in a package of its own."""
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    with pytest.raises(ValueError, match=r"device='xla:0' cannot be used here .*torch_xla"):
        choose("xla:0")


def test_impossible_precisions_are_refused(monkeypatch) -> None:
    """Unknown, or not on that device."""
    with pytest.raises(ValueError, match="precision='half', expected one of fp32"):
        choose("cpu", "half")
    accelerator = torch.device("meta")
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: accelerator
    )
    with pytest.raises(ValueError, match="works on a CPU, not on meta"):
        choose(None, "int8")


@pytest.mark.parametrize("packed", [True, False])
def test_a_product_is_timed(monkeypatch, packed) -> None:
    """The one that is used here, or the plain one; small, or this test would take its time."""
    monkeypatch.setattr(devices, "SHAPE", (2, 3, 4))
    if packed and not products.available():
        pytest.skip("needs oneDNN on x86")
    monkeypatch.setattr(devices, "available", lambda: packed)
    assert devices._seconds(torch.float32, torch.device("cpu")) > 0
