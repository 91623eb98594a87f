"""GET /tokenizer_info, POST /tokenize and POST /detokenize; GET /v1/models."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bundle import Bundle
from app.main import create_app
from app.settings import Settings
from tests.api.conftest import talk
from tests.api.published import Client
from tests.conftest import WORDS

WRITTEN = [*(word for word in WORDS if "'" not in word), "he 's", "zork", "\n"]


def ids(client: Client, text: str, model: str = "ptb") -> Any:
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    return client.post("/tokenize", json=body).json()["tokens"]


def test_the_models_are_those_that_the_routes_serve(client: Client) -> None:
    found = client.get("/v1/models").json()
    assert [model["id"] for model in found["data"]] == ["captions", "everyday", "ptb"]
    assert client.get("/v1/models/ptb").json() == found["data"][2]
    for name in ("digits", "none"):
        assert client.get(f"/v1/models/{name}").json()["error"]["code"] == "model_not_found"


def test_the_special_tokens_are_named(client: Client) -> None:
    for model, end, unknown in (("ptb", "<eos>", "<unk>"), ("everyday", "<doc>", None)):
        info = client.get(f"/models/{model}/tokenizer_info").json()
        assert (info["eos_token"], info["unk_token"], info["bos_token"]) == (end, unknown, None)


def test_a_text_has_the_tokens_that_a_completion_reads(client: Client) -> None:
    found = client.post("/models/ptb/tokenize", json={"prompt": "The company said\nit zork"}).json()
    assert found["token_strs"] == ["the", "company", "said", "<eos>", "it", "<unk>"]
    assert (found["count"], len(found["tokens"])) == (6, 6)
    assert ids(client, "") == ids(client, "...") == []
    assert len(ids(client, "<eos>")) == 1
    assert client.post("/models/ptb/detokenize", json={"tokens": ids(client, "<eos>")}).json() == {"prompt": "<eos>"}
    assert client.post("/models/ptb/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    long = client.post("/models/ptb/tokenize", json={"prompt": "the company " * 5000}).json()
    assert (long["count"], long["tokens"]) == (10_000, ids(client, "the company") * 5000)
    assert long["token_strs"] == ["the", "company"] * 5000
    text = client.post("/models/ptb/detokenize", json={"tokens": long["tokens"]}).json()["prompt"]
    assert text.split() == long["token_strs"]


@given(
    words=st.lists(st.sampled_from(WRITTEN), max_size=40),
    model=st.sampled_from(["ptb", "everyday"]),
)
def test_a_written_text_is_read_as_the_same_ids(client: Client, words: list[str], model: str) -> None:
    tokens = ids(client, " ".join(words), model)
    text = client.post("/detokenize", json={"model": model, "tokens": tokens}).json()["prompt"]
    assert ids(client, text, model) == tokens


@pytest.mark.parametrize("tokens", [[-1], [10**9], ["a"], 1, None])
def test_other_ids_are_rejected(client: Client, tokens: Any) -> None:
    answer = client.post("/models/ptb/detokenize", json={"tokens": tokens})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tokens")


@pytest.mark.anyio
async def test_with_several_language_models_one_must_be_named(
    tiny_store: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    shutil.copytree(Path(__file__).parents[3] / "models_store" / "ptb", store / "ptb")
    app = create_app(Settings(store=store))
    async with app.router.lifespan_context(app) as state, talk(app, state) as client:
        assert state
        await state["registry"].opened()
        bare = [
            await client.get("/tokenizer_info"),
            await client.post("/tokenize", json={"prompt": "a"}),
            await client.post("/detokenize", json={"tokens": [1], "model": ""}),
        ]
        named = [
            await client.post("/models/ptb/tokenize", json={"prompt": "said"}),
            await client.post("/tokenize", json={"prompt": "said", "model": "ptb"}),
        ]
        other = await client.post("/models/tiny/tokenize", json={"prompt": "said"})
    for answer in bare:
        assert answer.status_code == 400
        assert "/models/ptb, /models/tiny" in answer.json()["error"]["message"]
    assert named[0].json() == named[1].json() != other.json()
