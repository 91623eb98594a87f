"""A training session: one piece of a run's training, in one process or as one of several ranks."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn
from torch.distributed import is_torchelastic_launched
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from tqdm import tqdm

from app.errors import SettingsError
from app.manifest import FamilyName
from training.ranges import Count, require_ranges
from training.run import Run, RunError

Handler: TypeAlias = Callable[[int, FrameType | None], None] | signal.Handlers
Item = TypeVar("Item")


@dataclass(frozen=True)
class Job:
    """The folder of a run, and how much of it is done by which processes."""

    run: Path
    """Folder for the checkpoint, the metrics and the configuration."""
    resume: bool = False
    """Continue from the run's checkpoint."""
    minutes: float = math.inf
    """Stop after so many minutes; go on with --resume."""
    processes: Count = 1
    """Train in so many processes, on CPU cores or GPUs of this machine; torchrun starts them on several machines."""

    def __post_init__(self) -> None:
        require_ranges(self)

    def train(
        self, recipe: Callable[..., bool], config: Any, corpus: Any, saved_every: float = 60.0, **options: Any
    ) -> None:
        """Train by a recipe, in this process or, if it is none of several yet, in several that repeat the command."""
        if self.processes > 1 and not is_torchelastic_launched():
            launch(self.processes)
        else:
            recipe(config, corpus, Run(self.run, saved_every), resume=self.resume, minutes=self.minutes, **options)


