import json

import pytest

from tests.bench.serving import workloads
from tests.bench.serving.workloads import PEOPLE, cold, scoring, typing

SENTENCES = [["the", "company", "'s", "of", f"n{n}"] for n in range(2 * PEOPLE)]


def test_each_typist_extends_its_text() -> None:
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


def test_typists_are_interleaved() -> None:
    bodies = typing(SENTENCES).bodies
    assert len(set(bodies[:PEOPLE])) == 1, "all texts start with the same word"
    assert len(bodies) == 7 * 2 * PEOPLE


def test_typists_with_less_text_finish_earlier() -> None:
    assert len(typing([["a"], ["a", "b"]]).bodies) == 3


def test_cold_texts_have_twenty_words_and_none_extends_another() -> None:
    texts = [json.loads(body)["text"] for body in cold([str(n) for n in range(100)]).bodies]
    assert all(len(text.split()) == 20 for text in texts)
    assert not any(other != text and other.startswith(text) for text in texts for other in texts)


def test_documents_have_the_assumed_number_of_words() -> None:
    texts = [json.loads(body)["text"] for body in scoring(["a"] * 1000).bodies]
    assert [len(text.split()) for text in texts] == [workloads.DOCUMENT_WORDS] * 4


def test_an_image_is_sent_as_a_multipart_form(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = workloads.image_forms("digits", "image/png", [b"\x89PNG\r\n"])
    _, boundary = workload.content_type.split("boundary=")
    head, content = workload.bodies[0].split(b"\r\n\r\n", 1)
    assert head.startswith(f"--{boundary}\r\n".encode())
    assert b'name="image"' in head
    assert content == b"\x89PNG\r\n" + f"\r\n--{boundary}--\r\n".encode()
