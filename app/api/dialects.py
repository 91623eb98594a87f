"""The APIs that the service speaks, one folder each: to add one, add its folder and a line here."""

from typing import Final

from app.api.http.dialect import Dialect
from app.api.huggingface import routes as huggingface
from app.api.native import language, vision
from app.api.oip import routes as oip
from app.api.openai import routes as openai
from app.api.operations import routes as operations
from app.api.web import page

DIALECTS: Final[dict[str, Dialect]] = {
    "native": Dialect(lambda limits: [*language.routes(limits.texts), *vision.routes(limits.uploads)]),
    "huggingface": huggingface.DIALECT,
    "oip": oip.DIALECT,
    "openai": openai.DIALECT,
    "operations": Dialect(lambda _limits: operations.ROUTES),
    "web": Dialect(lambda _limits: page.routes()),
}
