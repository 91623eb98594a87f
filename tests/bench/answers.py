"""Record the answers of a running server to a fixed set of requests, or compare them with recorded ones.

    python tests/bench/answers.py record http://127.0.0.1:8000 answers.jsonl
    python tests/bench/answers.py compare http://127.0.0.1:8000 answers.jsonl [--messages-may-differ]

The requests cover every route, without API keys and rate limits, in a fixed order, one at a time. Their texts are
literals and their images are drawn from fixed seeds, so the same Pillow makes the same bytes. A line of the file is one
request: its name, the sha256 of what was sent, the status, the headers and the body, as text, base64 or, if large, as
its sha256.

Everything is compared byte for byte, except for these values, which are left out or replaced:

- `Date`; `Content-Length` of answers with a body; `Last-Modified` and `ETag` of /docs/files, which depend on the time
  of installation;
- `X-Request-Id`, if the server generated it; a fixed id is sent with each request and has to come back;
- `cached_tokens` of /next-word, which depends on earlier requests, unless a request repeats the one before it;
- `detail` where a deadline has passed, which names the stage that the request was in by then;
- the body of /metrics.

With `--messages-may-differ` these texts may differ as well: `detail` and the `message` of each field error in problem
documents, and `description`, `summary` and `title` in /openapi.json. With `--page-may-differ` the files of the page are
not compared, neither their contents nor their names; GET / still has to answer with the same status and headers.
"""

import argparse
import base64
import gzip
import hashlib
import io
import ipaddress
import json
import math
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
BOUNDARY: Final = "boundary-of-answers"
FORM: Final = f"multipart/form-data; boundary={BOUNDARY}"
EVENTS: Final = "text/event-stream"
REQUEST_ID: Final = "answers"
GENERATED: Final = "generated"
NORMALISED: Final = "normalised"
NO_ANSWER: Final = 0  # instead of a status, where the connection broke
TIMEOUT_S: Final = 300.0
LARGEST_TEXT: Final = 2**18  # bytes of a body that the file has in full
LARGEST_BINARY: Final = 2**12
SHOWN: Final = 160  # characters of a difference
DETAIL: Final = re.compile(rb'"detail": "[^"]*"')
CACHED_TOKENS: Final = re.compile(rb'"cached_tokens":\d+')
VERSION_OF: Final = {"captions": "20261124", "digits": "20261124.2", "ptb": "20261124.2"}
PICTURES_OF: Final = {
    "captions": ("curves.png", "gallery.png"),
    "digits": ("confusion.png", "curves.png", "errors.png", "reliability.png"),
    "ptb": ("curves.png",),
}
PAGE_FILES: Final = (
    "api.js", "caption.js", "card.js", "draw.js", "icon.svg", "index.html", "kept.js", "key.js", "main.js", "models.js",
    "pictures.js", "score.js", "shown.js", "style.css", "write.js",
)  # fmt: skip
STROKES: Final[dict[int, tuple[tuple[tuple[float, float], ...], ...]]] = {
    0: (tuple((0.5 + 0.28 * math.sin(turn / 4), 0.5 - 0.4 * math.cos(turn / 4)) for turn in range(26)),),
    1: (((0.35, 0.25), (0.55, 0.1), (0.55, 0.9)),),
    2: (((0.2, 0.3), (0.35, 0.12), (0.65, 0.12), (0.78, 0.32), (0.6, 0.55), (0.2, 0.88), (0.82, 0.88)),),
    3: (((0.22, 0.15), (0.6, 0.1), (0.75, 0.28), (0.45, 0.47), (0.78, 0.68), (0.6, 0.9), (0.2, 0.85)),),
    4: (((0.6, 0.1), (0.2, 0.6), (0.85, 0.6)), ((0.65, 0.35), (0.65, 0.92))),
    5: (((0.78, 0.12), (0.3, 0.12), (0.26, 0.47), (0.6, 0.43), (0.8, 0.65), (0.6, 0.9), (0.2, 0.85)),),
    6: (((0.7, 0.1), (0.35, 0.4), (0.25, 0.7), (0.45, 0.9), (0.72, 0.75), (0.6, 0.55), (0.3, 0.62)),),
    7: (((0.2, 0.12), (0.8, 0.12), (0.45, 0.9)),),
    8: (
        ((0.5, 0.48), (0.25, 0.3), (0.5, 0.1), (0.75, 0.3), (0.5, 0.48), (0.22, 0.7), (0.5, 0.92), (0.78, 0.7)),
        ((0.78, 0.7), (0.5, 0.48)),
    ),
    9: (((0.72, 0.3), (0.5, 0.1), (0.27, 0.3), (0.45, 0.5), (0.72, 0.35), (0.7, 0.6), (0.55, 0.92)),),
}  # of each digit, in the unit square
PARAGRAPH: Final = (
    "The board of directors said the company's third-quarter profit rose 12% to $4.5 million, or 23 cents a share.\n"
    "Analysts hadn't expected it; \"We're surprised,\" said John Smith of Merrill Lynch.\n"
    "\n"
    "But the stock fell 1 1/4 to 36 on the New York Stock Exchange.\n"
)


@dataclass(frozen=True)
class Request:
    """One request; `label` distinguishes it from others of its method and target."""

    method: str
    target: str
    label: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    content: bytes = b""
    chunked: bool = False  # sent without a length
    repeats: bool = False  # the request before, so that its cached_tokens are certain
    body_matters: bool = True
    detail_matters: bool = True  # of a problem document
    ignored: tuple[str, ...] = ()  # headers

    @property
    def name(self) -> str:
        """Key of the request, which no other has."""
        return f"{self.method} {self.target}" + (f": {self.label}" if self.label else "")

    @property
    def sha256(self) -> str:
        """Digest of what is sent."""
        sent = repr((self.method, self.target, self.headers, self.chunked)).encode() + self.content
        return hashlib.sha256(sent).hexdigest()


