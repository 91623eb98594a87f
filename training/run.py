"""A run folder: configuration, environment, metrics and the checkpoint that a killed run resumes from."""

import json
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from app.bundle import Family
from app.errors import SeqserveError


class RunError(SeqserveError):
    """A run folder can't be used as asked."""


@dataclass
class Run:
    """The files of a training job: its config, source, environment, metrics, result, curves and checkpoint.

    The checkpoint is replaced atomically, so that a process killed at any moment leaves a whole one.
    """

    folder: Path
    saved_every: float = 60.0  # seconds between two checkpoints inside an epoch
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint's path; it need not exist."""
        return self.folder / "checkpoint.pt"

    def start(self, family: Family, config: Any, source: Mapping[str, Any]) -> None:
        """Make the folder and write down what is about to run, on what data; RunError if it holds another run.

        `family` is the one that the published bundle will be of.
        """
        if self.checkpoint.exists():
            raise RunError(f"{self.folder}: holds a run already; go on with --resume or choose another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "metrics.jsonl").write_text("")
        self._write("config.json", asdict(config))
        self._write("source.json", source)
        self._write("environment.json", {"family": family, **environment()})

    def check_config(self, config: Any, former_names: Mapping[str, str] | None = None) -> None:
        """Raise RunError unless the run was started with this very configuration.

        `former_names` maps names of fields in older runs to today's.
        """
        renamed = former_names or {}
        found = {renamed.get(name, name): value for name, value in self.read("config.json").items()}
        expected = json.loads(json.dumps(asdict(config)))
        changed = [f"{k} is {expected[k]}, was {found.get(k)}" for k in expected if expected[k] != found.get(k)]
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

    def save_when_due(self, fabric: Fabric, state: dict[str, Any]) -> None:
        """Save if the last checkpoint is older than `saved_every` seconds."""
        if time.monotonic() - self._saved_at >= self.saved_every:
            self.save(fabric, state)

    def save(self, fabric: Fabric, state: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        partial = self.checkpoint.with_suffix(".partial")
        fabric.save(partial, state)
        partial.replace(self.checkpoint)
        self._saved_at = time.monotonic()

    def record(self, metrics: Mapping[str, float]) -> None:
        """Add one epoch's metrics, in place of what a run killed before its next checkpoint left of this epoch."""
        earlier = [entry for entry in self.metrics() if entry["epoch"] < metrics["epoch"]]
        partial = self.folder / "metrics.partial"
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in [*earlier, metrics]))
        partial.replace(self.folder / "metrics.jsonl")

    def finish(self, results: Mapping[str, float]) -> None:
        """Write the final results to result.json."""
        self._write("result.json", results)

    def metrics(self) -> list[dict[str, float]]:
        """The metrics of all finished epochs."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def read(self, name: str) -> Any:
        """One of the JSON files; RunError if there is none, or it is no JSON."""
        path = self.folder / name
        try:
            return json.loads(path.read_text())
        except FileNotFoundError as error:
            raise RunError(f"{path}: no such file: is {self.folder} the folder of a run?") from error
        except ValueError as error:
            raise RunError(f"{path}: expected JSON, found otherwise: {error}") from error

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        (self.folder / name).write_text(json.dumps(content, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Return the versions, hardware and commit that results depend on besides the configuration."""
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
    """The commit that the code was run from, with `-dirty` if it was changed; None outside a checkout."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None
