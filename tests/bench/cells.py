"""Benchmark the cells that torch lacks against torch.nn.LSTM: forward and backward, two threads, alternating.

    make bench-cells

A result is the ratio of medians over rounds in which every candidate has its turn, so that other work on the machine
meets all alike; the input is as wide as the layer, and its gradient is asked for as well. The last line is JSON: the
ratios in float32, those in bfloat16 under their own key.
"""

import json
import statistics
import time

import torch
from torch import Tensor, nn

from app.models.recurrent import Cell, Recurrent

CELLS: tuple[Cell, ...] = ("peephole", "cifg", "peephole-cifg")
SIZES = {(200, 20, 35): 30, (650, 20, 35): 12, (1150, 40, 70): 4}  # (hidden, batch, steps): rounds
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Run the benchmark and print the table."""
    torch.set_num_threads(2)
    torch.manual_seed(1)
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'forward and backward':28}{'nn.LSTM':>12}" + "".join(f"{cell:>22}" for cell in CELLS))
    for name, kind in TYPES.items():
        ratios[name] = {cell: {} for cell in CELLS}
        for (size, batch, steps), rounds in SIZES.items():
            milliseconds = _medians(size, torch.randn(steps, batch, size, dtype=kind), rounds)
            shape = f"{size}x{batch}x{steps}"
            print(f"{name:12}{shape:16}{milliseconds['nn.LSTM']:9.1f} ms", end="", flush=True)
            for cell in CELLS:
                ratio = milliseconds[cell] / milliseconds["nn.LSTM"]
                ratios[name][cell][shape] = round(ratio, 3)
                print(f"{milliseconds[cell]:12.1f} ms{ratio:7.2f}", end="", flush=True)
            print()
    print(json.dumps({**ratios["float32"], "bfloat16": ratios["bfloat16"]}))


def _medians(size: int, inputs: Tensor, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each candidate."""
    candidates: dict[str, nn.Module] = {"nn.LSTM": nn.LSTM(size, size)}
    candidates |= {cell: Recurrent(size, (size,), cell=cell) for cell in CELLS}
    for module in candidates.values():
        for parameter in module.to(inputs.dtype).parameters():
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)
    weight = torch.randn_like(inputs)
    inputs.requires_grad_()
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for module in candidates.values():
        _milliseconds(module, inputs, weight)  # warm-up, which may compile
    for _ in range(rounds):
        for name, module in candidates.items():
            taken[name].append(_milliseconds(module, inputs, weight))
    return {name: statistics.median(times) for name, times in taken.items()}


def _milliseconds(module: nn.Module, inputs: Tensor, weight: Tensor) -> float:
    started = time.perf_counter()
    outputs, _ = module(inputs)
    outputs.backward(weight)
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