def all_requests() -> list[Request]:
    """Every request, in the order in which they are sent."""
    groups = (
        page_requests(),
        operations_requests(),
        activate_requests(),
        next_word_requests(),
        perplexity_requests(),
        digits_requests(),
        captions_requests(),
        caption_events_requests(),
        json_fault_requests(),
        image_fault_requests(),
        header_requests(),
    )
    requests = [request for group in groups for request in group]
    names = [request.name for request in requests]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return requests


def post_json(target: str, label: str, value: object, **more: Any) -> Request:
    """A POST of a value as JSON in UTF-8."""
    return post(target, label, json.dumps(value, ensure_ascii=False).encode(), JSON, **more)


def post(
    target: str, label: str, content: bytes, media_type: str | None, *more: tuple[str, str], **flags: Any
) -> Request:
    """A POST of bytes; `more` are further headers, `flags` further fields of the Request."""
    typed = () if media_type is None else (("Content-Type", media_type),)
    return Request("POST", target, label, typed + more, content, **flags)


def page_requests() -> Iterator[Request]:
    """The page, its files and the documentation."""
    for target in ("/", *(f"/web/{name}" for name in PAGE_FILES), "/docs", "/openapi.json"):
        yield Request("GET", target)
        yield Request("HEAD", target)
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        yield Request("GET", f"/docs/files/{name}", ignored=("etag", "last-modified"))
    for target in ("/", "/web/main.js"):
        for tag in ("*", '"other"', 'W/"other", *'):
            yield Request("GET", target, f"If-None-Match {tag}", (("If-None-Match", tag),))
        yield Request("GET", target, "a range", (("Range", "bytes=0-9"),))
    for name in ("", "none.js", "..%2fpage.py", "%00", "MAIN.JS"):
        yield Request("GET", f"/web/{name}")
    yield Request("GET", "/web")
    yield Request("GET", "/docs/files/none")
    yield Request("GET", "/docs/files/..%2f..%2f__init__.py")
    yield Request("GET", "/?query=1")
    for method in ("OPTIONS", "POST", "PUT", "DELETE"):
        for target in ("/", "/web/main.js", "/docs", "/openapi.json"):
            yield Request(method, target)


def operations_requests() -> Iterator[Request]:
    """Routes of the server's state and of its models, and paths that no route has."""
    for target in ("/livez", "/readyz", "/models", *(f"/models/{model}" for model in VERSION_OF)):
        for method in ("GET", "HEAD", "OPTIONS", "POST"):
            yield Request(method, target)
    for model, names in PICTURES_OF.items():
        for name in names:
            yield Request("GET", f"/models/{model}/files/{name}")
    image = "/models/ptb/files/curves.png"
    yield Request("HEAD", image)
    yield Request("OPTIONS", image)
    yield Request("DELETE", image)
    yield Request("GET", image, "If-None-Match *", (("If-None-Match", "*"),))
    for name in ("none.png", "manifest.json", "README.md", "weights.safetensors", "..%2fCURRENT", "%ff.png", "a/b.png"):
        yield Request("GET", f"/models/ptb/files/{name}")
    yield Request("GET", "/models/none/files/curves.png")
    yield Request("GET", "/models/none")
    yield Request("GET", "/models/" + 300 * "n", "a long name")
    yield Request("GET", "/models/", "no name")
    yield Request("GET", "/models/m%C3%B6del")
    yield Request("GET", "/models/..%2f..%2fetc")
    yield Request("GET", "/metrics", body_matters=False)
    yield Request("HEAD", "/metrics", ignored=("content-length",))
    for method in ("OPTIONS", "POST"):
        yield Request(method, "/metrics")
    for label, header in foreign():
        yield Request("GET", "/metrics", label, (header,))
    for method in ("GET", "HEAD", "OPTIONS", "POST", "BREW"):
        yield Request(method, "/none")
    for target in ("/livez/", "/readyz/", "/livez//", "/LIVEZ", "/next-word/", "/favicon.ico", "/none?a=b"):
        yield Request("GET", target)
    yield Request("GET", "/" + 200 * "x", "a long path")
    yield Request("GET", "/livez?query=1")


def foreign() -> Iterator[tuple[str, tuple[str, str]]]:
    """Headers of requests that come from another machine or page, each with a label."""
    yield "a proxy", ("X-Forwarded-For", "192.0.2.1")
    yield "a standard proxy", ("Forwarded", "for=192.0.2.1")
    yield "a foreign Origin", ("Origin", "https://example.org")
    yield "a foreign Host", ("Host", "example.org")


def activate_requests() -> Iterator[Request]:
    """Requests for a version: for the active one, which changes nothing, and wrong ones."""
    for model, version in VERSION_OF.items():
        yield post_json(f"/models/{model}/activate", "the active version", {"version": version})
    path = "/models/ptb/activate"
    yield post_json(path, "unknown version", {"version": "none"})
    yield post_json(path, "empty version", {"version": ""})
    yield post_json(path, "a path as version", {"version": "../20261124.2"})
    yield post_json(path, "missing field", {})
    yield post_json(path, "wrong type", {"version": 3})
    yield post_json(path, "unknown field", {"version": "none", "force": True})
    yield post_json(path, "too large", {"version": 4096 * "v"})
    yield post(path, "malformed", b"{", JSON)
    yield post(path, "wrong content type", b'{"version": "none"}', "text/plain")
    yield post_json("/models/none/activate", "unknown model", {"version": "none"})
    for label, header in foreign():
        yield post(path, label, b'{"version": "20261124.2"}', JSON, header)
    for method in ("GET", "HEAD", "OPTIONS", "PUT"):
        yield Request(method, path)


