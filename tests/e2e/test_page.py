"""The page in a real browser, with the published models."""

import ast
import csv
import io
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, Route, ViewportSize, expect

from tests.e2e.browser import FOUND, NAMES, keystrokes, launched
from tests.e2e.conftest import serving

STORE = Path(__file__).parents[2] / "models_store"
DESKTOP: Final[ViewportSize] = {"width": 1280, "height": 800}
PHONE: Final[ViewportSize] = {"width": 390, "height": 844}
NARROW: Final[ViewportSize] = {"width": 320, "height": 640}
VIEWS = ("write", "score", "draw", "caption", "models")
TIMEOUT_MS = 30_000  # generous, for a busy machine
SENTENCE = "The company said"
ONE = [(0.5, 0.2), (0.5, 0.8)]  # a stroke, in fractions of the board
PNG = "image/png"
HEADERS = {"Content-Type": "application/problem+json"}

pytestmark = pytest.mark.skipif(FOUND is None, reason=f"there is no browser: none of {', '.join(NAMES)} is on the PATH")
both_sizes = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])

Opened = Callable[..., Page]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(STORE) as (client, _):
        yield str(client.base_url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def context(browser: Browser, address: str) -> Iterator[BrowserContext]:
    with browser.new_context(base_url=address, viewport=DESKTOP, accept_downloads=True) as context:
        context.set_default_timeout(TIMEOUT_MS)
        yield context


@pytest.fixture
def opened(context: BrowserContext) -> Iterator[Opened]:
    """Return a function that opens a view, with a chosen language model; assert at the end that no error occurred."""
    errors: list[str] = []
    expect.set_options(timeout=TIMEOUT_MS)

    def open_view(view: str, size: ViewportSize = DESKTOP, page: Page | None = None, model: str = "") -> Page:
        page = page or context.new_page()
        if model:
            page.add_init_script(f"sessionStorage.model ??= {json.dumps(model)}")
        page.set_viewport_size(size)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if "Policy" in message.text else None)
        page.goto(f"/#{view}")
        page.locator(f"#view-{view}[data-ready]").wait_for()
        return page

    yield open_view
    assert not errors


