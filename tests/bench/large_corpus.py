"""Peak memory of tokenizing a large text and of training on it: `make bench-corpus`.

Writes documents of random words, then runs the commands a user would: a tokenizer is trained on every hundredth
document, a small model is trained for one step, for which all is tokenized, and then for 99 more. The memory is that
of all processes together, sampled twenty times a second: resident (with mapped files and libraries; shared pages count
in each process) and anonymous. The last line is JSON. Takes 1.6 times the text's size of disk in `--folder`; nothing is
left there. 4 GB take ten minutes on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

WORDS: Final = 50_000
LIMIT_GB: Final = 1.5
SMALL: Final = (
    "--embedding-size 64 --width 64 --layers 2 --hidden-size 64 --inner-size 128 --batch-size 16 --negatives 1024 "
    "--no-compiled --validate-every 100"
).split()


def main() -> None:
    """Run the benchmark and print the table; exit with status 1 if it took more memory than the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the text")
    parser.add_argument("--folder", type=Path, help="where a temporary folder is made; default: the system's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        started = time.monotonic()
        write_texts(folder / "texts", int(options.gigabytes * 1e9))
        print(f"{options.gigabytes} GB of text written in {time.monotonic() - started:.0f} s", flush=True)
        data, tokenizer = ["--data", folder / "texts"], folder / "tokenizer.json"
        train = ["subword-language-model", "everyday", "--run", folder / "run", *data, "--tokenizer", tokenizer, *SMALL]
        commands = {
            "training of the tokenizer": ["tokenizer", *data, "--output", tokenizer, "--pieces", 8192, "--every", 100],
            "tokenizing and one step": [*train, "--steps", 100, "--minutes", 0],
            "99 steps": [*train, "--steps", 100, "--resume"],
        }
        found = {label: measure(list(map(str, command)), folder / "cache") for label, command in commands.items()}
        pieces = sum(path.stat().st_size // 2 for path in folder.rglob("ids.uint16"))
    print(json.dumps({"gigabytes": options.gigabytes, "pieces": pieces, "limit_gb": LIMIT_GB, **found}))
    if max(figures["resident_gb"] for figures in found.values()) > LIMIT_GB:
        raise SystemExit(1)


def write_texts(folder: Path, size: int) -> None:
    """Write `size` bytes of training text and 200 kB of validation text: documents of random words."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(letters[draw.integers(len(letters), size=length)]) for length in draw.integers(2, 10, size=WORDS)]
    for split, length in (("valid", 200_000), ("train", size)):
        with (folder / f"random.{split}.txt").open("w") as text:
            while length > 0:
                length -= text.write("".join(_lines(words, draw)))


def _lines(words: list[str], draw: np.random.Generator) -> Iterator[str]:
    """Yield lines of 12 words, 10,000, with a blank line after some."""
    rows = (WORDS * draw.random((10_000, 12)) ** 4).astype(int).tolist()  # the first words most often
    ends = draw.random(len(rows)) < 0.05
    for row, end in zip(rows, ends.tolist(), strict=True):
        yield " ".join([words[number] for number in row]) + (".\n\n" if end else ".\n")


def measure(arguments: list[str], cache: Path) -> dict[str, float]:
    """Run a command of `training`; return its seconds, and the peaks of memory in GB."""
    print(" ".join(["python -m training", *arguments]), flush=True)
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "training", *arguments], env=os.environ | {"XDG_CACHE_HOME": str(cache)}
    ) as process:
        peaks = {"resident_gb": 0.0, "anonymous_gb": 0.0}
        while process.poll() is None:
            sizes = [_memory(pid) for pid in _family(process.pid)]
            for name, figures in zip(peaks, zip(*sizes, strict=True), strict=False):
                peaks[name] = max(peaks[name], round(sum(figures) / 1e6, 3))
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: ended with exit status {process.returncode}")
    return peaks | {"seconds": round(time.monotonic() - started, 1)}


def _memory(pid: int) -> tuple[float, float]:
    """Return a process's resident and anonymous memory in kB, 0 if it has ended."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return tuple(1.024 * int(status[name].split()[0]) for name in ("VmRSS", "RssAnon"))  # type: ignore[return-value]
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return 0.0, 0.0


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants, but for those that still share its memory: between vfork and exec."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        own, *theirs = (Path(f"/proc/{each}/cmdline").read_bytes() for each in (pid, *found))
        children = [child for child, command in zip(found, theirs, strict=True) if command != own]
    except (FileNotFoundError, ProcessLookupError):
        children = []
    return [pid, *(each for child in children for each in _family(child))]


if __name__ == "__main__":
    main()