def next_word_requests() -> Iterator[Request]:
    """Suggestions."""
    path = "/next-word"
    texts = {
        "empty": "",
        "a blank": " ",
        "line breaks": "\n\n",
        "one word": "the",
        "a phrase": "The company said it expects third-quarter",
        "a blank at the end": "the company said ",
        "a line break at the end": "The company said.\n",
        "several sentences": PARAGRAPH,
        "contractions": "It isn't what they've said, and we'd",
        "numbers and signs": "Sales rose 12.5% to $3,400 in 1989 & 1990; that's",
        "unknown words": "The zyxwv frobnicated the qwerty of",
        "accents": "Le café naïve à São Paulo et Zürich",
        "other scripts": "公司 said компания λόγος",
        "emoji": "The stock rose 🚀👩‍👩‍👧 and",
        "combining characters": "cafe\u0301 and \u200bzero\u00a0width\u2028line",
        "quotation marks": "“We’re – well – ‘surprised’…”",
        "tokens by name": "<unk> N <eos> the",
        "shouted": "THE COMPANY SAID",
        "control characters": "the\tcompany\r\nsaid\x0b\x1f it",
        "2,000 words": " ".join(["the stock market fell because investors are worried about rates"] * 200),
    }  # fmt: skip
    for label, text in texts.items():
        yield post_json(path, label, {"text": text})
    repeated = {"text": "the new york stock exchange said", "top_k": 2}
    yield post_json(path, "once", repeated)
    yield post_json(path, "repeated", repeated, repeats=True)
    yield post_json(path, "repeated with words", {**repeated, "words": 3}, repeats=True)
    said = {"text": "the company said"}
    for top_k in (1, 2, 10, 50):
        yield post_json(path, f"top_k {top_k}", {**said, "top_k": top_k})
    for words in range(2, 6):
        for top_k in (1, 5, 50):
            yield post_json(path, f"{words} words, top_k {top_k}", {**said, "words": words, "top_k": top_k})
    begun = ("shares of the comp", "dir", "The U", "xqzj", "the ", "", "does", "don'", "$", "1", "Ch", "é", "the\nco")
    for typed in begun:
        yield post_json(path, f"complete {typed!r}", {"text": typed, "complete": True})
    for top_k, words in ((50, 1), (1, 2), (3, 3), (10, 5)):
        asked = {"text": "The board of dir", "complete": True, "top_k": top_k, "words": words}
        yield post_json(path, f"complete, top_k {top_k}, {words} words", asked)
    yield post_json(path, "whole numbers as floats", {**said, "top_k": 3.0, "words": 2.0})
    yield post_json(path, "model by name", {**said, "model": "ptb"})
    yield post_json(path, "model null", {**said, "model": None})
    yield post_json(f"{path}?query=1", "a query", said)
    yield post(path, "escaped", b'{"text": "caf\\u00e9 \\ud83d\\ude80 the"}', JSON)
    yield post(path, "chunked", b'{"text": "the company said"}', JSON, chunked=True)
    for content_type in (f"{JSON}; charset=UTF-8", "application/vnd.api+json", 'Application/JSON; charset="us-ascii"'):
        yield post(path, content_type, b'{"text": "the company"}', content_type)


def perplexity_requests() -> Iterator[Request]:
    """Scores."""
    path = "/perplexity"
    black_monday = ["No, it was not Black Monday.", "Monday black not was it, no."]
    texts = {
        "one word": "the",
        "a sentence": "The company's profits rose 12% in 1989.",
        "several sentences": PARAGRAPH,
        "unknown words": "zyxwv frobnicated qwerty",
        "unicode": "Le café 公司 🚀 λόγος\u2028cafe\u0301",
        "carriage returns": "the company\r\nsaid it\rwould\x0bfall\x0c",
        "blanks around": "  \n the company said \n\n ",
        "tokens by name": "the <unk> N of <eos>",
        "many sentences": 60 * PARAGRAPH,
    }
    for label, text in texts.items():
        yield post_json(path, label, {"text": text})
        yield post_json(path, f"{label}, by sentence", {"text": text, "mode": "sentence"})
        if len(text) < 1000:
            yield post_json(path, f"{label}, per token", {"text": text, "per_token": True})
    for alternatives in (1, 2, 10):
        asked = {"text": PARAGRAPH, "per_token": True, "alternatives": alternatives}
        yield post_json(path, f"{alternatives} alternatives", asked)
        yield post_json(path, f"{alternatives} alternatives, by sentence", {**asked, "mode": "sentence"})
    yield post_json(path, "alternatives without per_token", {"text": PARAGRAPH, "alternatives": 3})
    yield post_json(path, "per token of many", {"text": 20 * PARAGRAPH, "per_token": True, "alternatives": 1})
    yield post_json(path, "one of texts", {"texts": black_monday[:1]})
    yield post_json(path, "two texts", {"texts": black_monday})
    yield post_json(path, "two texts per token", {"texts": black_monday, "per_token": True, "alternatives": 1})
    yield post_json(path, "unlike texts", {"texts": list(texts.values()), "mode": "sentence"})
    yield post_json(path, "256 texts", {"texts": [f"the company said it has {n} shares" for n in range(256)]})
    yield post_json(path, "257 texts", {"texts": ["the company"] * 257})
    yield post_json(path, "no texts", {"texts": []})
    yield post_json(path, "text and texts", {"text": "the", "texts": ["the"]})
    yield post_json(path, "neither", {})
    yield post_json(path, "empty text", {"text": ""})
    yield post_json(path, "blank text", {"text": " \n\t\u2003"})
    yield post_json(path, "blank among texts", {"texts": ["the company", " "]})
    yield post_json(path, "nothing to score", {"text": "\u200b"})
    yield post_json(path, "nothing to score among texts", {"texts": ["the company", "\u200b", "it said"]})
    yield post_json(path, "a number among texts", {"texts": ["the company", 5]})
    yield post_json(path, "wrong mode", {"text": "the", "mode": "word"})
    yield post_json(path, "11 alternatives", {"text": "the", "alternatives": 11})
    yield post_json(path, "-1 alternatives", {"text": "the", "alternatives": -1})
    yield post_json(path, "per_token a string", {"text": "the", "per_token": "yes"})
    yield post_json(path, "model by name", {"text": "the company", "model": "ptb"})
    yield post_json(path, "too large", {"text": 4 * 2**20 * "a"})
    long = json.dumps({"text": 500 * PARAGRAPH}).encode()
    yield post(path, "deadline passed", long, JSON, timeout("0.000001"), detail_matters=False)


def timeout(seconds: str) -> tuple[str, str]:
    """The header that lowers the deadline."""
    return "X-Request-Timeout", seconds


