"""Server-sent events of a streamed caption, decoded line by line."""

import json
from collections.abc import Iterator

from seqserve import errors
from seqserve.answers import CaptionsAnswer, CaptionWord, decode


class CaptionEvents:
    """A decoder of the lines of an event stream; `finished` once it has had its last event."""

    def __init__(self) -> None:
        self.finished = False
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> Iterator[CaptionWord | CaptionsAnswer]:
        """Yield the event that this line completes, if any. Raise Problem for an event `error`."""
        if line:
            name, _, value = line.partition(":")
            self._fields[name] = value.removeprefix(" ")
            return
        fields, self._fields = self._fields, {}
        match fields.get("event"):
            case "word":
                yield decode(CaptionWord, json.loads(fields["data"]))
            case "caption":
                self.finished = True
                yield decode(CaptionsAnswer, json.loads(fields["data"]))
            case "error":
                document = json.loads(fields["data"])
                raise errors.from_document(document["status"], document, None)

    def close(self) -> None:
        """Raise ConnectionFailed unless the stream is complete."""
        if not self.finished:
            raise errors.ConnectionFailed("expected an event `caption` or `error` at the end of the stream, found none")
