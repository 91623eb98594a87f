"""Measure one person who types, and a probe, while each hostile load of a table runs on the same server.

    python -m tests.bench.neighbours [--seconds 4] [--only WORD]

The typist sends a keystroke 20 times a second over one connection; the probe asks /livez on fresh connections. Printed
per load: the slowest keystroke, the slowest probe and the peak memory of the server's processes together. The last line
is JSON.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NamedTuple

import httpx
from PIL import Image

from tests.e2e.conftest import serving

STORE: Final = Path(__file__).parents[2] / "models_store"
JSON: Final = "application/json"
MIB: Final = 2**20
KEYS_PER_S: Final = 20
PROBE_EVERY_S: Final = 0.1
TEXT: Final = "the company said it expects the market to rise "


class Load(NamedTuple):
    """A hostile load: `clients` send `request` again and again, each on a connection of its own."""

    name: str
    clients: int
    request: Callable[[], bytes]
    pause_s: float = 0.0  # after each request's first byte; the body is sent byte by byte


def post(path: str, body: bytes, content_type: str = JSON) -> bytes:
    """Return a whole request."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


def scored(text: str, **fields: object) -> Callable[[], bytes]:
    """Return a request for the perplexity of a text, repeated up to 4 MiB."""

    def request() -> bytes:
        size = len(json.dumps(text, ensure_ascii=False).encode()) - 2
        whole = "the company " + text * ((4 * MIB - 300) // size)
        return post("/perplexity", json.dumps({"text": whole, **fields}, ensure_ascii=False).encode())

    return request


def raw_json(start: str, repeated: str, end: str) -> Callable[[], bytes]:
    """Return a request of 4 MiB of repeated JSON."""
    count = (4 * MIB - 100) // len(repeated)
    return lambda: post("/perplexity", f"{start}{repeated * count}{end}".encode())


def form(path: str, part: bytes, times: int) -> bytes:
    """Return a request with one image several times."""
    head = b'--XbX\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return post(path, (head + part + b"\r\n") * times + b"--XbX--\r\n", "multipart/form-data; boundary=XbX")


def encoded(width: int, height: int, file_format: str, **options: object) -> bytes:
    """Return an encoded image of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(stream, file_format, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *before: bytes) -> bytes:
    """Return a greyscale PNG of zeros."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(before) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg(fill: int) -> bytes:
    """Return a JPEG with fill bytes before its first marker."""
    whole = encoded(400, 300, "JPEG")
    return whole[:2] + b"\xff" * fill + whole[2:]


def animation(form: str, side: int, frames: int) -> bytes:
    """Return an animation of blank frames."""
    stream = io.BytesIO()
    first, *rest = [Image.new("L", (side, side), n % 2) for n in range(frames)]
    first.save(stream, form, save_all=True, append_images=rest, lossless=True)
    return stream.getvalue()


def gif_blocks() -> bytes:
    """Return a GIF whose frame is a million blocks of one byte."""
    return encoded(300, 300, "GIF")[:-2] + b"\x01\x00" * 2_000_000 + b"\x00;"


def bmp_runs() -> bytes:
    """Return a run-length encoded BMP of 25 megapixels in a few bytes a row."""
    side = 4999
    row = (b"\xff\x00" * (side // 255) + bytes((side % 255, 0)) + b"\x00\x00") * side + b"\x00\x01"
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(row), 0, 0, 256, 0)
    start = 14 + len(head) + 1024
    return b"BM" + struct.pack("<IHHI", start + len(row), 0, 0, start) + head + bytes(1024) + row


def repeat(request: bytes) -> Callable[[], bytes]:
    """Return a function that returns the request."""
    return lambda: request


def byte_by_byte() -> bytes:
    """Return a request whose body is two million chunks of one byte."""
    head = b"POST /perplexity HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    return head + b"Connection: close\r\n\r\n" + b"1\r\n \r\n" * 2_000_000 + b"0\r\n\r\n"


def contexts() -> Callable[[], bytes]:
    """Return requests for the next word after 60 kB of text that no cache has seen."""
    count = iter(range(10**9))
    return lambda: post("/next-word", json.dumps({"text": f"{next(count)} {TEXT * 1250}"}).encode())


LOADS: Final = (
    Load("nothing", 0, repeat(b"")),
    Load("texts of spaces", 4, scored(" ")),
    Load("texts of line breaks", 4, scored("\n")),
    Load("texts of signs", 4, scored("\u00a7 ")),
    Load("texts of dashes", 4, scored("-")),
    Load("texts of combining marks", 4, scored("e\u0301\u0323")),
    Load("texts of one word", 4, scored("a")),
    Load("texts of one-word lines", 4, scored("a\n")),
    Load("texts of full stops", 4, scored("U.S. 1,000. ")),
    Load("texts of apostrophes", 4, scored("'s '")),
    Load("texts word by word", 4, scored(TEXT, per_token=True, alternatives=10)),
    Load(
        "256 texts with alternatives",
        4,
        lambda: post(
            "/perplexity", json.dumps({"texts": [TEXT * 10] * 256, "per_token": True, "alternatives": 10}).encode()
        ),
    ),
    Load("documents", 64, lambda: post("/perplexity", json.dumps({"text": TEXT * 90}).encode())),
    Load("long contexts", 16, contexts()),
    Load("beams", 32, lambda: post("/next-word", json.dumps({"text": TEXT, "words": 5, "top_k": 50}).encode())),
    Load(
        "beams after long histories",
        16,
        lambda: post(
            "/next-word",
            json.dumps({"text": TEXT, "words": 5, "top_k": 50, "adapt": True, "history": "a b c d " * 8000}).encode(),
        ),
    ),
    Load("texts to tokenize", 8, lambda: post("/tokenize", json.dumps({"prompt": "a b " * 900_000}).encode())),
    Load("JSON: nested lists", 4, raw_json("", "[", "")),
    Load("JSON: small numbers", 4, raw_json('{"text": "a", "x": [', "1,", "1]}")),
    Load("JSON: empty objects", 4, raw_json('{"text": "a", "x": [', "{},", "{}]}")),
    Load("JSON: one number", 4, raw_json('{"text": ', "1", "}")),
    Load("JSON: escapes", 4, raw_json('{"text": "', "\\u00e9", '"}')),
    Load("JSON: many texts", 4, raw_json('{"texts": [', '"a",', '"a"]}')),
    Load("JSON: an image", 4, lambda: post("/models/digits", b'{"inputs": "' + b"A" * 20_000_000 + b'"}')),
    Load("images of 25 megapixels", 4, lambda: form("/captions", png(5000, 5000), 8)),
    Load("images one pixel wide", 4, lambda: form("/captions", png(1, 25_000_000), 8)),
    Load("WebP: transparency", 4, lambda: form("/captions", encoded(5000, 5000, "WEBP", lossless=True, method=0), 8)),
    Load("PNG: chunks", 4, lambda: form("/digits", png(64, 64, chunk(b"tEXt", b"") * 1_000_000), 1)),
    Load("JPEG: fill bytes", 4, lambda: post("/captions", jpeg(15_000_000), "image/jpeg")),
    Load("JPEG: progressive", 4, lambda: form("/captions", encoded(5000, 5000, "JPEG", progressive=True), 8)),
    Load("GIF: frames", 4, lambda: post("/digits", animation("GIF", 2000, 50), "image/gif")),
    Load("GIF: blocks", 4, lambda: post("/digits", gif_blocks(), "image/gif")),
    Load("WebP: frames of 25 megapixels", 4, lambda: post("/captions", animation("WebP", 5000, 2), "image/webp")),
    Load("BMP: run lengths", 4, lambda: post("/captions", bmp_runs(), "image/bmp")),
    Load("32 pages of digits", 4, lambda: form("/digits", png(1240, 1754), 32)),
    Load("chunks of one byte", 4, byte_by_byte),
    Load("new connections", 300, repeat(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")),
    Load("slow bodies", 200, repeat(post("/perplexity", b" " * 1000)), pause_s=0.1),
)


@dataclass
class Measured:
    """The neighbours beside one load; times in milliseconds."""

    load: str
    keystroke_ms: float = 0.0  # the slowest
    probe_ms: float = 0.0  # the slowest
    keystrokes: int = 0
    refused: int = 0  # keystrokes and probes without a 200
    peak_mb: float = 0.0


def attack(load: int, port: int, seconds: float, started: "multiprocessing.synchronize.Event") -> None:
    """Run a load, in a process of its own."""
    name, clients, make, pause_s = LOADS[load]
    request = make()
    end = time.monotonic() + seconds

    def send() -> None:
        own = request if name != "long contexts" else make()
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 30) as connection:
                if pause_s:
                    for byte in own:
                        connection.send(bytes((byte,)))
                        time.sleep(pause_s)
                        if time.monotonic() >= end:
                            return
                connection.sendall(own)
                while time.monotonic() < end and connection.recv(65536):
                    pass
            if name == "long contexts":
                own = make()

    threads = [threading.Thread(target=send, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    started.set()
    time.sleep(seconds)
    os._exit(0)


class Neighbours:
    """A typist and a probe, each in a thread."""

    def __init__(self, port: int, measured: Measured) -> None:
        self._port = port
        self._measured = measured
        self._on = True
        self._threads = [threading.Thread(target=run) for run in (self._type, self._probe)]

    def __enter__(self) -> "Neighbours":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False
        for thread in self._threads:
            thread.join()

    def _type(self) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=60) as client:
            for count in range(10**9):
                if not self._on:
                    return
                text = (TEXT * 2)[: 1 + count % (2 * len(TEXT) - 1)]
                body = {"text": text, "complete": True}
                seconds = self._timed(lambda body=body: client.post("/next-word", json=body).status_code)  # type: ignore[misc]
                self._measured.keystrokes += 1
                self._measured.keystroke_ms = max(self._measured.keystroke_ms, 1000 * seconds)
                time.sleep(max(0.0, 1 / KEYS_PER_S - seconds))

    def _probe(self) -> None:
        while self._on:
            seconds = self._timed(lambda: httpx.get(f"http://127.0.0.1:{self._port}/livez", timeout=60).status_code)
            self._measured.probe_ms = max(self._measured.probe_ms, 1000 * seconds)
            time.sleep(PROBE_EVERY_S)

    def _timed(self, ask: Callable[[], int]) -> float:
        started = time.perf_counter()
        try:
            self._measured.refused += ask() != 200
        except httpx.HTTPError:
            self._measured.refused += 1
        return time.perf_counter() - started


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def peak_mb(pids: list[int]) -> float:
    """Return the peak resident memory of processes since `reset`, together."""
    found = 0
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            found += next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return found / 1024


@contextmanager
def loaded(load: int, port: int, seconds: float) -> Iterator[None]:
    """Run a load meanwhile; it has started, and stops with the block."""
    spawning = multiprocessing.get_context("spawn")
    started = spawning.Event()
    attacker = spawning.Process(target=attack, args=(load, port, seconds + 1, started))
    attacker.start()
    try:
        started.wait(60)
        yield
    finally:
        attacker.kill()
        attacker.join()


def measure(load: int, port: int, pid: int, seconds: float) -> Measured:
    """Return the neighbours' measurements beside a load of the table."""
    measured = Measured(LOADS[load].name)
    for each in family(pid):
        Path(f"/proc/{each}/clear_refs").write_text("5")  # resets VmHWM
    with loaded(load, port, seconds), Neighbours(port, measured):
        time.sleep(seconds)
        measured.peak_mb = peak_mb(family(pid))
    return measured


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="of each load")
    parser.add_argument("--only", default="", help="loads whose names hold this")
    options = parser.parse_args(arguments)
    found = []
    print(f"{'load':30} {'keystroke':>10} {'probe':>10} {'refused':>8} {'peak':>8}")
    for index, load in enumerate(LOADS):
        if options.only not in load.name:
            continue
        with serving(STORE) as (client, process):
            measured = measure(index, client.base_url.port or 0, process.pid, options.seconds)
        found.append(measured)
        print(
            f"{measured.load:30} {measured.keystroke_ms:7.0f} ms {measured.probe_ms:7.0f} ms {measured.refused:8}"
            f" {measured.peak_mb:5.0f} MB",
            flush=True,
        )
    print(json.dumps([asdict(each) for each in found]))


if __name__ == "__main__":
    main()
