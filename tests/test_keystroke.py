"""The path of a keystroke through the code."""

import sys
from pathlib import Path
from types import FrameType

import pytest

import app
from app.main import create_app
from app.settings import Settings
from tests.api.conftest import talk

pytestmark = pytest.mark.anyio

APP = Path(app.__file__).parent
MOST_MODULES = 20


async def test_a_warm_keystroke_enters_few_modules(tiny_store: Path) -> None:
    entered: set[str] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(APP):
            entered.add(path.relative_to(APP).as_posix())

    service = create_app(Settings(store=tiny_store))
    async with service.router.lifespan_context(service) as state, talk(service, state) as client:
        assert state
        await state["registry"].opened()
        for text in ("the compan", "the company", "the company "):
            await client.post("/next-word", json={"text": text})
        sys.setprofile(profile)  # of this thread: the event loop runs so short a step inline
        answer = await client.post("/next-word", json={"text": "the company s"})
        sys.setprofile(None)
    assert answer.status_code == 200
    print(*sorted(entered), sep="\n")
    assert len(entered) <= MOST_MODULES, sorted(entered)
