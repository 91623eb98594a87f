"""1,000 hostile uploads against a real server: each gets a 4xx or a right answer, in the memory of honest load.

    python tests/bench/hostile.py [--uploads 1000] [--seed 1]

Bombs, truncated and damaged files, polyglots, wrong types, huge dimensions, deep metadata, SVG, forms that are none
and bodies without an end, made by chance from a seed. The peak of a server's memory (VmHWM) under them is held against
that of another under as many honest photographs and digits, the largest allowed among them. The last line is JSON.
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

from tests.e2e.conftest import serving  # noqa: E402  # of this tree, however it is run

STORE: Final = ROOT / "models_store"
CALLERS: Final = 8
MOST: Final = 1.5  # times the memory of honest load
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
PIXELS: Final = 5000  # a side: 25 megapixels, the most that is taken


class Upload(NamedTuple):
    """One request, and the statuses that are right for it."""

    kind: str
    content: bytes
    content_type: str = "image/png"
    right: tuple[int, ...] = (400, 413, 415, 422)
    chunked: bool = False  # sent without a length


def picture(chance: random.Random, width: int, height: int, form: str = "PNG", **options: object) -> bytes:
    """Large smooth patches: what a photograph is to a decoder, at a fraction of the time to make it."""
    seeds = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(seeds).resize((width, height), Image.Resampling.BILINEAR).save(stream, form, **options)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, rows: bytes, *before: bytes) -> bytes:
    """A greyscale PNG of 8 bits that says it is so large, whatever is in it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(before) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bomb(chance: random.Random) -> Upload:
    """Says that it is within the bounds or far over them, and is zeros without an end."""
    side = chance.choice((5000, 20_000, 65_535, 2**31 - 1))
    return Upload(
        "bomb", png(side, side, zlib.compress(bytes(chance.randrange(10**6, 6 * 10**7)))), right=(200, 400, 413)
    )


def metadata_bomb(chance: random.Random) -> Upload:
    texts = (chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 * 10**7))) for _ in range(chance.randrange(1, 6)))
    return Upload("metadata bomb", png(28, 28, zlib.compress(bytes(29 * 28)), *texts), right=(200, 400, 413))


def truncated(chance: random.Random) -> Upload:
    form = chance.choice(FORMATS)
    whole = picture(chance, chance.randrange(30, 400), chance.randrange(30, 400), form)
    return Upload("truncated", whole[: chance.randrange(1, len(whole) - 1)], f"image/{form.lower()}", (200, 400))


def damaged(chance: random.Random) -> Upload:
    form = chance.choice(FORMATS)
    content = bytearray(picture(chance, 200, 150, form))
    for _ in range(chance.randrange(1, 60)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return Upload("damaged", bytes(content), f"image/{form.lower()}", (200, 400, 413))


def polyglot(chance: random.Random) -> Upload:
    other = chance.choice(
        (b"%PDF-1.7\n", b"PK\x03\x04", b"<html><script>alert(1)</script>", b"<?php system('id');", b"MZ")
    )
    image = picture(chance, 60, 60, chance.choice(FORMATS))
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
    """Says that it is huge in one way or another, and is a few bytes."""
    width, height = chance.choice(
        ((2**31 - 1, 1), (1, 2**31 - 1), (10**5, 10**5), (0, 0), (25_000_001, 1), (5001, 5001))
    )
    return Upload("huge", png(width, height, zlib.compress(b"\0" * 99)), right=(400, 413))


def deep_metadata(chance: random.Random) -> Upload:
    """EXIF whose directories point at themselves and at nothing."""
    entries = b"".join(
        struct.pack("<HHII", chance.choice((0x8769, 0x8825, 0x0112, 0xA005)), 4, 1, chance.choice((8, 0, 2**32 - 1)))
        for _ in range(200)
    )
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 200) + entries + struct.pack("<I", 8)
    return Upload("deep metadata", picture(chance, 50, 50, "JPEG", exif=exif), "image/jpeg", (200, 400))


def frames(chance: random.Random) -> Upload:
    """A GIF of many large frames, a few bytes each."""
    frame = Image.new("P", (2000, 2000))
    stream = io.BytesIO()
    rest = [Image.new("P", (2000, 2000), place % 2 + 1) for place in range(chance.randrange(5, 20))]
    frame.save(stream, "GIF", save_all=True, append_images=rest)
    return Upload("frames", stream.getvalue(), "image/gif", (200, 400))


def form(chance: random.Random) -> Upload:
    """Forms that have no end, no boundary, no name, or more parts and headers than there may be."""
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
    return Upload("endless", picture(chance, 30, 30), content_type, (400, 413), chunked=True)


HOSTILE: Final[tuple[Callable[[random.Random], Upload], ...]] = (
    bomb, metadata_bomb, truncated, damaged, polyglot, other_type, no_image, huge, deep_metadata, frames, form, endless,
)  # fmt: skip


def honest(chance: random.Random) -> Upload:
    """A photograph or a digit; one in twenty as large as may be."""
    if chance.random() < 0.05:
        return Upload("largest", picture(chance, PIXELS, PIXELS, chance.choice(("PNG", "JPEG"))), right=(200,))
    form = chance.choice(FORMATS)
    return Upload("honest", picture(chance, 500, 375, form), f"image/{form.lower()}", (200,))


def endlessly(content: bytes) -> Iterator[bytes]:
    """The content, and then more than a server can want."""
    yield content
    for _ in range(20_000):
        yield bytes(64 * 1024)


def post(client: httpx.Client, path: str, upload: Upload) -> int:
    """The status; where the connection was cut while the body went on, 413, which nobody was there to read."""
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
    """Statuses by kind, what was wrong, and the server's peak in MiB."""
    chance = random.Random(seed)
    statuses, wrong = Counter[str](), list[str]()
    with serving(STORE) as (client, process), ThreadPoolExecutor(CALLERS) as threads:

        def ask(place: int) -> None:
            own = random.Random(chance_of[place])
            upload = makers[place % len(makers)](own)
            status = post(client, own.choice(("/digits", "/captions")), upload)
            statuses[f"{upload.kind} {status}"] += 1
            if status not in upload.right:
                wrong.append(f"{upload.kind}, seed {chance_of[place]}: {status}")

        chance_of = [chance.randrange(2**32) for _ in range(count)]
        list(threads.map(ask, range(count)))
        assert client.post("/next-word", json={"text": "the company"}).status_code == 200
        told = Path(f"/proc/{process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in told.splitlines() if line.startswith("VmHWM")) / 1024
    return statuses, wrong, peak


def main() -> int:
    """Print a table; 1 if an answer was wrong or the memory too much."""
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
    figures = {
        "uploads": options.uploads,
        "wrong": len(wrong),
        "honest_mib": round(honest_peak),
        "hostile_mib": round(peak),
    }
    print(json.dumps({**figures, "ratio": ratio}))
    return bool(wrong or honest_wrong or ratio > MOST)


if __name__ == "__main__":
    sys.exit(main())
