"""GET /tokenizer_info, POST /tokenize and POST /detokenize, as vLLM serves and lm-evaluation-harness calls them."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

from pydantic_core import to_json
from starlette.responses import Response, StreamingResponse

from app.api.http import costs
from app.api.http.context import RegistryOf
from app.api.http.endpoints import Deadline
from app.api.http.streaming import json_array
from app.api.openai.completions import TOKEN_CHARACTERS
from app.api.openai.models import LANGUAGE_MODEL, PathModel, choose
from app.api.openai.schemas import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeRequest,
    TokenizerInfo,
)
from app.errors import InvalidField
from app.runtime.families.completions import LONG_PROMPT, read_prompt, text_of
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.registry import Registry, Served
from app.text import Tokenizer


async def tokenizer_info(registry: RegistryOf, path_model: PathModel) -> TokenizerInfo:
    """Return the special tokens of a language model."""
    tokenizer = _tokenizer(_chosen(registry, path_model, None))
    return {
        "tokenizer_class": "seqserve",
        "eos_token": tokenizer.strings[tokenizer.end],
        "bos_token": None,
        "unk_token": None if tokenizer.unknown is None else tokenizer.strings[tokenizer.unknown],
        "pad_token": None,
        "chat_template": None,
    }


async def tokenize(body: TokenizeRequest, registry: RegistryOf, deadline: Deadline, path_model: PathModel) -> Response:
    """Return the ids of a text; the name of the end of a sentence, alone, is its id."""
    served = _chosen(registry, path_model, body.model)
    tokenizer = _tokenizer(served)
    read = partial(read_prompt, body.prompt, tokenizer)
    if len(body.prompt) <= LONG_PROMPT:
        return Response(b"".join(_encoded(read().ids, tokenizer)), media_type="application/json")
    with served:
        prompt = await served.in_thread(read, deadline=deadline)
    return StreamingResponse(_encoded(prompt.ids, tokenizer), media_type="application/json")  # in a worker thread


async def detokenize(
    body: DetokenizeRequest, registry: RegistryOf, deadline: Deadline, path_model: PathModel
) -> Response:
    """Return a text that is read as the ids."""
    served = _chosen(registry, path_model, body.model)
    tokenizer = _tokenizer(served)
    size = len(tokenizer.strings)
    if body.tokens and max(body.tokens) >= size:
        raise InvalidField("tokens", f"expected ids from 0 to {size - 1}, found {max(body.tokens)}")
    write = partial(text_of, body.tokens, tokenizer)
    if body.tokens == [tokenizer.end]:
        text = tokenizer.strings[tokenizer.end]
    elif len(body.tokens) <= LONG_PROMPT:
        text = write()
    else:
        with served:
            text = await served.in_thread(write, deadline=deadline)
    answer: DetokenizeAnswer = {"prompt": text}
    return Response(to_json(answer), media_type="application/json")


def _encoded(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[bytes]:
    """Encode a TokenizeAnswer as JSON, in pieces small enough for other threads to run in between."""
    yield b'{"count":%d,"max_model_len":null,"tokens":' % len(ids)
    yield from json_array(ids)
    yield b',"token_strs":'
    yield from json_array([tokenizer.strings[token] for token in ids])
    yield b"}"


def cost(document: Any) -> int:
    """Return the units of ids."""
    tokens = document.get("tokens") if isinstance(document, dict) else None
    return len(tokens) * TOKEN_CHARACTERS // costs.CHARACTERS if isinstance(tokens, list) else 0


def _chosen(registry: Registry, path_model: str | None, model: str | None) -> Served:
    """Return a language model. Raise InvalidField if it is not named and there are several.

    Ids of another vocabulary would be scored without an error.
    """
    if not (path_model or model):
        names = [served.name for served in registry.served() if served.manifest.family == LANGUAGE_MODEL]
        if len(names) > 1:
            addresses = ", ".join(f"/models/{name}" for name in names)
            raise InvalidField("model", f"expected the address of one of several models, found none: {addresses}")
    return choose(registry, path_model, model, LANGUAGE_MODEL)


def _tokenizer(served: Served) -> Tokenizer:
    return cast(LanguageModelPredictor, served.predictor).tokenizer
