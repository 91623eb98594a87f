"""Tokens a second of training in one process of two threads, and in two processes of one: `make bench-training`.

The recipe `language-model`, preset `cpu`, on random tokens: the second of two epochs of 20 steps counts. The last line
is JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from training.run import Run

SETTINGS: Final = {"one process, two threads": (1, 2), "two processes, one thread": (2, 1)}
TOKENS: Final = {"train": 20 * 64 * 70 + 1, "valid": 2_000, "test": 2_000}


def main() -> None:
    """Run the benchmark and print the table."""
    draw = np.random.default_rng(1)
    speeds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, texts = Path(name), list[str]()
        for split, size in TOKENS.items():
            lines = draw.integers(10_000, size=(size // 20, 19)).tolist()  # and the end of each line
            (folder / split).write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
            texts += [f"--{split}", str(folder / split)]
        for at, (label, (processes, threads)) in enumerate(SETTINGS.items()):
            run = Run(folder / f"run{at}")
            options = ["--epochs", "2", "--processes", str(processes), "--run", str(run.folder)]
            subprocess.run(
                [sys.executable, "-m", "training", "language-model", "cpu", *options, *texts],
                env=os.environ | {"OMP_NUM_THREADS": str(threads), "XDG_CACHE_HOME": str(folder / "cache")},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            speeds[label] = round(run.metrics()[-1]["tokens_per_second"])
            print(f"{label:28}{speeds[label]:8} tokens/s", flush=True)
    print(json.dumps(speeds))


if __name__ == "__main__":
    main()
