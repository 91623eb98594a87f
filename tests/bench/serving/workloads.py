"""What is asked: request bodies made from the test parts of the corpora, in an order that never repeats itself soon."""

import gzip
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Final

import numpy as np

from app.images import png
from tests.bench.serving.peers.routes import Kind

PEOPLE: Final = 64  # who type at once
SHORTEST: Final = 3  # letters of a word that is asked for before it is all there
COLD_WORDS, COLD_STRIDE, DOCUMENT_WORDS = 20, 5, 200
IMAGES, PHOTOGRAPHS = 2000, 256
JSON: Final = "application/json"
BOUNDARY: Final = "----------------bench"


@dataclass(frozen=True)
class Workload:
    """Requests of one kind, sent in their order, from the start again after the last."""

    name: str
    kind: Kind
    content_type: str
    bodies: Sequence[bytes]


def typing(sentences: Sequence[Sequence[str]]) -> Workload:
    """PEOPLE take turns; each text is a few letters or a word longer than that person's last, sentence by sentence."""
    people = [[body for words in sentences[person::PEOPLE] for body in _typed(words)] for person in range(PEOPLE)]
    turns = zip_longest(*people)
    return Workload("typing", "next-word", JSON, [body for turn in turns for body in turn if body is not None])


def cold(words: Sequence[str]) -> Workload:
    """COLD_WORDS in a row from anywhere: no text continues another."""
    starts = range(0, len(words) - COLD_WORDS, COLD_STRIDE)
    return _told("cold", "next-word", (" ".join(words[start : start + COLD_WORDS]) + " " for start in starts))


def scoring(words: Sequence[str]) -> Workload:
    """Documents of DOCUMENT_WORDS."""
    starts = range(0, len(words) - DOCUMENT_WORDS, DOCUMENT_WORDS)
    return _told("scoring", "perplexity", (" ".join(words[start : start + DOCUMENT_WORDS]) for start in starts))


def workloads(data: Path) -> dict[str, Callable[[], Workload]]:
    """All of them, by name; each is made from its corpus under `data` when it is called."""
    ptb = data / "ptb" / "ptb.test.txt"
    return {
        "typing": lambda: typing([line.split() for line in ptb.read_text().splitlines()]),
        "cold": lambda: cold(ptb.read_text().split()),
        "scoring": lambda: scoring(ptb.read_text().split()),
        "digits": lambda: shown("digits", "image/png", _digits(data / "mnist" / "MNIST" / "raw")),
        "captions": lambda: shown("captions", "image/jpeg", _photographs(data / "flickr8k")),
    }


def long_document(data: Path) -> str:
    """The whole test text: about 80,000 words."""
    return (data / "ptb" / "ptb.test.txt").read_text()


def _typed(words: Sequence[str]) -> Iterator[bytes]:
    """The requests of somebody who types a sentence: half of each longer word, then all of it."""
    for place, word in enumerate(words):
        before = "".join(f"{earlier} " for earlier in words[:place])
        if word.isalpha() and len(word) >= SHORTEST:
            yield json.dumps({"text": before + word[: len(word) // 2 + 1], "complete": True}).encode()
        yield json.dumps({"text": f"{before}{word} "}).encode()


def _told(name: str, kind: Kind, texts: Iterable[str]) -> Workload:
    return Workload(name, kind, JSON, [json.dumps({"text": text}).encode() for text in texts])


def shown(kind: Kind, content_type: str, images: Iterable[bytes]) -> Workload:
    """Each image in a form, as browsers send it: not every peer takes a bare one."""
    part = f'Content-Disposition: form-data; name="image"; filename="image"\r\nContent-Type: {content_type}'
    head, end = (f"--{BOUNDARY}\r\n{part}\r\n\r\n".encode(), f"\r\n--{BOUNDARY}--\r\n".encode())
    bodies = [head + image + end for image in images]
    return Workload(kind, kind, f"multipart/form-data; boundary={BOUNDARY}", bodies)


def _digits(folder: Path) -> list[bytes]:
    """PNGs of MNIST's test part."""
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as stream:
        pixels = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(-1, 28, 28)  # after four numbers
    return [png(image) for image in pixels[:IMAGES]]


def _photographs(folder: Path) -> list[bytes]:
    """JPEGs of Flickr8k's test part."""
    with tarfile.open(folder / "images-test.tar") as tar:
        files = (tar.extractfile(member) for member in tar if member.isfile())
        return [file.read() for file in islice(files, PHOTOGRAPHS) if file]
