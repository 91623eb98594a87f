import json

import pytest

from tests.bench.serving import workloads
from tests.bench.serving.workloads import PEOPLE, cold, scoring, typing

SENTENCES = [["the", "company", "'s", "of", f"n{n}"] for n in range(2 * PEOPLE)]


def test_each_person_types_on() -> None:
    texts = [json.loads(body) for body in typing(SENTENCES).bodies]
    first = texts[::PEOPLE][:6]
    assert first == [
        {"text": "th", "complete": True},
        {"text": "the "},
        {"text": "the comp", "complete": True},
        {"text": "the company "},
        {"text": "the company 's "},
        {"text": "the company 's of "},
    ]


def test_people_take_turns() -> None:
    bodies = typing(SENTENCES).bodies
    assert len(set(bodies[:PEOPLE])) == 1, "all of them begin with the same word"
    assert len(bodies) == 7 * 2 * PEOPLE


def test_whoever_has_less_to_type_ends_earlier() -> None:
    assert len(typing([["a"], ["a", "b"]]).bodies) == 3


def test_cold_texts_are_twenty_words_long_and_none_continues_another() -> None:
    texts = [json.loads(body)["text"] for body in cold([str(n) for n in range(100)]).bodies]
    assert all(len(text.split()) == 20 for text in texts)
    assert not any(other != text and other.startswith(text) for text in texts for other in texts)


def test_documents_are_as_long_as_the_figures_take_them_for() -> None:
    texts = [json.loads(body)["text"] for body in scoring(["a"] * 1000).bodies]
    assert [len(text.split()) for text in texts] == [workloads.DOCUMENT_WORDS] * 4


def test_an_image_is_sent_as_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = workloads.shown("digits", "image/png", [b"\x89PNG\r\n"])
    _, boundary = workload.content_type.split("boundary=")
    head, content = workload.bodies[0].split(b"\r\n\r\n", 1)
    assert head.startswith(f"--{boundary}\r\n".encode())
    assert b'name="image"' in head
    assert content == b"\x89PNG\r\n" + f"\r\n--{boundary}--\r\n".encode()
