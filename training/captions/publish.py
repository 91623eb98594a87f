"""Publishing of a captioner of one vector: a run -> a measured bundle."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, fx
from typing_extensions import override

from app.images import PHOTO_SIZE, decoded, normalised, photo
from app.manifest import Manifest
from app.models.captioner import Captioner
from app.runtime.families.captions import CaptionsPredictor
from training.captions import data as collections
from training.captions import features
from training.captions.annotations import Photo
from training.captions.config import CaptionsConfig
from training.captions.data import CaptionCorpus, Source
from training.captions.export import export_captions
from training.captions.features import Backbone, Content
from training.captions.publisher import SCORE_NAMES, CaptionerPublisher
from training.captions.recipe import build
from training.publishing import publish_run
from training.run import Run

INJECT_TEXTS = {  # how the photograph enters: see app.models.captioner
    "chapter": "whose first step alone also sees the photograph",
    "init": "whose state starts from the photograph",
    "pre": "whose first word is the photograph",
}


def publish(run: Run, store: Path, *, name: str | None = None, version: str | None = None) -> Path:
    """Publish `run` as `publish_run` does.

    The validation photographs are captioned with both precisions, as in the server; int8 is served if it costs at most
    `int8_may_cost` of their CIDEr. The served precision captions the test photographs, once. Raise RunError if the run
    used other photographs.
    """
    return publish_run(CaptionsPublisher(run), store, name, version)


class CaptionsPublisher(CaptionerPublisher[CaptionCorpus, Captioner]):
    """Publishing hooks of captioners of one vector."""

    package = "training.captions"
    parity = 100

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.config: CaptionsConfig = CaptionsConfig(**run.read("config.json"))

    @cached_property
    def backbone(self) -> Backbone:
        """The run's CNN."""
        weights = self.run.read("source.json").get("weights")
        return features.backbone(self.config.backbone, None if weights is None else Path(weights))

    @override
    def load(self) -> CaptionCorpus:
        described = self.run.read("source.json")
        source = Source(described["name"], Path(described["folder"]), described["terms"], tuple(described["caveats"]))
        return self.checked(collections.load(source, self.backbone, views=1, min_count=self.config.min_count))

    @override
    def build(self, data: CaptionCorpus) -> Captioner:
        epochs = self.config.epochs + self.config.reward_epochs
        return self.trained(build(self.config, data), "epoch", epochs, "finished epochs")

    @override
    def cnn(self, data: CaptionCorpus) -> fx.GraphModule:
        network = self.backbone.module.half().float().eval()
        assert isinstance(network, fx.GraphModule), "training.captions.features folds its batch norms"
        return network

    @override
    def graphs(self, data: CaptionCorpus, model: Captioner) -> dict[str, bytes | Path]:
        return {**export_captions(model, self.cnn(data))}

    @override
    def photos(self, data: CaptionCorpus, split: str) -> Sequence[Photo]:
        readable = (each for each in collections.photos(data.source) if each.name not in data.corrupt)
        return [each for each in readable if each.split == split]

    @override
    def logits(
        self, predictor: CaptionsPredictor, data: CaptionCorpus, model: Captioner, image: Content, tokens: Tensor
    ) -> Tensor:
        pixels = photo(decoded(image.content, name=image.name, least=PHOTO_SIZE))
        logits: Tensor = model(self.cnn(data)(torch.from_numpy(normalised(pixels[None]))), tokens)
        return logits

    @override
    def card_fields(self, manifest: Manifest, data: CaptionCorpus) -> dict[str, str]:
        config = manifest.config
        rewarded = f", then {config['reward_epochs']} over the photographs with CIDEr-D as reward"
        return {
            "inject": INJECT_TEXTS[config["inject"]],
            "backbone": data.backbone,
            "epochs": f"{config['epochs']} passes over the captions{rewarded if config['reward_epochs'] else ''}",
            "table": _table(manifest.metrics, len(data.splits["val"].names), len(data.splits["test"].names)),
        }


def _table(metrics: Mapping[str, float], valid: int, test: int) -> str:
    rows = [f"| | validation ({valid:,} photographs) | test ({test:,} photographs) |", "| --- | --- | --- |"]
    for key, title in SCORE_NAMES.items():
        values = [
            f"{metrics[name]:.1f}" if (name := f"{split}_{key}") in metrics else "-" for split in ("valid", "test")
        ]
        rows.append(f"| {title} | {' | '.join(values)} |")
    rows.append(f"| different captions | {metrics['valid_distinct']:,.0f} | {metrics['test_distinct']:,.0f} |")
    return "\n".join(rows)
