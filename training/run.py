"""A run folder: configuration, environment, metrics and the checkpoint that a killed run resumes from."""

import json
import platform
import subprocess
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from app.errors import SeqserveError
from app.manifest import FamilyName


class RunError(SeqserveError):
    """A run folder can't be used for the requested operation."""


@dataclass
class Run:
    """The folder of a training run: config, source, environment, metrics, result, curves and checkpoint.

    The checkpoint is replaced atomically: a killed process leaves a complete one.
    """

    folder: Path
    saved_every: float = 60.0  # seconds between two checkpoints inside an epoch
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def checkpoint(self) -> Path:
        """Return the path of the newest checkpoint, which may not exist."""
        return self.folder / "checkpoint.pt"

    def start(self, family: FamilyName, config: Any, source: Mapping[str, Any]) -> None:
        """Create the folder with family, config, source and environment; RunError if it holds a run already."""
        if self.checkpoint.exists():
            raise RunError(f"{self.folder}: holds a run already; go on with --resume or choose another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "metrics.jsonl").write_text("")
        self._write("config.json", asdict(config))
        self._write("source.json", source)
        self._write("environment.json", {"family": family, **environment()})

    def check_config(self, config: Any, changeable: Collection[str] = ()) -> None:
        """Raise RunError unless the run was started with this configuration, but for `changeable` fields."""
        found = self.read("config.json")
        expected = json.loads(json.dumps(asdict(config)))
        differing = [name for name in expected if name not in changeable and expected[name] != found.get(name)]
        changed = [f"{name} is {expected[name]}, was {found.get(name)}" for name in differing]
        if changed:
            raise RunError(f"{self.folder}: started with another configuration: {'; '.join(changed)}")

    def record_config(self, config: Any) -> None:
        """Replace the written configuration, where a resumed run may have another."""
        self._write("config.json", asdict(config))

    def check_texts(self, sha256: Mapping[str, str]) -> None:
        """Raise RunError unless the run was started on the texts with these checksums, by split."""
        was = self.read("source.json")["sha256"]
        changed = [f"sha256 of {k} is {sha256[k]}, was {was.get(k)}" for k in sha256 if sha256[k] != was.get(k)]
        if changed:
            raise RunError(f"{self.folder}: started on other texts: {'; '.join(changed)}")

    @property
    def due(self) -> bool:
        """True if the last checkpoint is older than `saved_every` seconds."""
        return time.monotonic() - self._saved_at >= self.saved_every

    def save(self, fabric: Fabric, state: dict[str, Any]) -> None:
        """Replace the checkpoint; all ranks call it, the first one writes."""
        partial = self.checkpoint.with_suffix(".partial")
        fabric.save(partial, state)
        if fabric.is_global_zero:
            partial.replace(self.checkpoint)
        self._saved_at = time.monotonic()

    def record(self, metrics: Mapping[str, float]) -> None:
        """Append an epoch's metrics, replacing those that a run killed before its next checkpoint left of it."""
        earlier = [entry for entry in self.metrics() if entry["epoch"] < metrics["epoch"]]
        partial = self.folder / "metrics.partial"
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in [*earlier, metrics]))
        partial.replace(self.folder / "metrics.jsonl")

    def finish(self, results: Mapping[str, float]) -> None:
        """Write the results of the finished run to result.json."""
        self._write("result.json", results)

    def metrics(self) -> list[dict[str, float]]:
        """Return the metrics of all finished epochs."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def logged(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of everything logged to TensorBoard under `name`; the last value of repeated steps."""
        events = EventAccumulator(str(self.folder / "tensorboard")).Reload()
        return list({event.step: event.value for event in events.Scalars(name)}.items())

    def read(self, name: str) -> Any:
        """Return the content of a JSON file; RunError if it is missing or invalid."""
        path = self.folder / name
        try:
            return json.loads(path.read_text())
        except FileNotFoundError as error:
            raise RunError(f"{path}: no such file: is {self.folder} the folder of a run?") from error
        except ValueError as error:
            raise RunError(f"{path}: expected JSON, found invalid content: {error}") from error

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        partial = self.folder / f"{name}.partial"
        partial.write_text(json.dumps(content, indent=2) + "\n")
        partial.replace(self.folder / name)


def environment() -> dict[str, Any]:
    """Return the environment that results depend on besides the configuration."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def commit() -> str | None:
    """Return the commit of the code, with `-dirty` if it was changed; None outside a checkout."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None