def photograph(size: tuple[int, int] = (320, 240)) -> bytes:
    """Return a PNG of a green meadow under a blue sky."""
    image = Image.new("RGB", size, (120, 170, 230))
    ImageDraw.Draw(image).rectangle((0, size[1] // 2, *size), fill=(70, 130, 50))
    return encoded(image)


def handwritten_one() -> bytes:
    """Return a PNG of a handwritten one on white paper."""
    image = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(image).line((105, 40, 95, 160), fill=0, width=14)
    return encoded(image)


def encoded(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def file_payload(name: str, mime: str, content: bytes) -> Any:
    return {"name": name, "mimeType": mime, "buffer": content}


def drop(page: Page, selector: str, name: str, mime: str, content: bytes) -> None:
    """Drop a file on an element."""
    files = page.evaluate_handle(
        """([name, type, bytes]) => {
            const held = new DataTransfer();
            held.items.add(new File([new Uint8Array(bytes)], name, { type }));
            return held;
        }""",
        [name, mime, list(content)],
    )
    page.dispatch_event(selector, "drop", {"dataTransfer": files})


def paste(page: Page, name: str, mime: str, content: bytes) -> None:
    page.evaluate(
        """([name, type, bytes]) => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([new Uint8Array(bytes)], name, { type }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
        }""",
        [name, mime, list(content)],
    )


def draw(page: Page, points: list[tuple[float, float]]) -> None:
    box = page.locator("#canvas").bounding_box()
    assert box
    (x, y), *others = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(x, y)
    page.mouse.down()
    for x, y in others:
        page.mouse.move(x, y, steps=6)
    page.mouse.up()


def hold_image_decoding(page: Page) -> None:
    """Make the browser's image decoding wait for `release_image`."""
    page.evaluate("() => (window.createImageBitmap = () => new Promise((resolve) => (window.release = resolve)))")


def release_image(page: Page) -> None:
    page.evaluate("() => window.release(new OffscreenCanvas(8, 8))")


def recorded_requests(page: Page, path: str) -> list[Request]:
    """Return a list that receives the requests to `path` from now on."""
    sent_requests: list[Request] = []
    page.on("request", lambda request: sent_requests.append(request) if path in request.url else None)
    return sent_requests


def posted(request: Request) -> dict[str, Any]:
    """Return the JSON that a request sends."""
    found: dict[str, Any] = json.loads(request.post_data or "{}")
    return found


def chips(page: Page) -> Locator:
    """Return the chips of the current text."""
    return page.locator("#chips[aria-busy=false] button:visible")


def require_accessible(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def failing(status: int, times: int, **headers: str) -> Callable[[Route], None]:
    """Return a handler that answers with a problem `times` times, then lets the server answer."""
    remaining = times

    def answer(route: Route) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining < 0:
            route.continue_()
        else:
            body = json.dumps({"type": "about:blank", "title": "", "status": status, "detail": "the detail"})
            route.fulfill(status=status, headers=HEADERS | headers, body=body)

    return answer


# --- Write


@both_sizes
def test_the_next_words_are_shown_inline_and_as_chips(opened: Opened, size: ViewportSize) -> None:
    page = opened("write", size)
    expect(chips(page)).to_have_count(5)  # for an empty text
    page.locator("#draft").fill(f"{SENTENCE} it ")
    expect(page.locator("#ghost")).to_have_text(re.compile(r"\w+"))
    first = page.locator("#ghost").inner_text()
    expect(chips(page).first.locator(".word")).to_have_text(first)
    expect(page.locator("#write-time")).to_contain_text(re.compile(r"^[\d.]+ ms"))
    chips(page).nth(1).click()
    expect(page.locator("#draft")).to_have_value(re.compile(rf"^{SENTENCE} it \S.* $"))
    expect(page.locator("#draft")).not_to_have_value(f"{SENTENCE} it {first} ")


def test_a_partial_word_is_completed_and_tab_accepts_it(opened: Opened) -> None:
    page = opened("write", model="ptb")
    page.locator("#draft").press_sequentially("Shares of the comp")
    expect(page.locator("#ghost")).to_have_text("any")
    page.keyboard.press("Tab")
    expect(page.locator("#draft")).to_have_value("Shares of the company ")
    page.keyboard.press("Control+z")
    expect(page.locator("#draft")).to_have_value("Shares of the comp")


def test_the_ghost_text_moves_no_typed_word_to_the_next_line(opened: Opened) -> None:
    page = opened("write", NARROW, model="ptb")
    for width in range(320, 400, 16):
        page.set_viewport_size({"width": width, "height": 640})
        page.locator("#draft").fill("")
        page.locator("#draft").fill("The company said it exp")
        expect(page.locator("#ghost")).to_have_text("ects")
        lines = "document.getElementById('typed').getClientRects().length"
        assert page.evaluate(lines) == page.evaluate(f"(document.getElementById('ghost').textContent = '', {lines})")


def test_clitics_and_full_stops_attach_to_the_word_before(opened: Opened) -> None:
    page = opened("write", model="ptb")
    page.locator("#draft").press_sequentially("the company does ")
    expect(chips(page).first).to_contain_text("n't")
    page.keyboard.press("1")
    expect(page.locator("#draft")).to_have_value("the company doesn't ")
    page.keyboard.type(".")
    expect(page.locator("#draft")).to_have_value("the company doesn't.")


def test_digits_choose_a_suggestion_except_within_a_number(opened: Opened) -> None:
    page = opened("write")
    page.locator("#draft").press_sequentially("profit of $1")
    expect(page.locator("#write-time")).not_to_be_empty()
    page.keyboard.type("25")
    expect(page.locator("#draft")).to_have_value("profit of $125")
    page.keyboard.type(" ")
    expect(chips(page).first).to_be_visible()
    second = chips(page).nth(1).locator(".word").inner_text()
    page.keyboard.press("2")
    expect(page.locator("#draft")).to_have_value(f"profit of $125 {second} ")


def test_two_quick_digits_are_a_number_and_a_single_digit_chooses_a_suggestion(
    opened: Opened, context: BrowserContext
) -> None:
    page = context.new_page()
    page.clock.install()
    opened("write", page=page)
    page.clock.pause_at("2099-01-01")
    page.locator("#draft").press_sequentially("The company said ")
    expect(chips(page)).to_have_count(5)
    first = chips(page).first.locator(".word").inner_text()
    page.keyboard.press("1")
    expect(page.locator("#draft")).to_have_value(f"The company said {first} ")
    page.keyboard.press("2")
    expect(page.locator("#draft")).to_have_value("The company said 12")
    page.locator("#draft").fill("The company said ")
    expect(chips(page).first.locator(".word")).to_have_text(first)
    page.keyboard.press("1")
    page.clock.run_for(500)
    expect(chips(page)).to_have_count(5)
    second = chips(page).nth(1).locator(".word").inner_text()
    page.keyboard.press("2")
    expect(page.locator("#draft")).to_have_value(f"The company said {first} {second} ")


def test_escape_hides_the_suggestions_and_frees_tab(opened: Opened) -> None:
    page = opened("write")
    page.locator("#draft").press_sequentially("the comp")
    expect(page.locator("#ghost")).not_to_be_empty()
    page.keyboard.press("Escape")
    expect(chips(page)).to_have_count(0)
    page.keyboard.press("Tab")
    expect(page.locator("#draft")).to_have_value("the comp")
    expect(page.locator("#draft")).not_to_be_focused()


def test_the_last_answer_is_shown_and_older_requests_are_aborted(opened: Opened) -> None:
    page = opened("write", model="ptb")
    expect(chips(page)).to_have_count(5)
    delayed: list[Route] = []
    page.route("**/next-word", lambda route: delayed.append(route), times=1)
    aborted: list[str] = []
    page.on("requestfailed", lambda request: aborted.append(request.url))
    with page.expect_request("**/next-word"):
        page.locator("#draft").fill("in new ")
    page.locator("#draft").fill("shares of the comp")
    expect(page.locator("#ghost")).to_have_text("any")
    assert (len(delayed), len(aborted)) == (1, 1)


def test_the_text_survives_a_reload(opened: Opened) -> None:
    page = opened("write")
    page.locator("#draft").fill(SENTENCE)
    page.reload()
    expect(page.locator("#draft")).to_have_value(SENTENCE)
    expect(chips(page)).to_have_count(5)


def test_a_bracket_before_a_word_stays(opened: Opened) -> None:
    page = opened("write", model="ptb")
    page.locator("#draft").press_sequentially("Shares (of the (comp")
    expect(page.locator("#ghost")).to_have_text("any")
    page.keyboard.press("Tab")
    expect(page.locator("#draft")).to_have_value("Shares (of the (company ")


def two_language_models(route: Route) -> None:
    models = [{"name": name, "family": "language_model", "ready": True} for name in ("ptb", "everyday")]
    route.fulfill(json={"models": [*models, {"name": "digits", "family": "digits", "ready": True}]})


def open_vocabulary(route: Route) -> None:
    """Answer for the model `everyday`, let the server answer for another."""
    if posted(route.request)["model"] != "everyday":
        route.continue_()
    elif "next-word" in route.request.url:
        words = [{"text": word, "probability": 0.5, "log_probability": -0.7} for word in ("Katarzyna", "Kate")]
        route.fulfill(json={"suggestions": words, "context_tokens": 2, "cached_tokens": 1, "unknown_words": []})
    else:
        pieces = [(" Kat", 0, 3), ("arz", 3, 6), ("yna", 6, 9), (" fell", 9, 14), (".", 14, 15), ("<doc>", 15, 15)]
        rows = [
            {"token": token, "start": start, "end": end, "log_probability": -2.0, "rank": 3, "unknown": False}
            | {"alternatives": [{"token": " the", "log_probability": -1.0}]}
            for token, start, end in pieces
        ]
        score: dict[str, Any] = {
            "perplexity": 7.4,
            "perplexity_open": 7.4,
            "word_perplexity": 400.0,
            "bits_per_byte": 1.15,
        }
        score |= {"bits_per_character": 1.15, "tokens": 6, "words": 2, "unknown_tokens": 0, "token_scores": rows}
        route.fulfill(json={"results": [score]})


def test_write_and_score_have_a_switch_between_language_models(opened: Opened, context: BrowserContext) -> None:
    context.route("**/models", two_language_models)
    context.route(re.compile("/(next-word|perplexity)$"), open_vocabulary)
    page = opened("write")
    expect(page.locator("#write-models input")).to_have_count(2)
    expect(page.get_by_label("Everyday English")).to_be_checked()
    page.locator("#draft").press_sequentially("kat")
    expect(chips(page).locator(".word")).to_have_text(["Katarzyna", "Kate"])
    page.keyboard.press("Tab")
    expect(page.locator("#draft")).to_have_value("Katarzyna ")
    require_accessible(page)
    page.get_by_label("Newspaper of 1989").check()
    expect(chips(page)).to_have_count(5)
    page.locator("#draft").fill("Shares of the comp")
    expect(page.locator("#ghost")).to_have_text("any")
    opened("score", page=page)
    expect(page.locator("#score-models").get_by_label("Newspaper of 1989")).to_be_checked()


def test_one_language_model_needs_no_switch(opened: Opened, context: BrowserContext) -> None:
    model = {"name": "ptb", "family": "language_model", "ready": True}
    context.route("**/models", lambda route: route.fulfill(json={"models": [model]}))
    page = opened("write")
    sent = recorded_requests(page, "/next-word")
    page.locator("#draft").fill("the comp")
    expect(page.locator("#ghost")).not_to_be_empty()
    expect(page.locator("#write-models")).to_be_hidden()
    assert "model" not in posted(sent[0])


# --- Score


def test_a_word_of_several_pieces_is_one_with_its_pieces_on_demand(opened: Opened, context: BrowserContext) -> None:
    context.route("**/models", two_language_models)
    context.route(re.compile("/perplexity$"), open_vocabulary)
    page = opened("score")
    page.locator("#passage").fill("Katarzyna fell.")
    words = page.locator("#heat [role=option]")
    expect(words).to_have_text(["Katarzyna", "fell", ".", "¶"])
    expect(page.locator("#totals")).to_contain_text("6 pieces")
    expect(page.locator("#detail")).to_contain_text(re.compile(r"Most surprising.*Katarzyna.*8\.7 bits", re.S))
    page.locator("#detail summary").click()
    expect(page.locator("#detail .pieces li")).to_have_text(
        [re.compile(f"{piece}.*2.9 bits") for piece in ("Kat", "arz", "yna")]
    )
    require_accessible(page)
    with page.expect_download() as download:
        page.locator("#export-csv").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))
    assert [row["text"] for row in rows] == ["Kat", "arz", "yna", " fell", ".", ""]


def test_a_text_without_words_says_so(opened: Opened) -> None:
    page = opened("score", model="ptb")
    page.locator("#passage").fill("... !")
    expect(page.locator("#score-notice")).to_have_text("There is nothing to score in this text.")
    expect(page.locator("#scored")).to_be_hidden()


@both_sizes
def test_each_word_is_shown_with_its_surprisal(opened: Opened, size: ViewportSize) -> None:
    page = opened("score", size, model="ptb")
    page.locator("#passage").fill("The company's 😀 profits zyxed.\nYes")
    words = page.locator("#heat [role=option]")
    expect(words).to_have_text(["The", "company", "'s", "profits", "zyxed", "¶", "Yes", "¶"])
    expect(page.locator("#heat")).to_contain_text("The company's 😀 profits zyxed")
    expect(page.locator("#totals")).to_contain_text("1 unknown")
    words.nth(3).hover()
    expect(page.locator("#detail")).to_contain_text(
        re.compile(r"profits.*bits · its guess no\. \d+.*Expected here", re.S)
    )
    expect(page.locator("#detail .rows li")).to_have_count(5)
    tall = [words.nth(index).evaluate("word => word.style.getPropertyValue('--tall')") for index in (1, 6)]
    assert 0 < float(tall[0]) < float(tall[1])  # `Yes` is rarer than `company`


def test_a_text_can_be_dropped_or_chosen_from_the_samples(opened: Opened) -> None:
    page = opened("score", model="ptb")
    drop(page, "#passage", "a.txt", "text/plain", b"the dollar fell")
    expect(page.locator("#heat [role=option]")).to_have_text(["the", "dollar", "fell", "¶"])
    page.get_by_role("button", name="a headline").click()
    expect(page.locator("#passage")).not_to_have_value("the dollar fell")
    expect(page.locator("#heat")).to_contain_text("third-quarter")
    page.locator("#passage").fill("")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#scored")).to_be_hidden()


def test_the_scores_are_exported_as_csv_and_json(opened: Opened) -> None:
    page = opened("score", model="ptb")
    page.locator("#passage").fill("Yes, profits rose")
    expect(page.locator("#scored")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#export-csv").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))
    assert [row["text"] for row in rows] == ["Yes", "profits", "rose", ""]
    with page.expect_download() as download:
        page.locator("#export-json").click()
    answer = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    scores = answer["results"][0]["token_scores"]
    assert [float(row["log_probability"]) for row in rows] == [score["log_probability"] for score in scores]


def test_a_misspelled_word_and_a_swapped_one_are_the_most_surprising(opened: Opened) -> None:
    page = opened("score")
    page.get_by_role("button", name="two slips").click()
    expect(page.locator("#detail")).to_contain_text(re.compile(r"Most surprising.*(weight|whether)", re.S))
    heights = page.locator("#heat [role=option]").evaluate_all(
        "words => words.map(word => [word.textContent, Number(word.style.getPropertyValue('--tall'))])"
    )
    first, second = sorted(heights, key=lambda pair: -pair[1])[:2]
    assert {first[0], second[0]} == {"weight", "whether"}


# --- Draw


@both_sizes
def test_a_digit_is_recognised_while_it_is_drawn(opened: Opened, size: ViewportSize) -> None:
    page = opened("draw", size)
    draw(page, ONE)
    expect(page.locator("#digit")).to_have_text("1")
    expect(page.locator("#histogram .first .label")).to_have_text("1")
    expect(page.locator("#framed-image")).to_have_attribute("src", re.compile("^data:image/png"))
    assert page.locator("#framed-image").evaluate("image => image.naturalWidth") == 28
    page.reload()
    expect(page.locator("#digit")).to_have_text("1")
    page.locator("#draw-clear").click()
    expect(page.locator("#framed")).to_be_hidden()


def test_a_photographed_digit_is_recognised_and_clearing_restores_the_drawing(opened: Opened) -> None:
    page = opened("draw")
    draw(page, [(0.3, 0.2), (0.7, 0.2), (0.45, 0.8)])
    expect(page.locator("#digit")).to_have_text("7")
    drop(page, "#board", "one.png", PNG, handwritten_one())
    expect(page.locator("#digit")).to_have_text("1")
    expect(page.locator("#digit-photo")).to_be_visible()
    page.locator("#draw-clear").click()
    expect(page.locator("#digit")).to_have_text("7")


def test_a_stroke_over_a_photograph_replaces_it_by_a_new_drawing(opened: Opened) -> None:
    page = opened("draw")
    draw(page, [(0.2, 0.5), (0.8, 0.5)])
    drop(page, "#board", "one.png", PNG, handwritten_one())
    expect(page.locator("#digit")).to_have_text("1")
    expect(page.locator("#photo-help")).to_be_visible()
    draw(page, [(0.3, 0.2), (0.7, 0.2), (0.45, 0.8)])
    expect(page.locator("#digit-photo")).to_be_hidden()
    expect(page.locator("#photo-help")).to_be_hidden()
    expect(page.locator("#digit")).to_have_text("7")
    drop(page, "#board", "one.png", PNG, handwritten_one())
    expect(page.locator("#digit")).to_have_text("1")
    page.locator("#draw-undo").click()
    expect(page.locator("#digit")).to_have_text("7")


@both_sizes
def test_several_digits_are_read_as_a_number_each_in_its_box(
    opened: Opened, context: BrowserContext, size: ViewportSize
) -> None:
    digits = [{"digit": 1, "confidence": 0.9, "box": [x, 60, 20, 160]} for x in (70, 190)]
    several = {"digit": None, "confidence": 0.0, "probabilities": [0.1] * 10, "rejected": False, "reason": None}
    number = several | {"number": "11", "number_confidence": 0.82, "digits": digits}

    def answer(route: Route) -> None:
        route.fulfill(json={"results": [number if "number=true" in route.request.url else several]})

    page = context.new_page()
    page.route("**/models", lambda route: route.fulfill(json={"models": [{"family": "numbers", "ready": True}]}))
    page.route("**/digits*", answer)
    opened("draw", size, page)
    draw(page, [(0.3, 0.2), (0.3, 0.8)])
    draw(page, [(0.7, 0.2), (0.7, 0.8)])
    expect(page.locator("#digit")).to_have_text("11")
    expect(page.locator("#digit-words")).to_have_text("82 % sure")
    expect(page.locator("#draw-announcement")).to_have_text("one one, 82 % sure")
    expect(page.locator("#number-help")).to_be_visible()
    board = page.locator("#board").bounding_box()
    assert board
    outlines = page.locator("#boxes rect").evaluate_all("all => all.map(one => one.getBoundingClientRect().toJSON())")
    for x, box in zip((80, 200), outlines, strict=True):
        assert box["x"] + box["width"] / 2 == pytest.approx(board["x"] + x / 280 * board["width"], abs=3)
        assert box["height"] == pytest.approx(160 / 280 * board["height"], abs=4)
    page.locator("#draw-clear").click()
    expect(page.locator("#boxes rect")).to_have_count(0)


def test_the_answer_is_visible_while_drawing_on_a_phone(opened: Opened) -> None:
    page = opened("draw", PHONE)
    draw(page, ONE)
    expect(page.locator("#digit")).to_have_text("1")
    for seen in ("#digit", "#digit-words", "#framed", "#histogram", "#draw-clear"):
        expect(page.locator(seen)).to_be_in_viewport(ratio=1)
    assert page.evaluate("() => scrollY") == 0


def test_a_slow_older_file_does_not_replace_a_newer_digit(opened: Opened) -> None:
    page = opened("draw")
    sent_requests = recorded_requests(page, "/digits")
    hold_image_decoding(page)
    drop(page, "#board", "slow.tiff", "image/tiff", b"slow")
    drop(page, "#board", "one.png", PNG, handwritten_one())
    expect(page.locator("#digit")).to_have_text("1")
    release_image(page)
    drop(page, "#board", "one.png", PNG, handwritten_one())
    expect(page.locator("#digit")).to_have_text("")
    expect(page.locator("#digit")).to_have_text("1")
    assert [request.headers["content-type"] for request in sent_requests] == [PNG, PNG]


def test_an_unreadable_file_clears_the_digit_and_keeps_the_drawing(opened: Opened) -> None:
    page = opened("draw")
    draw(page, [(0.3, 0.2), (0.7, 0.2), (0.45, 0.8)])
    drop(page, "#board", "one.png", PNG, handwritten_one())
    expect(page.locator("#digit")).to_have_text("1")
    drop(page, "#board", "notes.txt", "text/plain", b"one")
    expect(page.locator("#draw-notice")).to_contain_text("is not an image")
    expect(page.locator("#digit")).to_be_empty()
    expect(page.locator("#framed")).to_be_hidden()
    expect(page.locator("#digit-photo")).to_be_hidden()
    page.reload()
    expect(page.locator("#digit")).to_have_text("7")


# --- Caption


@both_sizes
def test_a_caption_is_streamed_word_by_word(opened: Opened, size: ViewportSize) -> None:
    page = opened("caption", size)
    sent_requests: list[Request] = []
    page.on("request", lambda request: sent_requests.append(request) if "/captions" in request.url else None)
    page.locator("#photo-file").set_input_files(file_payload("meadow.png", PNG, photograph()))
    expect(page.locator("#caption-copy")).to_be_visible()
    caption = page.locator("#caption-sentence").inner_text()
    assert len(caption.split()) >= 3
    expect(page.locator("#photo-image")).to_have_attribute("alt", re.compile(re.escape(caption), re.I))
    expect(page.locator("#others-list li")).to_have_count(4)
    assert [request.headers["accept"] for request in sent_requests] == ["text/event-stream"]


def test_a_caption_is_copied_with_one_click(opened: Opened, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = opened("caption")
    paste(page, "meadow.png", PNG, photograph())
    page.locator("#caption-copy").click()
    expect(page.locator("#caption-copy")).to_have_text("Copied")
    caption = page.locator("#photo-image").get_attribute("alt")
    assert page.evaluate("() => navigator.clipboard.readText()") == caption


def test_an_interrupted_caption_shows_an_error_and_can_be_retried(opened: Opened) -> None:
    page = opened("caption")
    events = {"Content-Type": "text/event-stream"}
    problem = {"status": 504, "detail": "too late"}
    broken = f'event: word\ndata: {{"word":"a"}}\n\nevent: error\ndata: {json.dumps(problem)}\n\n'
    page.route("**/captions*", lambda route: route.fulfill(headers=events, body=broken), times=1)
    drop(page, "#photo", "meadow.png", PNG, photograph())
    expect(page.locator("#caption-notice")).to_contain_text("took too long")
    page.locator("#caption-notice button").click()
    expect(page.locator("#caption-copy")).to_be_visible()
    expect(page.locator("#caption-notice")).to_be_empty()


def test_a_slow_older_photograph_does_not_replace_a_newer_caption(opened: Opened) -> None:
    page = opened("caption")
    sent_requests = recorded_requests(page, "/captions")
    hold_image_decoding(page)
    drop(page, "#photo", "slow.tiff", "image/tiff", b"slow")
    for _ in range(2):
        drop(page, "#photo", "meadow.png", PNG, photograph())
        expect(page.locator("#caption-copy")).to_be_visible()
        release_image(page)
    assert [request.headers["content-type"] for request in sent_requests] == [PNG, PNG]
    expect(page.locator("#caption-notice")).to_be_empty()


def test_an_unreadable_file_clears_the_caption(opened: Opened) -> None:
    page = opened("caption")
    drop(page, "#photo", "meadow.png", PNG, photograph())
    expect(page.locator("#caption-copy")).to_be_visible()
    drop(page, "#photo", "a.png", PNG, b"no image at all")
    expect(page.locator("#caption-notice")).not_to_be_empty()
    expect(page.locator("#caption-sentence")).to_be_empty()
    for gone in ("#caption-copy", "#others", "#photo-image"):
        expect(page.locator(gone)).to_be_hidden()
    expect(page.locator("#photo-empty")).to_be_visible()


@both_sizes
def test_each_word_shows_where_it_looked(opened: Opened, context: BrowserContext, size: ViewportSize) -> None:
    looks = [
        {"text": "a", "weights": [[0.1, 0.1], [0.1, 0.1]], "language": 0.9},
        {"text": "dog", "weights": [[0.0, 0.6], [0.1, 0.0]], "language": 0.2},
    ]
    tag = {"label": "dog", "score": 0.9, "box": [160, 0, 160, 120]}
    found = {"caption": "a dog", "log_probability": -1.0, "alternatives": [], "tags": [tag], "words": looks}
    body = f"event: caption\ndata: {json.dumps({'results': [found]})}\n\n"
    events = {"Content-Type": "text/event-stream"}
    context.route("**/captions?*attention=true*", lambda route: route.fulfill(headers=events, body=body))
    page = context.new_page()
    page.emulate_media(reduced_motion="reduce")
    opened("caption", size, page)
    drop(page, "#photo", "meadow.png", PNG, photograph())
    words = page.get_by_role("listbox", name="Words of the caption").get_by_role("option")
    expect(words).to_have_text(["a", "dog"])
    expect(words.first).to_have_class("from-language")
    expect(page.locator("#looks .tag text")).to_have_text("dog")
    expect(page.locator("#look-help")).to_contain_text("objects that the detector saw")
    require_accessible(page)
    words.first.focus()
    page.keyboard.press("ArrowRight")
    cells = page.locator("#looks g:first-child rect")
    expect(cells).to_have_count(4)
    opacities = [float(cell.get_attribute("fill-opacity") or 1) for cell in cells.all()]
    assert opacities == pytest.approx([0, 0.7, 0.7 / 6, 0])
    photo, cell = page.locator("#photo-image").bounding_box(), cells.nth(1).bounding_box()
    assert photo
    assert cell
    shown = min(photo["width"], photo["height"] * 4 / 3)  # of a photograph of 4:3 in its frame
    assert cell["width"] == pytest.approx(shown / 2, abs=1)
    assert cell["x"] == pytest.approx(photo["x"] + photo["width"] / 2, abs=1)
    page.keyboard.press("Tab")
    expect(cells).to_have_count(0)


@both_sizes
def test_the_caption_is_visible_beside_or_below_its_photograph(opened: Opened, size: ViewportSize) -> None:
    page = opened("caption", size)
    drop(page, "#photo", "meadow.png", PNG, photograph((600, 600)))
    expect(page.locator("#caption-copy")).to_be_in_viewport(ratio=1)
    expect(page.locator("#caption-sentence")).to_be_in_viewport(ratio=1)
    expect(page.locator("#others .hint")).to_contain_text("Best first")


# --- Models


@both_sizes
def test_model_cards_show_metrics_plots_and_limits(opened: Opened, size: ViewportSize) -> None:
    page = opened("models", size)
    cards = page.locator(".card")
    expect(cards.locator("h2")).to_have_text(
        ["Everyday English", "Newspaper of 1989", "The digit reader", "The number reader", "The captioner"]
    )
    for card in cards.all():
        expect(card.locator(".limits li").first).to_be_visible()
        expect(card.locator(".figure strong")).to_have_text(re.compile(r"^\d"))
        plot = card.locator("figure img").first
        plot.scroll_into_view_if_needed()
        expect(plot).to_have_js_property("complete", True)
        assert plot.evaluate("image => image.naturalWidth") > 0
        card.get_by_text("All metrics").click()
        expect(card.locator("details table").first).to_be_visible()


def test_a_plot_of_a_model_card_opens_in_a_new_tab(opened: Opened) -> None:
    page = opened("models")
    with page.expect_popup() as popup:
        page.locator(".pictures a").first.click()
    assert popup.value.url.endswith(".png")
    assert popup.value.evaluate("() => opener") is None
    expect(page.locator("#view-models")).to_be_visible()


def test_html_in_a_model_card_is_escaped(opened: Opened, context: BrowserContext) -> None:
    def poisoned(route: Route) -> None:
        answer = route.fetch().json()
        answer["card"] = "# x\n\n<img src=x onerror=alert(1)> **bold** `code`\n\n## Figures\n![<b>](a.png)"
        route.fulfill(json=answer)

    page = context.new_page()
    page.route("**/models/digits", poisoned)
    opened("models", page=page)
    expect(page.locator(".about").nth(2)).to_contain_text("<img src=x onerror=alert(1)> bold code")
    expect(page.locator(".card img[src=x]")).to_have_count(0)


def test_a_card_has_the_request_of_a_program(opened: Opened, address: str, tmp_path: Path) -> None:
    page = opened("models")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for name in ("digit.png", "number.png"):
        (tmp_path / name).write_bytes(handwritten_one())
    (tmp_path / "photo.jpg").write_bytes(photograph())
    cards = page.locator(".card").all()
    answers = ('"suggestions"', '"suggestions"', '"digit":1', '"number":"1"', '"caption"')
    for card, answer, count in zip(cards, answers, (4, 4, 4, 3, 4), strict=True):
        card.get_by_text("Use it from your program").click()
        texts = card.locator(".programs pre").all_inner_texts()
        assert len(texts) == count
        assert all(address.partition("://")[2] in text for text in texts)
        for text in texts[1:]:
            ast.parse(text)
        done = subprocess.run(["bash", "-c", texts[0]], cwd=tmp_path, capture_output=True, encoding="utf-8", check=True)
        assert answer in done.stdout
    page.get_by_role("button", name="Copy curl").first.click()
    expect(page.get_by_text("Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == cards[0].locator(".programs pre").first.inner_text()


# --- Errors


@pytest.mark.parametrize(("status", "words"), [(503, "The server is busy"), (429, "The rate limit")])
def test_a_retry_after_is_shown_and_the_request_retried(
    opened: Opened, context: BrowserContext, status: int, words: str
) -> None:
    page = context.new_page()
    page.clock.install()
    opened("write", page=page)
    page.route("**/next-word", failing(status, 1, **{"Retry-After": "20"}))
    page.locator("#draft").fill(f"{SENTENCE} ")
    expect(page.locator("#write-notice")).to_contain_text(f"{words}")
    expect(page.locator("#write-notice")).to_contain_text("Trying again in 20 s")
    expect(page.locator("#draft")).to_have_value(f"{SENTENCE} ")
    page.clock.run_for(20_000)
    expect(page.locator("#write-notice")).to_be_empty()
    expect(page.locator("#ghost")).not_to_be_empty()


def test_typing_during_a_retry_after_sends_one_request_at_its_end(opened: Opened, context: BrowserContext) -> None:
    page = context.new_page()
    page.clock.install()
    opened("write", page=page)
    expect(chips(page)).to_have_count(5)
    sent_requests = recorded_requests(page, "/next-word")
    page.route("**/next-word", failing(503, 1, **{"Retry-After": "30"}))
    page.locator("#draft").fill("the ")
    expect(page.locator("#write-notice")).to_contain_text("Trying again in 30 s")
    for text in ("the com", "the company ", f"{SENTENCE} it "):
        page.locator("#draft").fill(text)
        expect(page.locator("#write-notice")).to_contain_text("Trying again in 30 s")
    page.clock.run_for(30_000)
    expect(page.locator("#ghost")).not_to_be_empty()
    expect(page.locator("#write-notice")).to_be_empty()
    assert [json.loads(request.post_data or "")["text"] for request in sent_requests] == ["the ", f"{SENTENCE} it "]


@pytest.mark.parametrize(("status", "words"), [(500, "Something went wrong at the server"), (504, "took too long")])
def test_a_temporary_error_is_shown_and_can_be_retried(opened: Opened, status: int, words: str) -> None:
    page = opened("draw")
    page.route("**/digits*", failing(status, 1))
    page.locator("#digit-file").set_input_files(file_payload("one.png", PNG, handwritten_one()))
    expect(page.locator("#draw-notice")).to_contain_text(words)
    page.locator("#draw-notice button").click()
    expect(page.locator("#digit")).to_have_text("1")
    expect(page.locator("#draw-notice")).to_be_empty()


@pytest.mark.parametrize(
    ("status", "words"),
    [(400, "not an image"), (413, "Up to 16 MB"), (415, "PNG, JPEG, WebP, BMP, GIF and AVIF can be read")],
)
def test_a_rejected_file_can_be_replaced(opened: Opened, status: int, words: str) -> None:
    page = opened("draw")
    page.route("**/digits*", failing(status, 1))
    page.locator("#digit-file").set_input_files(file_payload("one.png", PNG, handwritten_one()))
    expect(page.locator("#draw-notice")).to_contain_text(words)
    expect(page.locator("#draw-notice")).not_to_contain_text("the detail")
    with page.expect_file_chooser() as chooser:
        page.locator("#draw-notice button").click()
    chooser.value.set_files(file_payload("one.png", PNG, handwritten_one()))
    expect(page.locator("#digit")).to_have_text("1")
    expect(page.locator("#draw-notice")).to_be_empty()


@pytest.mark.parametrize(("view", "zone"), [("caption", "#photo"), ("draw", "#board")])
def test_an_unreadable_file_is_explained_in_plain_words(opened: Opened, view: str, zone: str) -> None:
    page = opened(view)
    for name, mime, words in (
        ("IMG_1.HEIC", "", "“IMG_1.HEIC” is a HEIC photograph"),
        ("a.heif", "image/heif", "“a.heif” is a HEIC photograph"),
        ("notes.txt", "text/plain", "“notes.txt” is not an image that can be read. PNG, JPEG, WebP, BMP, GIF and AVIF"),
        ("scan.tiff", "image/tiff", "“scan.tiff” is not an image that can be read"),
        ("damaged.png", PNG, "it is damaged"),
    ):
        drop(page, zone, name, mime, b"no image at all")
        expect(page.locator(f"#{view}-notice")).to_contain_text(words)
        expect(page.locator(f"#{view}-notice")).not_to_contain_text(re.compile("bytes|Content-Type|Try again"))
        expect(page.locator(f"#{view}-notice button")).to_have_text("Choose another")


def test_the_page_works_without_browser_storage(opened: Opened, context: BrowserContext) -> None:
    context.add_init_script(
        """for (const name of ["sessionStorage", "localStorage"]) {
            Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } });
        }"""
    )
    page = context.new_page()
    page.route("**/next-word", lambda route: keyed(route, []))
    opened("write", page=page)
    page.locator("#key-field").fill("right")
    page.keyboard.press("Enter")
    expect(chips(page)).to_have_count(5)
    page.locator("#tab-draw").click()
    page.locator("#view-draw[data-ready]").wait_for()
    draw(page, ONE)
    expect(page.locator("#digit")).to_have_text("1")
    page.locator("#tab-score").click()
    page.locator("#samples button").first.click()
    expect(page.locator("#scored")).to_be_visible()
    expect(page.locator("#score-notice")).to_be_empty()


def test_the_page_resumes_after_being_offline(opened: Opened, context: BrowserContext) -> None:
    page = opened("write")
    expect(chips(page)).to_have_count(5)
    context.set_offline(True)
    page.locator("#draft").fill(f"{SENTENCE} ")
    expect(page.locator("#write-notice")).to_contain_text("You are offline")
    context.set_offline(False)
    expect(page.locator("#ghost")).not_to_be_empty()
    expect(page.locator("#draft")).to_have_value(f"{SENTENCE} ")


def keyed(route: Route, sent: list[str | None]) -> None:
    """Accept the key `right`; `late` has expired."""
    sent.append(route.request.headers.get("authorization"))
    if sent[-1] == "Bearer right":
        route.continue_()
    else:
        detail = "the key has expired" if sent[-1] == "Bearer late" else "there is no such key"
        route.fulfill(status=401, headers=HEADERS, body=json.dumps({"detail": detail}))


def test_the_page_asks_for_an_api_key_and_remembers_it(opened: Opened, context: BrowserContext) -> None:
    sent: list[str | None] = []
    page = context.new_page()
    page.route("**/next-word", lambda route: keyed(route, sent))
    opened("write", page=page)
    tries = [("wrong", "asks for a key"), ("late", "was not accepted"), ("right", "has expired")]
    for key, words in tries:
        expect(page.locator("#key-words")).to_contain_text(words)
        require_accessible(page)
        page.locator("#key-field").fill(key)
        page.keyboard.press("Enter")
    expect(page.locator("#key")).to_be_hidden()
    expect(chips(page)).to_have_count(5)
    assert sent == [None, "Bearer wrong", "Bearer late", "Bearer right"]
    page.reload()
    expect(chips(page)).to_have_count(5)
    assert set(sent[4:]) == {"Bearer right"}


def test_typing_before_the_api_key_is_entered_sends_one_request_after_it(
    opened: Opened, context: BrowserContext
) -> None:
    sent: list[str | None] = []
    page = context.new_page()
    page.route("**/next-word", lambda route: keyed(route, sent))
    opened("write", page=page)
    expect(page.locator("#key")).to_be_visible()
    page.locator("#draft").press_sequentially(f"{SENTENCE} ")
    page.locator("#key-field").fill("right")
    page.keyboard.press("Enter")
    expect(page.locator("#ghost")).not_to_be_empty()
    assert sent == [None, "Bearer right"]


# --- Accessibility and performance


def test_every_view_works_with_the_keyboard_alone(opened: Opened) -> None:
    page = opened("write")
    press, focused = page.keyboard.press, page.locator(":focus")
    page.locator("#tab-write").focus()
    press("ArrowRight")
    expect(page.locator("#view-score")).to_be_visible()
    page.locator("#samples button").first.focus()
    press("Enter")
    expect(page.locator("#scored")).to_be_visible()
    page.locator("#heat [tabindex='0']").focus()
    press("Home")
    press("ArrowRight")
    expect(focused).to_have_text("Anna")
    expect(page.locator("#detail .chosen")).to_have_text("Anna")
    page.locator("#tab-score").focus()
    press("ArrowRight")
    expect(page.locator("#view-draw[data-ready]")).to_be_visible()
    page.locator("#canvas").focus()
    press("Space")
    for _ in range(9):
        press("ArrowDown")
    press("Space")
    expect(page.locator("#digit")).to_have_text("1")
    press("Backspace")
    expect(page.locator("#framed")).to_be_hidden()
    page.locator("#tab-draw").focus()
    press("ArrowRight")
    expect(page.locator("#view-caption[data-ready]")).to_be_visible()
    press("Tab")
    expect(focused).to_have_id("photo-file")  # and Enter opens the file dialog
    page.locator("#tab-caption").focus()
    press("End")
    expect(page.locator("#view-models[data-ready]")).to_be_visible()
    page.locator("summary").first.focus()
    press("Enter")
    expect(page.locator("details[open]")).to_have_count(1)
    page.locator("#tab-models").focus()
    press("ArrowRight")
    expect(page.locator("#tab-write")).to_be_focused()


def filled(page: Page, view: str) -> None:
    """Fill a view with content."""
    if view == "write":
        page.locator("#draft").fill(f"{SENTENCE} ")
        expect(page.locator("#ghost")).not_to_be_empty()
    elif view == "score":
        page.locator("#samples button").nth(1).click()
        expect(page.locator("#scored")).to_be_visible()
    elif view == "draw":
        draw(page, ONE)
        expect(page.locator("#framed")).to_be_visible()
    elif view == "caption":
        drop(page, "#photo", "meadow.png", PNG, photograph())
        expect(page.locator("#caption-copy")).to_be_visible()
    else:
        page.locator("summary").first.click()


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_accessible(opened: Opened, context: BrowserContext, view: str) -> None:
    page = context.new_page()
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    opened(view, page=page)
    filled(page, view)
    require_accessible(page)
    page.set_viewport_size(PHONE)
    require_accessible(page)
    page.emulate_media(color_scheme="dark")
    require_accessible(page)


@pytest.mark.parametrize("view", VIEWS)
def test_no_view_scrolls_horizontally_on_a_phone(opened: Opened, view: str) -> None:
    page = opened(view, PHONE)
    filled(page, view)
    for size in (PHONE, NARROW):
        page.set_viewport_size(size)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= size["width"]


def test_the_page_is_small_and_loads_nothing_from_other_hosts(
    opened: Opened, context: BrowserContext, address: str
) -> None:
    page = context.new_page()
    sent_requests: list[Request] = []
    page.on("requestfinished", lambda request: sent_requests.append(request))
    opened("write", page=page)
    expect(chips(page)).to_have_count(5)
    assert all(request.url.startswith(address) for request in sent_requests)
    own = [request for request in sent_requests if not request.url.endswith("/next-word")]
    assert len(sent_requests) <= 10
    sizes = [request.sizes() for request in own]
    assert sum(size["responseBodySize"] + size["responseHeadersSize"] for size in sizes) <= 150_000


@pytest.mark.serial
def test_suggestions_appear_within_a_second_of_a_key(opened: Opened) -> None:
    page = opened("write")
    expect(chips(page)).to_have_count(5)
    latencies = sorted(keystrokes(page, "the company said it expects profit to "))
    assert latencies[len(latencies) // 2] < 1000  # ms; tests/bench/page.py measures it on a quiet machine
