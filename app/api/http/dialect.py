"""The declaration of an API: its routes, and the format of its errors."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from starlette.routing import BaseRoute

from app.api.http.problems import DOCUMENTS, ErrorFormat


class BodyLimits(NamedTuple):
    """The operator's limits of request bodies, in bytes."""

    texts: int
    uploads: int


@dataclass(frozen=True)
class Dialect:
    """An API. Its error format applies to every error of the `requests`, those of middleware and unknown paths too."""

    routes: Callable[[BodyLimits], Sequence[BaseRoute]]  # each an `Endpoint`, which declares its key scope, body, cost
    requests: re.Pattern[str] | None = None  # matches "METHOD /path"; None: those that match no other dialect
    errors: ErrorFormat = DOCUMENTS
