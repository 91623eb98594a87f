"""Names of file types that are often sent as images but not decoded, and the remedy for each."""

from typing import Final

_HEIC: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_REMEDIES: Final = {
    "HEIC": "convert it to JPEG; an iPhone takes JPEGs with Settings > Camera > Formats > Most Compatible",
    "TIFF": "convert it to PNG",
    "SVG": "render it to PNG",
    "PDF": "export its page as PNG",
    "JPEG XL": "convert it to JPEG",
    "JPEG 2000": "convert it to PNG",
    "PSD": "export it as PNG",
    "HTML": "send the image file itself, not the page or the error that a server answered with",
}


def found_instead(content: bytes) -> str:
    """Describe a file that can't be decoded: its type and a remedy if known, else its first bytes."""
    name = _name(content)
    if name:
        return f"{name}: {_REMEDIES[name]}"
    return f"a file that starts with the bytes {content[:12].hex(' ')}" if content else "nothing"


def _name(content: bytes) -> str | None:
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC:
        return "HEIC"
    if content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if content.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL"
    if content.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return "JPEG 2000"
    if content.startswith(b"8BPS"):
        return "PSD"
    start = content[:1024].lower()
    if b"%pdf-" in start:
        return "PDF"
    if b"<svg" in start:
        return "SVG"
    return "HTML" if b"<html" in start or b"<!doctype html" in start else None
