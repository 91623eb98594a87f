"""Image features of photographs: the input of a classifier's last layer, in several views, cached on disk."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision import models  # type: ignore[import-untyped]
from torchvision.models import get_model, list_models  # type: ignore[import-untyped]
from tqdm import tqdm

from app.errors import CorpusError, Malformed, SettingsError, TooLarge
from app.images import PHOTO_SIZE, decoded, normalised, photo
from training.corpora.files import locked

Floats: TypeAlias = npt.NDArray[np.float32]
Pixels: TypeAlias = npt.NDArray[np.uint8]

BATCH = 32  # photographs that pass the network together
CROP_AREA = 0.7  # a random crop shows at least this share of the photograph
CROP_ASPECT = 4 / 3  # and is at most this much wider, or narrower, than the photograph


@dataclass(frozen=True)
class Backbone:
    """A classifier without its last layer, in evaluation mode, batch norms folded into the convolutions before them.

    `module` maps the output of `app.images.normalised`, (B, 3, 224, 224), to (B, size).
    """

    name: str
    module: nn.Module
    size: int
    sha256: str  # of its weights
    weights: Path | None = None  # the file of the weights; None: torchvision's own


class Content(NamedTuple):
    """The name and bytes of an image file."""

    name: str
    content: bytes


class Extracted(NamedTuple):
    """Results of `extract`, by name of the photograph."""

    features: dict[str, Floats]  # (views, F) each
    corrupt: dict[str, str]  # photographs that can't be decoded, and the reasons
    sha256: dict[str, str]  # of all of them


def backbone(name: str, weights: Path | None = None) -> Backbone:
    """Return a torchvision classifier without its last linear layer, with weights from a safetensors file.

    Without `weights`, torchvision's own are downloaded. Raise SettingsError for an unknown classifier, CorpusError for
    weights that are missing or of another network.
    """
    if name not in list_models(module=models):
        raise SettingsError(f"backbone: expected the name of a torchvision classifier, found {name}")
    network = (_downloaded(name) if weights is None else _loaded(name, weights)).eval().requires_grad_(False)
    digest = checksum(network.state_dict())
    layers = [path for path, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise SettingsError(f"backbone: expected a classifier that ends with a linear layer, found {name}")
    size = int(network.get_submodule(layers[-1]).in_features)  # type: ignore[arg-type]
    network.set_submodule(layers[-1], nn.Identity())
    return Backbone(name, fuse(network).to(memory_format=torch.channels_last), size, digest, weights)


def extract(contents: Iterable[Content], backbone: Backbone, views: int, cache: Path) -> Extracted:
    """Extract the features of `views` views of each photograph; they are cached in `cache`.

    View 0 is the whole photograph, view 1 its mirror image, the others random crops, every second one mirrored. They
    depend on the photograph alone. Cache keys are checksums of photograph, weights and preprocessing.
    """
    folder = cache / "features" / _key(backbone)
    folder.mkdir(parents=True, exist_ok=True)
    extracted = Extracted({}, {}, {})
    batch: list[_Photograph] = []
    with locked(folder):
        for name, content in tqdm(contents, "features", mininterval=1):
            photograph = _Photograph(name, content, hashlib.sha256(content).hexdigest())
            extracted.sha256[name] = photograph.sha256
            cached = _cached(folder, photograph, views)
            if cached is not None:
                extracted.features[name] = cached
                continue
            batch.append(photograph)
            if len(batch) == BATCH:
                _extract(batch, backbone, views, folder, extracted)
                batch = []
        _extract(batch, backbone, views, folder, extracted)
    return extracted


def view(image: Image.Image, checksum: str, index: int, side: int = PHOTO_SIZE) -> Pixels:
    """Return view `index` of a photograph (side, side, 3), see `extract`; `checksum` (hex) seeds the crops."""
    if index >= 2:
        box = _crop(np.random.default_rng([int(checksum[:16], 16), index]), image.width, image.height)
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    pixels = photo(image, side)
    return pixels[:, ::-1] if index % 2 else pixels


class _Photograph(NamedTuple):
    name: str
    content: bytes
    sha256: str


def _extract(batch: Sequence[_Photograph], backbone: Backbone, views: int, folder: Path, extracted: Extracted) -> None:
    """Decode a batch, extract the features of each view, cache them and add them to `extracted`."""
    images: dict[_Photograph, Image.Image] = {}
    for photograph in batch:
        try:
            images[photograph] = decoded(photograph.content, name=photograph.name, least=PHOTO_SIZE)
        except (Malformed, TooLarge) as error:
            extracted.corrupt[photograph.name] = str(error)
    if not images:
        return
    by_view = []
    for index in range(views):
        pixels = normalised(np.stack([view(images[p], p.sha256, index) for p in images]))
        with torch.inference_mode():
            by_view.append(backbone.module(torch.from_numpy(pixels).to(memory_format=torch.channels_last)).numpy())
    for photograph, features in zip(images, np.stack(by_view, 1), strict=True):  # (B, views, F)
        partial = folder / f"{photograph.sha256}.partial.npy"
        np.save(partial, features)
        partial.replace(folder / f"{photograph.sha256}.npy")
        extracted.features[photograph.name] = features


def _crop(draw: np.random.Generator, width: int, height: int) -> tuple[float, float, float, float]:
    """The box (left, upper, right, lower) of a random crop; area, log aspect and position are uniform."""
    area = draw.uniform(CROP_AREA, 1.0)
    aspect = CROP_ASPECT ** draw.uniform(-1.0, 1.0)
    across, down = min(math.sqrt(area * aspect), 1.0) * width, min(math.sqrt(area / aspect), 1.0) * height
    left, upper = draw.uniform(0, width - across), draw.uniform(0, height - down)
    return left, upper, left + across, upper + down


def _cached(folder: Path, photograph: _Photograph, views: int) -> Floats | None:
    """Return the cached features of a photograph if they have enough views."""
    path = folder / f"{photograph.sha256}.npy"
    if not path.exists():
        return None
    features: Floats = np.load(path)
    return features[:views] if len(features) >= views else None


def _key(backbone: Backbone) -> str:
    """Checksum of network and preprocessing; the latter is computed from a test image."""
    ramp = np.linspace(0, 255, 300 * 230 * 3).astype(np.uint8).reshape(230, 300, 3)
    digest = hashlib.sha256(json.dumps([backbone.name, backbone.sha256]).encode())
    for index in range(4):
        digest.update(normalised(view(Image.fromarray(ramp), "0" * 16, index)).tobytes())
    return digest.hexdigest()[:32]


def _loaded(name: str, weights: Path) -> nn.Module:
    network: nn.Module = get_model(name, weights=None)
    try:
        network.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:  # no file, an unreadable one, or another network's
        raise CorpusError(f"{weights}: expected the weights of {name}: {error}") from error
    return network


def _downloaded(name: str) -> nn.Module:
    try:
        network: nn.Module = get_model(name, weights="DEFAULT")
    except OSError as error:
        raise CorpusError(f"{name}: expected to download the weights, found: {error}") from error
    return network


def checksum(weights: Mapping[str, Tensor]) -> str:
    """Sha256 of a network's weights: names and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].numpy().tobytes())
    return digest.hexdigest()