class Session:
    """Set-up, checkpoints, metrics and the end of one piece of a run's training.

    A process that torchrun started is one rank: all ranks make the same calls, Fabric averages their gradients, and
    the first rank writes. The session ends after `minutes`, or the step in which SIGTERM arrives; a second SIGTERM
    ends the process. `accelerator`: cpu, or auto for a GPU where there is one.
    """

    def __init__(
        self,
        run: Run,
        precision: Literal["32-true", "bf16-mixed"],
        seed: int,
        minutes: float,
        accelerator: Literal["auto", "cpu"],
    ) -> None:
        devices, nodes = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
        self.run = run
        self.seed = seed
        self.fabric = Fabric(
            accelerator=accelerator,
            strategy="ddp" if devices * nodes > 1 else "auto",
            devices=devices,
            num_nodes=nodes,
            precision=precision,
            loggers=TensorBoardLogger(run.folder, name="", version="tensorboard"),
        )
        self.fabric.launch()
        self.rank, self.ranks = self.fabric.global_rank, self.fabric.world_size
        self._started = time.monotonic()
        self._deadline = self._started + 60 * minutes
        self._handle_sigterm(self._stop)
        torch.manual_seed(seed)

    def share(self, size: int, name: str = "batch_size") -> slice:
        """Return this rank's part of a dimension; raise SettingsError unless the number of ranks divides its size."""
        if size % self.ranks:
            raise SettingsError(f"{name}: expected a multiple of the {self.ranks} processes, found {size}")
        length = size // self.ranks
        return slice(self.rank * length, (self.rank + 1) * length)

    def open(
        self,
        family: FamilyName,
        config: Any,
        source: Mapping[str, Any],
        state: dict[str, Any],
        *,
        resume: bool,
        changeable: Collection[str] = (),
    ) -> dict[str, Any]:
        """Load the run's checkpoint into `state`, with `resume` and if there is one, else start the run.

        Return the state's `progress`. Raise RunError if the run had another configuration, but for `changeable`
        fields, or other data, or where a rank can't read its folder.
        """
        if self.fabric.broadcast(resume and self.run.checkpoint.exists()):
            self.run.check_config(config, changeable)
            recorded = self.run.read("source.json")["sha256"]
            self.run.check_texts(dict.fromkeys(recorded) | source["sha256"])  # a text that is gone is another one
            self.fabric.load(self.run.checkpoint, state)
            if carried := state["progress"].get("carried"):
                own = [tuple(part.chunk(self.ranks, -2)[self.rank] for part in layer) for layer in carried]
                state["progress"]["carried"] = self.fabric.to_device(own)
        elif self.rank == 0:
            self.run.start(family, config, source)
        self.fabric.barrier()
        progress: dict[str, Any] = state["progress"]
        return progress

    def seed_step(self, step: int) -> np.random.Generator:
        """Seed torch for a step and return a NumPy generator: both depend on seed, step and rank alone."""
        number = step * self.ranks + self.rank
        torch.manual_seed(self.seed * 1_000_003 + number)
        return np.random.default_rng([self.seed, number])

    def bar(self, items: Iterable[Item], label: str, first: int, total: int) -> "tqdm[Item]":
        """Return the items with a progress bar, which the first rank shows."""
        return tqdm(items, label, total, initial=first, mininterval=1, disable=self.rank > 0)

    def mean(self, value: Tensor) -> float:
        """Return the mean over the ranks."""
        reduced: Tensor = self.fabric.all_reduce(value.detach().float().clone())  # type: ignore[assignment]
        return reduced.item()

    def stops(self, state: dict[str, Any]) -> bool:
        """Save the checkpoint if it is due; save it and return True at the session's end, by the first rank's clock."""
        due, stop = self.fabric.broadcast((self.run.due, time.monotonic() > self._deadline))
        if due or stop:
            self.save(state)
        if stop:
            minutes = (time.monotonic() - self._started) / 60
            self.fabric.print(f"{self.run.folder}: stopped after {minutes:.0f} minutes; go on with --resume")
            self._handle_sigterm(signal.SIG_DFL)
        return stop

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint, with the carried states (..., B, H) of all ranks joined along the batch."""
        progress = state["progress"]
        if self.ranks > 1 and progress.get("carried"):
            gathered = (self.fabric.all_gather(layer) for layer in progress["carried"])  # (ranks, ..., B, H) each
            carried = [tuple(torch.cat([*parts], -2) for parts in layer) for layer in gathered]
            state = state | {"progress": progress | {"carried": carried}}
        self.run.save(self.fabric, state)

    def record(self, metrics: Mapping[str, float], step: int) -> None:
        """Print, log and record an epoch's metrics."""
        self.fabric.log_dict({name: value for name, value in metrics.items() if name.startswith("valid")}, step)
        self._print(f"epoch {metrics['epoch']}", {name: metrics[name] for name in metrics if name != "epoch"})
        if self.rank == 0:
            self.run.record(metrics)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Print and record the results of the finished run."""
        self._print("finished", results)
        self._handle_sigterm(signal.SIG_DFL)
        if self.rank == 0:
            self.run.finish(results)

    def _print(self, head: str, metrics: Mapping[str, Any]) -> None:
        shown = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in metrics.items()
        )
        self.fabric.print(f"{head}: {', '.join(shown)}", flush=True)

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._deadline = -math.inf
        self._handle_sigterm(signal.SIG_DFL)

    def _handle_sigterm(self, handler: Handler) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


class Carried:
    """A recurrent state, opaque to Fabric, which would round its float32 parts to the precision of the products."""

    def __init__(self, state: Sequence[tuple[Tensor, ...]]) -> None:
        self.state = state


def launch(processes: int) -> None:
    """Run this command in so many ranks of this machine, which share its processors unless OMP_NUM_THREADS is set.

    Raise RunError if one fails or is killed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(torch.get_num_threads() // processes, 1)))
    config = LaunchConfig(
        1,
        1,
        processes,
        run_id="training",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle="SIGTERM",
    )
    try:
        elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
    except ChildFailedError as error:
        failures = list(error.failures.items())
        killed = [item for item in failures if -signal.SIGTERM != item[1].exitcode < 0]  # the others end by SIGTERM
        rank, failure = (killed or failures)[0]
        cause = failure.signal_name() if failure.exitcode < 0 else f"exit status {failure.exitcode}"
        raise RunError(f"process {rank} of {processes} ended with {cause}; go on with --resume") from error
    except SignalException:
        pass  # the ranks have saved and ended


@torch.no_grad()
def update_average(average: Mapping[str, Tensor], model: nn.Module, updates: int, decay: float) -> None:
    """Update the exponential moving average of a model's parameters, over fewer steps in the first updates."""
    for name, value in model.named_parameters():
        average[name].lerp_(value, 1 - min(decay, updates / (updates + 9)))