def digits_requests() -> Iterator[Request]:
    """Images of digits, and of other things."""
    path = "/digits"
    for digit in STROKES:
        yield post(path, f"a {digit}, 28 x 28", encoded(drawn(digit, digit, 28)), "image/png")
        yield post(f"{path}?framed=true", f"a {digit}, 280 x 280", encoded(drawn(digit, 10 + digit, 280)), "image/png")
    five = drawn(5, 40, 120)
    for form in ("PNG", "JPEG", "WEBP", "BMP", "GIF"):
        yield post(path, f"raw {form}", encoded(five, form), f"image/{form.lower()}")
    for label, image in digit_variants(five).items():
        yield post(f"{path}?framed=true", label, image, "image/png")
    for label, empty in no_digits().items():
        yield post(f"{path}?framed=true", label, encoded(empty), "image/png")
    some = [encoded(drawn(place % 10, 60 + place, 28 + 9 * place)) for place in range(33)]
    for count in (1, 2, 10, 32, 33):
        yield post(path, f"a form of {count}", form_of(some[:count]), FORM)
    mixed = [some[3], encoded(no_digits()["blank"]), encoded(five, "JPEG"), encoded(drawn(8, 41, 64), "GIF")]
    yield post(f"{path}?framed=true", "a form of unlike images", form_of(mixed), FORM)
    yield post(path, "a form, chunked", form_of(some[:2]), FORM, chunked=True)
    yield post(path, "a damaged one among others", form_of([some[0], some[1][:40], some[2]]), FORM)
    for query in ("model=digits", "framed=false", "framed=1", "framed=no", "framed=maybe", "framed=", "model=none"):
        yield post(f"{path}?{query}", "a 1", some[1], "image/png")
    for query in ("model=ptb", "none=1", "framed=true&framed=false", "number=true"):
        yield post(f"{path}?{query}", "a 1", some[1], "image/png")
    yield post(path, "a photograph", encoded(scene(5, 320, 240), "JPEG"), "image/jpeg")


def digit_variants(five: Image.Image) -> dict[str, bytes]:
    """The same digit in other modes, sizes, places and colours."""
    grey = np.asarray(five.convert("L"))
    clear = Image.new("RGBA", five.size, (255, 255, 255, 0))
    clear.paste((20, 30, 120, 255), mask=ImageOps.invert(five.convert("L")))
    chalk = Image.new("RGBA", five.size, (255, 255, 255, 0))
    chalk.paste((250, 250, 250, 255), mask=ImageOps.invert(five.convert("L")))
    wide = Image.new("L", (900, 400), 255)
    wide.paste(five.convert("L"), (700, 30))
    shade = np.linspace(0.5, 1, grey.shape[1])[None]
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "inverted": encoded(ImageOps.invert(five.convert("L"))),
        "black and white": encoded(five.convert("1")),
        "16 bits": encoded(Image.fromarray(grey.astype(np.uint16) * 257)),
        "a palette": encoded(five.convert("P")),
        "transparent": encoded(clear),
        "chalk on nothing": encoded(chalk),
        "CMYK": encoded(five.convert("CMYK"), "JPEG"),
        "turned by EXIF": encoded(five, "JPEG", exif=turned),
        "off centre": encoded(wide),
        "coloured": encoded(ImageOps.colorize(five.convert("L"), "darkred", "lightyellow")),
        "shaded": encoded(Image.fromarray((grey * shade).astype(np.uint8))),
        "faint": encoded(Image.fromarray((200 + grey * 0.2).astype(np.uint8))),
        "noisy": encoded(noisy(five, 7)),
        "turned by 20 degrees": encoded(five.rotate(20, fillcolor=255)),
        "stretched": encoded(five.resize((300, 90))),
        "tiny": encoded(five.resize((10, 10))),
        "large": encoded(five.resize((1500, 1500))),
        "ruled": encoded(ruled(five)),
        "a sheet on a desk": encoded(on_desk(five)),
        "poor JPEG": encoded(five, "JPEG", quality=10),
        "frames": encoded(five, "GIF", save_all=True, append_images=[drawn(3, 43, 120)]),
        "bytes after its end": encoded(five) + b"<script>",
    }


def no_digits() -> dict[str, Image.Image]:
    """Images without one digit."""
    noise = np.random.default_rng(11).integers(0, 256, (64, 64), np.uint8)
    shapes = Image.new("L", (100, 100), 255)
    ImageDraw.Draw(shapes).polygon([(10, 90), (50, 10), (90, 90)], outline=0, width=5)
    several = Image.new("L", (300, 100), 255)
    for place, digit in enumerate((4, 0, 7)):
        several.paste(drawn(digit, 50 + place, 100), (100 * place, 0))
    return {
        "blank": Image.new("L", (28, 28), 255),
        "black": Image.new("L", (280, 280), 0),
        "one pixel": Image.new("L", (1, 1), 0),
        "a line of pixels": Image.new("L", (400, 1), 90),
        "noise": Image.fromarray(noise),
        "a triangle": shapes,
        "three digits": several,
        "a slope of grey": Image.linear_gradient("L"),
    }


def captions_requests() -> Iterator[Request]:
    """Captions in one piece."""
    path = "/captions"
    scenes = [encoded(scene(seed, 500, 375), "JPEG", quality=90) for seed in range(9)]
    for seed in range(6):
        yield post(path, f"scene {seed}", scenes[seed], "image/jpeg")
    for beam in (1, 2, 10):
        yield post(f"{path}?beam={beam}", "scene 0", scenes[0], "image/jpeg")
    for beam, alternatives in ((1, 9), (2, 1), (3, 9), (10, 9), (10, 3)):
        yield post(f"{path}?beam={beam}&alternatives={alternatives}", "scene 1", scenes[1], "image/jpeg")
    for form in ("PNG", "WEBP", "BMP", "GIF"):
        yield post(path, f"raw {form}", encoded(scene(6, 260, 340), form), f"image/{form.lower()}")
    for label, image in unusual_photographs().items():
        yield post(f"{path}?alternatives=1", label, image, "image/*")
    for count in (1, 2, 8, 9):
        yield post(f"{path}?alternatives=1", f"a form of {count}", form_of(scenes[:count]), FORM)
    yield post(path, "a damaged one among others", form_of([scenes[0], scenes[1][:400], scenes[2]]), FORM)
    faults = ("beam=0", "beam=11", "beam=x", "beam=", "beam=2.5", "alternatives=-1", "alternatives=10")
    fine = ("beam=2.0", "model=captions", "none=1", "beam=1&beam=2", "tags=false", "threshold=0.5")
    for query in (*faults, *fine, "model=none", "model=digits", "beam=0&alternatives=10"):
        yield post(f"{path}?{query}", "scene 2", scenes[2], "image/jpeg")


