"""Benchmark a served attentive captioner against the same model in eager torch, single-threaded, alternating.

    .venv/bin/python -m tests.bench.attentive_captions --store models_store --model attentive

A synthetic 500 x 375 JPEG to its caption with a beam of 3, with the detector and without: the best processor time and
the median of ROUNDS, and the ratio of the medians. Torch runs in float32 at the sizes of training, with folded batch
norms in channels-last layout, the detector node by node. The last line is the table as JSON.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.fx.experimental.optimization import fuse

from app import bundle as bundles
from app.bundle import Bundle
from app.images import DETECTOR_SIZE, ENCODER_SIZE, LABELS, decoded, detections, encoder_input, letterboxed, photo
from app.images.tags import KINDS, slots, tag_slots
from app.models.attentive_captioner import AttentiveCaptioner, Scene
from app.models.efficientnet_lite import EfficientNetLite2
from app.runtime.families.captions import CaptionsPredictor, Describe
from app.runtime.families.image_decoders import DETECTOR
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all
from app.text.words import Vocabulary
from tests.bench.captions import synthetic_photograph
from tests.bench.eager_graph import EagerGraph
from training.captions.attentive.objective import seen
from training.captions.decoding import beam_search

ROUNDS = 20
BEAM = 3


class Eager:
    """The torch modules in inference mode."""

    def __init__(self, bundle: Bundle) -> None:
        self._config = config = bundle.manifest.config
        self._vocabulary = Vocabulary(bundle.text("vocabulary.txt").split("\n"))
        stored = {name: value.float() for name, value in load_file(bundle.path("weights.safetensors")).items()}
        self._network = fuse(EfficientNetLite2().eval())
        self._network.load_state_dict(
            {name.removeprefix("cnn."): value for name, value in stored.items() if name.startswith("cnn.")}
        )
        self._network.to(memory_format=torch.channels_last)
        self._detector = EagerGraph(bundle.path(DETECTOR).read_bytes())
        self._captioner = AttentiveCaptioner(
            vocabulary_size=len(self._vocabulary),
            labels=[self._vocabulary.ids(label.split()) for label in LABELS],
            kinds=KINDS,
            **{key: config[key] for key in ("embedding_size", "hidden_size", "attention_size", "cell")},
        ).eval()
        own = {name: value for name, value in stored.items() if not name.startswith("cnn.")}
        self._captioner.load_state_dict(own)

    @torch.inference_mode()
    def describe(self, content: bytes, *, tags: bool) -> str:
        """Return the caption of an encoded image."""
        whole = decoded(content, least=DETECTOR_SIZE if tags else ENCODER_SIZE)
        found = slots(())
        if tags:
            letterbox = letterboxed(whole)
            found = tag_slots(detections(self._detector(torch.from_numpy(letterbox.pixels))[0].numpy(), letterbox))
        pixels = torch.from_numpy(encoder_input(photo(whole, ENCODER_SIZE)[None]))
        grid, pooled = self._network(pixels.to(memory_format=torch.channels_last))
        scene = Scene(torch.from_numpy(found[None]), grid.flatten(2).transpose(1, 2), pooled)
        penalty, length = self._config["length_penalty"], self._config["length"]
        (caption,) = beam_search(seen(self._captioner, scene), self._vocabulary, BEAM, length, length_penalty=penalty)
        return " ".join(self._vocabulary.tokens[token] for token in caption.tokens)


def served_caption(predictor: CaptionsPredictor, content: bytes, *, tags: bool) -> str:
    """Return the caption by the server's predictor."""
    (answer,) = answer_all(predictor, [predictor.prepare(Describe(content, beam=BEAM, tags=tags, threshold=0.0))])
    return str(answer.text)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("models_store"))
    parser.add_argument("--model", default="captions")
    parser.add_argument("--photograph", type=Path, help="a JPEG; by default a synthetic one of 500 x 375")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    bundle = bundles.read(options.store / options.model / bundles.current(options.store, options.model))
    predictor, eager = load_predictor(bundle, threads=1), Eager(bundle)
    assert isinstance(predictor, CaptionsPredictor)
    content = options.photograph.read_bytes() if options.photograph else synthetic_photograph()
    candidates: dict[str, Callable[[], str]] = {
        f"{name}, {'with' if tags else 'without'} tags": partial(describe, content, tags=tags)
        for tags in (True, False)
        for name, describe in (("served", partial(served_caption, predictor)), ("torch", eager.describe))
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, describe in candidates.items():
            started = time.process_time()
            describe()
            times[name].append(1000 * (time.process_time() - started))
    print(
        f"{bundle.manifest.model} {bundle.manifest.version}, {bundle.manifest.served} graphs, one core, beam {BEAM}\n"
    )
    for name, describe in candidates.items():
        print(f"{name:24}{min(times[name]):9.1f} ms{np.median(times[name]):9.1f} ms  {describe()}")
    medians = {name: float(np.median(values)) for name, values in times.items()}
    for tags in ("with tags", "without tags"):
        print(f"{tags}: {medians[f'torch, {tags}'] / medians[f'served, {tags}']:.1f} times faster than eager torch")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
