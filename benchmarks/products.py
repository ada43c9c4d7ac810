"""How fast this machine multiplies matrices: a product of BASE's feed-forward, 10 s, alone.

Explains the other tables: `nn.Linear` in float32 is MKL, `PackedLinear` oneDNN. Writes a section of
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import contextlib
import statistics

import measure
import torch

from w2v_plugin.compression import DTYPES, check_precision
from w2v_plugin.products import Int8Linear, PackedLinear

FRAMES, INPUTS, OUTPUTS = 499, 768, 3072


def main() -> None:
    torch.set_num_threads(1)
    layer, x = torch.nn.Linear(INPUTS, OUTPUTS), torch.randn(FRAMES, INPUTS)
    jobs: dict[str, torch.nn.Module] = {"nn.Linear fp32": layer}
    for name, dtype in DTYPES.items():
        with contextlib.suppress(ValueError):  # not on this CPU
            check_precision(name, torch.device("cpu"))
            jobs[f"PackedLinear {name}"] = PackedLinear(layer.weight, layer.bias, dtype)
    jobs["Int8Linear, quantization included"] = Int8Linear(layer.weight, layer.bias)
    with torch.inference_mode():
        times = measure.interleaved({name: lambda j=job: j(x) for name, job in jobs.items()}, 50)
    operations = 2 * FRAMES * INPUTS * OUTPUTS
    rows = [[name, f"{operations / statistics.median(t) / 1e9:.0f}"] for name, t in times.items()]
    measure.write_section(
        f"Matrix products, {FRAMES} x {INPUTS} x {OUTPUTS}, 1 thread",
        f"`python benchmarks/products.py`. {measure.circumstances()}\n\n"
        f"{measure.table(['product', 'GFLOP/s or GOP/s'], rows)}",
    )


if __name__ == "__main__":
    main()