def caption_events_requests() -> Iterator[Request]:
    """Captions of `Accept: text/event-stream`, and other values of Accept."""
    path = "/captions"
    scenes = [encoded(scene(seed, 500, 375), "JPEG", quality=90) for seed in range(5)]
    for seed in range(3):
        yield post(path, f"events of scene {seed}", scenes[seed], "image/jpeg", ("Accept", EVENTS))
    for beam, alternatives in ((1, 0), (5, 2), (10, 9)):
        target = f"{path}?beam={beam}&alternatives={alternatives}"
        yield post(target, "events", scenes[3], "image/jpeg", ("Accept", EVENTS))
    for accept in (f"{EVENTS};q=0", f"{JSON}, {EVENTS};q=0.1", f"{EVENTS}; q=0.0", "text/*", "image/png"):
        yield post(path, f"Accept: {accept}", scenes[4], "image/jpeg", ("Accept", accept))
    yield post(path, "events of a form", form_of(scenes[:1]), FORM, ("Accept", EVENTS))
    yield post(path, "events of two", form_of(scenes[:2]), FORM, ("Accept", EVENTS))
    yield post(path, "events of no image", b"none", "image/jpeg", ("Accept", EVENTS))
    yield post(f"{path}?beam=0", "events with a wrong beam", scenes[0], "image/jpeg", ("Accept", EVENTS))
    yield post(f"{path}?model=none", "events of an unknown model", scenes[0], "image/jpeg", ("Accept", EVENTS))
    yield post(path, "events with a wrong deadline", scenes[0], "image/jpeg", ("Accept", EVENTS), timeout("x"))
    yield post(path, "deadline passed", scenes[0], "image/jpeg", timeout("0.000001"), detail_matters=False)


def unusual_photographs() -> dict[str, bytes]:
    """Photographs of other shapes, modes and contents."""
    photograph = scene(7, 400, 300)
    turned = Image.Exif()
    turned[0x0112] = 8
    veiled = photograph.convert("RGBA")
    veiled.putalpha(Image.linear_gradient("L").resize(veiled.size))
    return {
        "grey": encoded(photograph.convert("L"), "JPEG"),
        "CMYK": encoded(photograph.convert("CMYK"), "JPEG"),
        "a palette": encoded(photograph.convert("P")),
        "half transparent": encoded(veiled),
        "turned by EXIF": encoded(photograph, "JPEG", exif=turned),
        "progressive": encoded(photograph, "JPEG", progressive=True),
        "one pixel": encoded(photograph.resize((1, 1))),
        "a strip": encoded(photograph.resize((1200, 20))),
        "small": encoded(photograph.resize((40, 30)), "JPEG"),
        "large": encoded(scene(8, 2000, 1500), "JPEG"),
        "blank": encoded(Image.new("RGB", (300, 200), "white")),
        "a digit": encoded(drawn(2, 90, 200)),
    }


def json_fault_requests() -> Iterator[Request]:
    """Faults in bodies, headers and methods of the routes that take JSON."""
    said = b'{"text": "the company"}'
    bodies = {
        "no body": b"",
        "a bracket": b"{",
        "a comma too many": b'{"text": "the",}',
        "single quotes": b"{'text': 'the'}",
        "two documents": b'{"text": "the"} {}',
        "an array": b'["the"]',
        "a string": b'"the"',
        "null": b"null",
        "a number": b"5",
        "NaN": b'{"text": NaN}',
        "a key twice": b'{"text": "the", "text": "a"}',
        "half a surrogate pair": b'{"text": "\\ud800"}',
        "half a surrogate pair as model": b'{"text": "the", "model": "\\udc00"}',
        "no UTF-8": b'{"text": "\xff\xfe"}',
        "UTF-16": '{"text": "the"}'.encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + said,
        "a NUL": b'{"text": "a\0b"}',
        "an escaped NUL": b'{"text": "a\\u0000b"}',
        "10,000 brackets": 10_000 * b"[",
        "a huge number": b'{"text": "the", "top_k": 1e999, "alternatives": 1e999}',
        "a number of 5,000 digits": b'{"text": "the", "top_k": ' + 5000 * b"9" + b"}",
        "gzip": gzip.compress(said, mtime=0),
        "33 fields": json.dumps({f"field{place}": place for place in range(33)}).encode(),
        "30 unknown fields": json.dumps({"text": "the"} | {f"field{place}": place for place in range(30)}).encode(),
        "an unknown field of a long name": json.dumps({"text": "the", 500 * "n": 1}).encode(),
        "a text that is a number": b'{"text": 5}',
        "a text that is null": b'{"text": null}',
        "a text that is an array": b'{"text": ["the"]}',
        "a text that is an object": b'{"text": {"a": "the"}}',
        "a model that is a number": b'{"text": "the", "model": 5}',
        "an unknown model": b'{"text": "the", "model": "none"}',
        "an unknown model of a long name": b'{"text": "the", "model": "' + 500 * b"n" + b'"}',
        "a model of another family": b'{"text": "the", "model": "digits"}',
        "an empty model": b'{"text": "the", "model": ""}',
    }
    for path in ("/next-word", "/perplexity"):
        for label, body in bodies.items():
            yield post(path, f"fault, {label}", body, JSON)
        for content_type in (None, "", "text/plain", f"{JSON}; charset=latin-1", "json", "multipart/form-data"):
            yield post(path, f"content type {content_type!r}", said, content_type)
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "BREW"):
            yield Request(method, path)
        for seconds in ("0", "-1", "abc", "inf", "nan", ""):
            yield post(path, f"X-Request-Timeout {seconds!r}", said, JSON, timeout(seconds))
        yield post(path, "X-Request-Timeout '1e-7'", said, JSON, timeout("1e-7"), detail_matters=False)
        yield post(path, "X-Request-Timeout 100", said, JSON, timeout("100"))
        yield post(path, "Content-Encoding", gzip.compress(said, mtime=0), JSON, ("Content-Encoding", "gzip"))
    yield from next_word_fault_requests()


