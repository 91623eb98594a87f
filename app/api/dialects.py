"""The APIs that the service speaks, one folder each: to add one, add its folder and a line here."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

from starlette.routing import BaseRoute

from app.api.native import language, vision
from app.api.operations import routes as operations
from app.api.web import page


class BodyLimits(NamedTuple):
    """The operator's limits of request bodies, in bytes."""

    texts: int
    uploads: int


Dialect: TypeAlias = Callable[[BodyLimits], Sequence[BaseRoute]]
"""The routes of an API; each is an `Endpoint`, which declares its key scope, body and cost."""

DIALECTS: Final[dict[str, Dialect]] = {
    "native": lambda limits: [*language.routes(limits.texts), *vision.routes(limits.uploads)],
    "operations": lambda _limits: operations.ROUTES,
    "web": lambda _limits: page.routes(),
}
