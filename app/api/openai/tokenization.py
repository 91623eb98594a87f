"""GET /tokenizer_info, POST /tokenize and POST /detokenize, as vLLM serves and lm-evaluation-harness calls them."""

import asyncio
from typing import Any, cast

from pydantic_core import to_json
from starlette.responses import Response

from app.api.http import costs
from app.api.http.context import RegistryOf
from app.api.openai.completions import TOKEN_CHARACTERS
from app.api.openai.models import LANGUAGE_MODEL, PathModel, choose
from app.api.openai.schemas import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
    TokenizerInfo,
)
from app.errors import InvalidField
from app.runtime.families.completions import LONG_PROMPT, read_prompt, text_of
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.registry import Registry
from app.text import Tokenizer


async def tokenizer_info(registry: RegistryOf, path_model: PathModel) -> TokenizerInfo:
    """Return the special tokens of a language model."""
    tokenizer = _tokenizer(registry, path_model, None)
    return {
        "tokenizer_class": "seqserve",
        "eos_token": tokenizer.strings[tokenizer.end],
        "bos_token": None,
        "unk_token": None if tokenizer.unknown is None else tokenizer.strings[tokenizer.unknown],
        "pad_token": None,
        "chat_template": None,
    }


async def tokenize(body: TokenizeRequest, registry: RegistryOf, path_model: PathModel) -> Response:
    """Return the ids of a text; the name of the end of a sentence, alone, is its id."""
    tokenizer = _tokenizer(registry, path_model, body.model)
    if len(body.prompt) > LONG_PROMPT:
        prompt = await asyncio.to_thread(read_prompt, body.prompt, tokenizer)
    else:
        prompt = read_prompt(body.prompt, tokenizer)
    answer: TokenizeAnswer = {
        "count": len(prompt.ids),
        "max_model_len": None,
        "tokens": prompt.ids,
        "token_strs": [tokenizer.strings[token] for token in prompt.ids],
    }
    return Response(to_json(answer), media_type="application/json")


async def detokenize(body: DetokenizeRequest, registry: RegistryOf, path_model: PathModel) -> Response:
    """Return a text that is read as the ids."""
    tokenizer = _tokenizer(registry, path_model, body.model)
    size = len(tokenizer.strings)
    if body.tokens and max(body.tokens) >= size:
        raise InvalidField("tokens", f"expected ids from 0 to {size - 1}, found {max(body.tokens)}")
    end = tokenizer.strings[tokenizer.end]
    answer: DetokenizeAnswer = {
        "prompt": end if body.tokens == [tokenizer.end] else text_of(body.tokens, tokenizer),
    }
    return Response(to_json(answer), media_type="application/json")


def cost(document: Any) -> int:
    """Return the units of ids."""
    tokens = document.get("tokens") if isinstance(document, dict) else None
    return len(tokens) * TOKEN_CHARACTERS // costs.CHARACTERS if isinstance(tokens, list) else 0


def _tokenizer(registry: Registry, path_model: str | None, model: str | None) -> Tokenizer:
    """Return a model's tokenizer. Raise InvalidField if it is not named and there are several.

    Ids of another vocabulary would be scored without an error.
    """
    if not (path_model or model):
        names = [served.name for served in registry.served() if served.manifest.family == LANGUAGE_MODEL]
        if len(names) > 1:
            addresses = ", ".join(f"/models/{name}" for name in names)
            raise InvalidField("model", f"expected the address of one of several models, found none: {addresses}")
    predictor = choose(registry, path_model, model, LANGUAGE_MODEL).predictor
    return cast(LanguageModelPredictor, predictor).tokenizer
