"""Workloads: request bodies from the test splits of the corpora, without early repetition."""

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

PEOPLE: Final = 64  # concurrent typists
SHORTEST: Final = 3  # letters of a word that is also requested half typed
COLD_WORDS, COLD_STRIDE, DOCUMENT_WORDS = 20, 5, 200
IMAGES, PHOTOGRAPHS = 2000, 256
JSON: Final = "application/json"
BOUNDARY: Final = "----------------bench"


@dataclass(frozen=True)
class Workload:
    """Requests of one kind, sent in order and cyclically."""

    name: str
    kind: Kind
    content_type: str
    bodies: Sequence[bytes]


def typing(sentences: Sequence[Sequence[str]]) -> Workload:
    """Interleave PEOPLE typists; each text extends that typist's previous one by some letters or a word."""
    people = [[body for words in sentences[person::PEOPLE] for body in _typed(words)] for person in range(PEOPLE)]
    rounds = zip_longest(*people)
    return Workload("typing", "next-word", JSON, [body for each in rounds for body in each if body is not None])


def cold(words: Sequence[str]) -> Workload:
    """Return texts of COLD_WORDS consecutive words, of which none extends another."""
    starts = range(0, len(words) - COLD_WORDS, COLD_STRIDE)
    return _texts("cold", "next-word", (" ".join(words[start : start + COLD_WORDS]) + " " for start in starts))


def scoring(words: Sequence[str]) -> Workload:
    """Return documents of DOCUMENT_WORDS."""
    starts = range(0, len(words) - DOCUMENT_WORDS, DOCUMENT_WORDS)
    return _texts("scoring", "perplexity", (" ".join(words[start : start + DOCUMENT_WORDS]) for start in starts))


def workloads(data: Path) -> dict[str, Callable[[], Workload]]:
    """Return the workloads by name; each is built from its corpus under `data` when called."""
    ptb = data / "ptb" / "ptb.test.txt"
    return {
        "typing": lambda: typing([line.split() for line in ptb.read_text().splitlines()]),
        "cold": lambda: cold(ptb.read_text().split()),
        "scoring": lambda: scoring(ptb.read_text().split()),
        "digits": lambda: image_forms("digits", "image/png", _digits(data / "mnist" / "MNIST" / "raw")),
        "captions": lambda: image_forms("captions", "image/jpeg", _photographs(data / "flickr8k")),
    }


def long_document(data: Path) -> str:
    """Return the whole test text, about 80,000 words."""
    return (data / "ptb" / "ptb.test.txt").read_text()


def _typed(words: Sequence[str]) -> Iterator[bytes]:
    """Yield the requests while a sentence is typed: each longer word half typed, then each word complete."""
    for index, word in enumerate(words):
        before = "".join(f"{earlier} " for earlier in words[:index])
        if word.isalpha() and len(word) >= SHORTEST:
            yield json.dumps({"text": before + word[: len(word) // 2 + 1], "complete": True}).encode()
        yield json.dumps({"text": f"{before}{word} "}).encode()


def _texts(name: str, kind: Kind, texts: Iterable[str]) -> Workload:
    return Workload(name, kind, JSON, [json.dumps({"text": text}).encode() for text in texts])


def image_forms(kind: Kind, content_type: str, images: Iterable[bytes]) -> Workload:
    """Return requests with one image each as a multipart form, which every peer accepts."""
    part = f'Content-Disposition: form-data; name="image"; filename="image"\r\nContent-Type: {content_type}'
    head, end = (f"--{BOUNDARY}\r\n{part}\r\n\r\n".encode(), f"\r\n--{BOUNDARY}--\r\n".encode())
    bodies = [head + image + end for image in images]
    return Workload(kind, kind, f"multipart/form-data; boundary={BOUNDARY}", bodies)


def _digits(folder: Path) -> list[bytes]:
    """Return PNGs of the MNIST test split."""
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as stream:
        pixels = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(
            -1, 28, 28
        )  # after the header of four integers
    return [png(image) for image in pixels[:IMAGES]]


def _photographs(folder: Path) -> list[bytes]:
    """Return JPEGs of the Flickr8k test split."""
    with tarfile.open(folder / "images-test.tar") as tar:
        files = (tar.extractfile(member) for member in tar if member.isfile())
        return [file.read() for file in islice(files, PHOTOGRAPHS) if file]