def next_word_fault_requests() -> Iterator[Request]:
    """Faults in single fields of /next-word."""
    path = "/next-word"
    values: dict[str, Sequence[object]] = {
        "top_k": (0, 51, -1, 5.5, "5", True, None, [5], 10**30),
        "words": (0, 6, 1.5, "2", False, None, {}),
        "complete": (1, 0, "true", None, []),
    }
    for field, faults in values.items():
        for value in faults:
            yield post_json(path, f"{field} {value!r}", {"text": "the", field: value})
    yield post_json(path, "missing text", {"top_k": 5})
    wrong = {"text": 1, "top_k": 0, "words": "x", "complete": 3, "model": 4, "more": 5}
    yield post_json(path, "everything wrong", wrong)
    yield post_json(path, "as large as it may be", {"text": (64 * 1024 - len('{"text": ""}')) * "a"})
    yield post_json(path, "too large", {"text": 64 * 1024 * "a"})
    yield post_json(path, "too large, chunked", {"text": 64 * 1024 * "a"}, chunked=True)


def image_fault_requests() -> Iterator[Request]:
    """Faults in bodies, headers and methods of the routes that take images."""
    image = encoded(drawn(6, 70, 60))
    jpeg = encoded(scene(4, 120, 90), "JPEG")
    bodies = {
        "nothing": b"",
        "a text": b"no image",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "TIFF": encoded(drawn(6, 70, 60), "TIFF"),
        "a PNG cut off": image[: len(image) // 2],
        "a PNG's head": image[:8],
        "a JPEG cut off": jpeg[: len(jpeg) // 2],
        "a damaged PNG": image[:60] + bytes(20) + image[80:],
        "too many pixels": encoded(Image.new("1", (5001, 5000))),
        "17 MiB": image + bytes(17 * 2**20),
    }
    parts = {
        "no parts": f"--{BOUNDARY}--\r\n".encode(),
        "no end": form_of([image])[: -len(BOUNDARY)],
        "another boundary": form_of([image]).replace(BOUNDARY.encode(), b"other"),
        "a part of another name": form_of([image], "photo"),
        "a part of a long name": form_of([image], 200 * "p"),
        "an empty part": form_of([b""]),
        "an empty part among others": form_of([image, b"", image]),
        "a part without a file name": form_of([image], file_name=False),
        "a text as part": form_of([b"no image"]),
        "17 MiB": form_of([image + bytes(17 * 2**20)]),
    }
    for path in ("/digits", "/captions"):
        for label, body in bodies.items():
            yield post(path, f"fault, {label}", body, "image/png")
        for label, body in parts.items():
            yield post(path, f"form, {label}", body, FORM)
        yield post(path, "form, no boundary", form_of([image]), "multipart/form-data")
        for content_type in (None, "", JSON, "image", "image/", "application/octet-stream", "multipart/mixed"):
            yield post(path, f"content type {content_type!r}", image, content_type)
        for content_type in ("image/jpeg", "IMAGE/PNG; q=1", "image/svg+xml", "image/x"):
            yield post(path, f"a PNG as {content_type}", image, content_type)
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE"):
            yield Request(method, path)
        for seconds in ("0", "-1", "abc", "inf"):
            yield post(path, f"X-Request-Timeout {seconds!r}", image, "image/png", timeout(seconds))
        yield post(path, "X-Request-Timeout 100", image, "image/png", timeout("100"))


def header_requests() -> Iterator[Request]:
    """Unusual and wrong headers."""
    ids = {"128 characters": 128 * "i", "129 characters": 129 * "i", "a blank": "a b", "empty": ""}
    for label, value in ids.items():
        yield Request("GET", "/livez", f"X-Request-Id, {label}", (("X-Request-Id", value),))
    yield Request("GET", "/livez", "100 fields more", tuple((f"X-Field-{place}", "x") for place in range(100)))
    yield Request("GET", "/livez", "a field of 33 KiB", (("X-Field", 33 * 1024 * "x"),))
    yield Request("GET", "/" + 33 * 1024 * "x", "a target of 33 KiB")
    yield Request("GET", "/livez", "X-Session-Id", (("X-Session-Id", "session"),))
    yield Request("GET", "/livez", "a key where none is needed", (("Authorization", "Bearer none"),))
    yield Request("GET", "/livez", "a foreign Host", (("Host", "example.org"),))
    yield Request("GET", "/models", "a foreign Origin", (("Origin", "https://example.org"),))
    yield Request("GET", "/livez", "an upgrade", (("Connection", "Upgrade"), ("Upgrade", "websocket")))
    yield Request("GET", "/livez", "Accept text/html", (("Accept", "text/html"),))
    preflight = (("Origin", "https://example.org"), ("Access-Control-Request-Method", "POST"))
    for path in ("/next-word", "/livez"):
        yield Request("OPTIONS", path, "a preflight", preflight)
    for label, header in foreign():
        yield post("/next-word", label, b'{"text": "the company"}', JSON, header)
    yield post("/next-word", "two content types", b'{"text": "the"}', JSON, ("Content-Type", "text/plain"))
    yield post("/livez", "a body where none is taken", b"x" * 1000, "text/plain")


def form_of(images: Sequence[bytes], name: str = "image", *, file_name: bool = True) -> bytes:
    """A multipart form with a part for each image."""
    pieces = []
    for place, image in enumerate(images):
        called = f'; filename="{place}.png"\r\nContent-Type: image/png' if file_name else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{called}\r\n\r\n'
        pieces.append(head.encode() + image + b"\r\n")
    return b"".join([*pieces, f"--{BOUNDARY}--\r\n".encode()])


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def drawn(digit: int, seed: int, side: int) -> Image.Image:
    """A digit in dark strokes on a white square; the seed varies their width and their points."""
    chance = random.Random(seed)
    scale = 4 * side
    width = max(4, round(scale * chance.uniform(0.06, 0.1)))
    image = Image.new("L", (scale, scale), 255)
    pen = ImageDraw.Draw(image)
    for stroke in STROKES[digit]:
        points = [
            (scale * (0.15 + 0.7 * x + chance.gauss(0, 0.01)), scale * (0.1 + 0.8 * y + chance.gauss(0, 0.01)))
            for x, y in stroke
        ]
        pen.line(points, 20, width, joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), 20)
    return image.resize((side, side), Image.Resampling.BOX)


def noisy(image: Image.Image, seed: int) -> Image.Image:
    """The image with uniform noise."""
    pixels = np.asarray(image, np.int16)
    grain = np.random.default_rng(seed).integers(-30, 31, pixels.shape, np.int16)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def ruled(image: Image.Image) -> Image.Image:
    """The image on ruled paper."""
    paper = image.convert("L").resize((400, 400))
    pen = ImageDraw.Draw(paper)
    for height in range(20, 400, 60):
        pen.line([(0, height), (400, height + 3)], 150, 2)
    return paper


def on_desk(image: Image.Image) -> Image.Image:
    """The image on a white sheet that lies askew on a dark desk."""
    sheet = image.convert("L").resize((300, 300))
    desk = Image.new("L", (640, 480), 90)
    desk.paste(sheet.rotate(5, expand=True, fillcolor=90), (150, 70))
    return noisy(desk.filter(ImageFilter.GaussianBlur(1)), 8)


def scene(seed: int, width: int, height: int) -> Image.Image:
    """An imitation of a photograph: sky, ground, hills, people or dogs, a ball, noise."""
    chance = random.Random(seed)

    def colour(*around: int) -> tuple[int, int, int]:
        red, green, blue = (max(0, min(255, level + chance.randint(-40, 40))) for level in around)
        return red, green, blue

    image = Image.new("RGB", (width, height), colour(120, 170, 230))
    pen = ImageDraw.Draw(image)
    horizon = round(height * chance.uniform(0.35, 0.7))
    for row in range(horizon):
        pen.line([(0, row), (width, row)], (150 + 80 * row // horizon, 190 + 40 * row // horizon, 235))
    pen.rectangle((0, horizon, width, height), colour(*chance.choice(((80, 150, 60), (210, 190, 140), (40, 110, 160)))))
    for _ in range(chance.randrange(4)):
        at, high = chance.randrange(width), chance.uniform(0.1, 0.3) * height
        pen.polygon([(at - width / 4, horizon), (at, horizon - high), (at + width / 5, horizon)], colour(100, 100, 90))
    for _ in range(1 + chance.randrange(3)):
        figure(pen, chance, width, height)
    x, y, size = chance.uniform(0.1, 0.9) * width, chance.uniform(0.6, 0.9) * height, 0.04 * height
    pen.ellipse((x - size, y - size, x + size, y + size), colour(220, 80, 60))
    grain = np.random.default_rng(seed).integers(-12, 13, (height, width, 3), np.int16)
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(width / 400)), np.int16)
    return Image.fromarray(np.clip(blurred + grain, 0, 255).astype(np.uint8))


def figure(pen: ImageDraw.ImageDraw, chance: random.Random, width: int, height: int) -> None:
    """Draw a person or a dog on the ground."""
    x = chance.uniform(0.2, 0.8) * width
    foot, tall = chance.uniform(0.75, 0.95) * height, chance.uniform(0.2, 0.5) * height
    coat = (chance.randrange(256), chance.randrange(256), chance.randrange(256))
    if chance.random() < 0.5:
        head = tall / 8
        pen.ellipse((x - head, foot - tall, x + head, foot - tall + 2 * head), (220, 170, 140))
        pen.rectangle((x - 1.6 * head, foot - 0.75 * tall, x + 1.6 * head, foot - 0.4 * tall), coat)
        for side in (-1, 1):
            pen.line([(x + side * head, foot - 0.4 * tall), (x + 1.5 * side * head, foot)], (40, 40, 80), round(head))
    else:
        pen.ellipse((x - tall / 2, foot - 0.6 * tall, x + tall / 2, foot - 0.25 * tall), coat)
        pen.ellipse((x + 0.35 * tall, foot - 0.75 * tall, x + 0.65 * tall, foot - 0.45 * tall), coat)
        for leg in (-0.4, -0.2, 0.2, 0.4):
            pen.line([(x + leg * tall, foot - 0.35 * tall), (x + leg * tall, foot)], coat, max(2, round(tall / 12)))


def answered(client: httpx.Client, request: Request) -> dict[str, Any]:
    """Send a request and return the line of the file for its answer."""
    headers = [("X-Request-Id", REQUEST_ID), *request.headers]
    if "X-Request-Id" in dict(request.headers):
        del headers[0]
    content: bytes | Iterator[bytes] | None = request.content or None
    if request.chunked:
        content = (request.content[start : start + 4096] for start in range(0, len(request.content), 4096))
    line: dict[str, Any] = {"name": request.name, "request_sha256": request.sha256}
    try:
        response = client.request(request.method, request.target, headers=headers, content=content)
    except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
        return line | {"status": NO_ANSWER, "headers": {}, "body": type(error).__name__}
    return line | {
        "status": response.status_code,
        "headers": stable_headers(response, request, dict(headers)["X-Request-Id"]),
        "body": stable_body(response, request),
    }


def stable_headers(response: httpx.Response, request: Request, request_id: str) -> dict[str, str]:
    """Headers of an answer by their names in lower case, without those that differ from one time to the next."""
    ignored = {"date", *request.ignored, *(["content-length"] if response.content else [])}
    found = {name: value for name, value in sorted(response.headers.items()) if name not in ignored}
    if found.get("x-request-id") not in (None, request_id):
        found["x-request-id"] = GENERATED
    return found


def stable_body(response: httpx.Response, request: Request) -> str | dict[str, Any]:
    """Text, or an object with `base64` or, for a large body, with its `sha256` and `bytes`."""
    if not request.body_matters:
        return NORMALISED
    body = response.content
    if not request.detail_matters:
        body = DETAIL.sub(f'"detail": "{NORMALISED}"'.encode(), body)
    if not request.repeats:
        body = CACHED_TOKENS.sub(f'"cached_tokens":"{NORMALISED}"'.encode(), body)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        if len(body) <= LARGEST_BINARY:
            return {"base64": base64.b64encode(body).decode()}
    else:
        if len(body) <= LARGEST_TEXT:
            return text
    return {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}


def without_messages(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line of the file without messages and descriptions, and without a length of them."""
    content_type = line["headers"].get("content-type", "")
    is_problem = content_type == PROBLEM
    is_openapi = line["name"].startswith(("GET /openapi.json", "HEAD /openapi.json")) and line["status"] == 200
    if not (is_problem or is_openapi):
        return dict(line)
    headers = {name: value for name, value in line["headers"].items() if name != "content-length"}
    body = line["body"]
    if isinstance(body, str) and body:
        document = json.loads(body)
        body = json.dumps(_without_messages_of_problem(document) if is_problem else _without_descriptions(document))
    return {**line, "headers": headers, "body": body}


def _without_messages_of_problem(problem: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in problem.items() if name != "detail"}
    if "errors" in kept:
        kept["errors"] = [
            {name: value for name, value in error.items() if name != "message"} for error in problem["errors"]
        ]
    return kept


def _without_descriptions(value: Any) -> Any:
    match value:
        case list():
            return [_without_descriptions(each) for each in value]
        case dict():
            return {
                name: _without_descriptions(each)
                for name, each in value.items()
                if not (name in ("description", "summary", "title") and isinstance(each, str))
            }
    return value


def without_page(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line of the file without the contents of the page, if it is an answer to GET / or HEAD /."""
    if re.fullmatch(r"(GET|HEAD) /([?:].*)?", line["name"]) is None:
        return dict(line)
    headers = {name: value for name, value in line["headers"].items() if name not in ("etag", "content-length")}
    return {**line, "headers": headers, "body": NORMALISED}


def is_page_file(line: Mapping[str, Any]) -> bool:
    """True for a line of the file that answers with a file of the page or with a 304 for one."""
    return re.match(r"(GET|HEAD) /web/", line["name"]) is not None and line["status"] in (200, 304)


def differences(was: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Lines of text, one for each difference between an answer and the recorded one."""
    found_differences = []
    if was["request_sha256"] != found["request_sha256"]:
        found_differences.append("the request itself differs: another version of this file or of Pillow")
    if was["status"] != found["status"]:
        found_differences.append(f"status: was {was['status']}, is {found['status']}")
    for name in sorted(was["headers"].keys() | found["headers"].keys()):
        before, after = was["headers"].get(name), found["headers"].get(name)
        if before != after:
            found_differences.append(f"header {name}: was {before!r}, is {after!r}")
    if was["body"] != found["body"]:
        found_differences.append(_difference_of_bodies(was["body"], found["body"]))
    return found_differences


def _difference_of_bodies(was: Any, found: Any) -> str:
    before = was if isinstance(was, str) else json.dumps(was)
    after = found if isinstance(found, str) else json.dumps(found)
    pairs = enumerate(zip(before, after, strict=False))
    at = next((place for place, (one, other) in pairs if one != other), min(len(before), len(after)))
    start = max(0, at - SHOWN // 4)
    shown = [repr(text[start : start + SHOWN]) for text in (before, after)]
    return f"body from character {at} on:\n    was {shown[0]}\n    is  {shown[1]}"


def record(client: httpx.Client, file: Path) -> int:
    """Write the file; 1 if a request had no answer at all."""
    lines = [answered(client, request) for request in all_requests()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    broken = [line["name"] for line in lines if line["status"] == NO_ANSWER]
    for name in broken:
        print(f"no answer: {name}")
    print(f"{len(lines)} answers recorded in {file}")
    return int(bool(broken))


def compare(client: httpx.Client, file: Path, *, messages_may_differ: bool, page_may_differ: bool) -> int:
    """Print each difference; 1 if there is one."""
    recorded = {line["name"]: line for line in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    differing = compared = 0
    for request in all_requests():
        was = recorded.pop(request.name, None)
        if was is not None and page_may_differ and is_page_file(was):
            continue
        compared += 1
        found_differences = ["was not recorded"]
        if was is not None:
            lines = [was, answered(client, request)]
            if messages_may_differ:
                lines = [without_messages(line) for line in lines]
            if page_may_differ:
                lines = [without_page(line) for line in lines]
            found_differences = differences(*lines)
        if found_differences:
            differing += 1
            print(request.name[:SHOWN], *found_differences, sep="\n  ", flush=True)
    for name in recorded:
        print(name[:SHOWN], "was recorded, and is not among the requests", sep="\n  ")
    differing += len(recorded)
    print(f"{compared} requests compared, {differing} differ")
    return int(bool(differing))


def require_loopback(url: str) -> None:
    """Exit with a message unless the host of the URL is localhost or a loopback address."""
    host = httpx.URL(url).host
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        sys.exit(f"expected a URL of localhost or of a loopback address, found {url}")


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("url")
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--messages-may-differ",
        action="store_true",
        help="messages of problem documents and descriptions in /openapi.json are not compared",
    )
    parser.add_argument("--page-may-differ", action="store_true", help="the files of the page are not compared")
    options = parser.parse_args()
    require_loopback(options.url)
    always = {"Accept-Encoding": "identity", "User-Agent": "answers"}
    with httpx.Client(base_url=options.url, headers=always, timeout=TIMEOUT_S, trust_env=False) as client:
        if options.action == "record":
            return record(client, options.file)
        return compare(
            client,
            options.file,
            messages_may_differ=options.messages_may_differ,
            page_may_differ=options.page_may_differ,
        )


if __name__ == "__main__":
    sys.exit(main())
