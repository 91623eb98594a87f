"""Send 1,000 hostile uploads to a real server: each gets a 4xx or a correct answer, with bounded memory.

    python tests/bench/hostile.py [--uploads 1000] [--seed 1]

Decompression bombs, truncated and damaged files, polyglots, wrong types, huge dimensions, deep metadata, SVG, invalid
forms and endless bodies, generated from a seed. The server's peak memory (VmHWM) is compared with that of another
server under valid photographs and digits, the largest allowed among them. The last line is JSON.
"""

import argparse
import io
import json
import random
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import numpy as np
from PIL import Image

ROOT: Final = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.e2e.conftest import serving  # noqa: E402  # from this tree

STORE: Final = ROOT / "models_store"
CLIENTS: Final = 8
MAX_RATIO: Final = 1.5  # of the peak memory of valid uploads
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
PIXELS: Final = 5000  # per side: 25 megapixels, the limit


class Upload(NamedTuple):
    """One request, and its valid statuses."""

    kind: str
    content: bytes
    content_type: str = "image/png"
    right: tuple[int, ...] = (400, 413, 415, 422)
    chunked: bool = False  # without Content-Length


def smooth_image(chance: random.Random, width: int, height: int, form: str = "PNG", **options: object) -> bytes:
    """Return an encoded image of smooth colours, fast to generate."""
    seeds = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(seeds).resize((width, height), Image.Resampling.BILINEAR).save(stream, form, **options)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, rows: bytes, *before: bytes) -> bytes:
    """Return an 8-bit greyscale PNG with any size in its header."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(before) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bomb(chance: random.Random) -> Upload:
    """Return a PNG of any declared size with millions of compressed zeros."""
    side = chance.choice((5000, 20_000, 65_535, 2**31 - 1))
    return Upload(
        "bomb", png(side, side, zlib.compress(bytes(chance.randrange(10**6, 6 * 10**7)))), right=(200, 400, 413)
    )


def metadata_bomb(chance: random.Random) -> Upload:
    texts = (chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 * 10**7))) for _ in range(chance.randrange(1, 6)))
    return Upload("metadata bomb", png(28, 28, zlib.compress(bytes(29 * 28)), *texts), right=(200, 400, 413))


def truncated(chance: random.Random) -> Upload:
    form = chance.choice(FORMATS)
    whole = smooth_image(chance, chance.randrange(30, 400), chance.randrange(30, 400), form)
    return Upload("truncated", whole[: chance.randrange(1, len(whole) - 1)], f"image/{form.lower()}", (200, 400))


def damaged(chance: random.Random) -> Upload:
    form = chance.choice(FORMATS)
    content = bytearray(smooth_image(chance, 200, 150, form))
    for _ in range(chance.randrange(1, 60)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return Upload("damaged", bytes(content), f"image/{form.lower()}", (200, 400, 413))


def polyglot(chance: random.Random) -> Upload:
    other = chance.choice(
        (b"%PDF-1.7\n", b"PK\x03\x04", b"<html><script>alert(1)</script>", b"<?php system('id');", b"MZ")
    )
    image = smooth_image(chance, 60, 60, chance.choice(FORMATS))
    first = chance.random() < 0.5
    return Upload("polyglot", other + image if first else image + other, right=(400,) if first else (200, 400))


def other_type(chance: random.Random) -> Upload:
    content_type = chance.choice(
        ("text/html", "application/json", "application/zip", "image", "", "multipart/mixed; boundary=x")
    )
    return Upload("other type", chance.randbytes(500), content_type, (415,))


def no_image(chance: random.Random) -> Upload:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/>' + b"<g>" * chance.randrange(
        10**4
    )
    xml = b'<!DOCTYPE a [<!ENTITY b "' + b"b" * 999 + b'">' + b"]><svg>&b;</svg>"
    tiff = b"II*\0" + struct.pack("<I", 8) + b"\xff\xff" + chance.randbytes(3000)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    content = chance.choice((svg, xml, tiff, postscript, b"", chance.randbytes(chance.randrange(1, 10**5))))
    return Upload("no image", content, chance.choice(("image/svg+xml", "image/png", "image/tiff")), (400,))


def huge(chance: random.Random) -> Upload:
    """Return a PNG of a few bytes with a huge declared size."""
    width, height = chance.choice(
        ((2**31 - 1, 1), (1, 2**31 - 1), (10**5, 10**5), (0, 0), (25_000_001, 1), (5001, 5001))
    )
    return Upload("huge", png(width, height, zlib.compress(b"\0" * 99)), right=(400, 413))


def deep_metadata(chance: random.Random) -> Upload:
    """Return a JPEG with EXIF directories that point to themselves or nowhere."""
    entries = b"".join(
        struct.pack("<HHII", chance.choice((0x8769, 0x8825, 0x0112, 0xA005)), 4, 1, chance.choice((8, 0, 2**32 - 1)))
        for _ in range(200)
    )
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 200) + entries + struct.pack("<I", 8)
    return Upload("deep metadata", smooth_image(chance, 50, 50, "JPEG", exif=exif), "image/jpeg", (200, 400))


def frames(chance: random.Random) -> Upload:
    """Return a GIF of many large frames of a few bytes each."""
    frame = Image.new("P", (2000, 2000))
    stream = io.BytesIO()
    rest = [Image.new("P", (2000, 2000), n % 2 + 1) for n in range(chance.randrange(5, 20))]
    frame.save(stream, "GIF", save_all=True, append_images=rest)
    return Upload("frames", stream.getvalue(), "image/gif", (200, 400))


def form(chance: random.Random) -> Upload:
    """Return a form without an end, boundary or name, or with too many parts or headers."""
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    content = chance.choice(
        (
            part * chance.randrange(33, 5000) + b"--x--\r\n",
            part + chance.randbytes(1000),
            b"--y\r\n" * 1000,
            b"--x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n\r\n--x--\r\n",
            b"--x\r\nContent-Disposition: form-data; name=" + b"a" * 10**5 + b"\r\n\r\nb\r\n--x--\r\n",
            b"--x\r\n\r\nb\r\n--x--\r\n",
            b"\r\n" * 10**5,
            b"",
        )
    )
    return Upload("form", content, "multipart/form-data; boundary=x")


def endless(chance: random.Random) -> Upload:
    content_type = chance.choice(("image/png", "multipart/form-data; boundary=x"))
    return Upload("endless", smooth_image(chance, 30, 30), content_type, (400, 413), chunked=True)


HOSTILE: Final[tuple[Callable[[random.Random], Upload], ...]] = (
    bomb, metadata_bomb, truncated, damaged, polyglot, other_type, no_image, huge, deep_metadata, frames, form, endless,
)  # fmt: skip


def honest(chance: random.Random) -> Upload:
    """Return a valid image; one in twenty of the largest size allowed."""
    if chance.random() < 0.05:
        return Upload("largest", smooth_image(chance, PIXELS, PIXELS, chance.choice(("PNG", "JPEG"))), right=(200,))
    form = chance.choice(FORMATS)
    return Upload("honest", smooth_image(chance, 500, 375, form), f"image/{form.lower()}", (200,))


def endlessly(content: bytes) -> Iterator[bytes]:
    """Yield the content, then more than a gigabyte of zeros."""
    yield content
    for _ in range(20_000):
        yield bytes(64 * 1024)


def post(client: httpx.Client, path: str, upload: Upload) -> int:
    """Return the status; 413 if the server closed the connection during an endless body."""
    content = endlessly(upload.content) if upload.chunked else upload.content
    try:
        return client.post(path, content=content, headers={"Content-Type": upload.content_type}).status_code
    except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        if not upload.chunked:
            raise
        return 413


def load(
    makers: tuple[Callable[[random.Random], Upload], ...], count: int, seed: int
) -> tuple[Counter[str], list[str], float]:
    """Return statuses by kind, the wrong ones, and the server's peak memory in MiB."""
    chance = random.Random(seed)
    statuses, wrong = Counter[str](), list[str]()
    with serving(STORE) as (client, process), ThreadPoolExecutor(CLIENTS) as threads:

        def send(index: int) -> None:
            own = random.Random(seeds[index])
            upload = makers[index % len(makers)](own)
            status = post(client, own.choice(("/digits", "/captions")), upload)
            statuses[f"{upload.kind} {status}"] += 1
            if status not in upload.right:
                wrong.append(f"{upload.kind}, seed {seeds[index]}: {status}")

        seeds = [chance.randrange(2**32) for _ in range(count)]
        list(threads.map(send, range(count)))
        assert client.post("/next-word", json={"text": "the company"}).status_code == 200
        process_status = Path(f"/proc/{process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in process_status.splitlines() if line.startswith("VmHWM")) / 1024
    return statuses, wrong, peak


def main() -> int:
    """Print a table; return 1 for a wrong status or too much memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    _, honest_wrong, honest_peak = load((honest,), options.uploads // 5, options.seed)
    statuses, wrong, peak = load(HOSTILE, options.uploads, options.seed)
    for row, count in sorted(statuses.items()):
        print(f"{row:24}{count:6}")
    print(*honest_wrong, *wrong, sep="\n")
    ratio = round(peak / honest_peak, 2)
    results = {
        "uploads": options.uploads,
        "wrong": len(wrong),
        "honest_mib": round(honest_peak),
        "hostile_mib": round(peak),
    }
    print(json.dumps({**results, "ratio": ratio}))
    return bool(wrong or honest_wrong or ratio > MAX_RATIO)


if __name__ == "__main__":
    sys.exit(main())
