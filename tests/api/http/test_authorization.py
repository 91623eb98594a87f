"""Authorization by API keys and scopes."""

import hashlib
import json
import logging
import stat
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.api.dialects import DIALECTS
from app.api.http import keys
from app.api.http.endpoints import required_scopes
from app.api.http.keys import Keys
from app.errors import SettingsError
from tests.api.conftest import Clock, FakeServed, connect, service, talk

TODAY = datetime.now(UTC)
SECRETS = {name: f"seqserve_{name}" for name in ("reader", "operator", "late", "revoked")}
NO_KEY: dict[str, str] = {}
WRONG = {"Authorization": "Bearer seqserve_nobody"}


def line(name: str, scope: str, expires: str = "-") -> str:
    return f"{name} {scope} {expires} sha256:{hashlib.sha256(SECRETS[name].encode()).hexdigest()}"


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Keys of both scopes that are valid, and one that was until yesterday."""
    file = tmp_path / "keys"
    yesterday = (TODAY - timedelta(days=1)).isoformat()
    lines = ["# ours", line("reader", "predict"), line("operator", "admin"), line("late", "admin", yesterday)]
    file.write_text("\n".join(lines))
    return file


# Every route: its template, a request, and its status with each key; 200 is any status but 401 and 403.
ROUTES = [
    # template                       method  path                      none  wrong late  reader operator
    ("/",                            "GET",  "/",                      200,  200,  200,  200,   200),
    ("/web/{name}",                  "GET",  "/web/style.css",         200,  200,  200,  200,   200),
    ("/docs",                        "GET",  "/docs",                  200,  200,  200,  200,   200),
    ("/docs/files/{path:path}",      "GET",  "/docs/files/x.js",       200,  200,  200,  200,   200),
    ("/openapi.json",                "GET",  "/openapi.json",          200,  200,  200,  200,   200),
    ("/livez",                       "GET",  "/livez",                 200,  200,  200,  200,   200),
    ("/readyz",                      "GET",  "/readyz",                200,  200,  200,  200,   200),
    ("/next-word",                   "POST", "/next-word",             401,  401,  401,  200,   200),
    ("/perplexity",                  "POST", "/perplexity",            401,  401,  401,  200,   200),
    ("/digits",                      "POST", "/digits",                401,  401,  401,  200,   200),
    ("/captions",                    "POST", "/captions",              401,  401,  401,  200,   200),
    ("/models",                      "GET",  "/models",                401,  401,  401,  200,   200),
    ("/models/{model}",              "GET",  "/models/ptb",            401,  401,  401,  200,   200),
    ("/models/{model}/files/{name}", "GET",  "/models/ptb/files/a.png", 200, 200,  200,  200,   200),
    ("/models/{model}/activate",     "POST", "/models/ptb/activate",   401,  401,  401,  403,   200),
    ("/metrics",                     "GET",  "/metrics",               401,  401,  401,  403,   200),
]  # fmt: skip
KEYS = [NO_KEY, WRONG, bearer("late"), bearer("reader"), bearer("operator")]


# The routes of other dialects whose scope is not `predict`.
SCOPES = {
    ("/v2", "GET"): None,
    ("/v2/health/live", "GET"): None,
    ("/v2/health/ready", "GET"): None,
    ("/v2/repository/models/{model}/load", "POST"): "admin",
    ("/v2/repository/models/{model}/unload", "POST"): "admin",
}


def test_the_tables_above_have_every_route_and_its_scope(served: FakeServed) -> None:
    dialects = [dialect.requests for dialect in DIALECTS.values() if dialect.requests]
    scopes = {
        (path, method): scope
        for path, methods in required_scopes(service(served).routes).items()
        for method, scope in methods.items()
    }
    others = {
        route: scopes.pop(route)
        for route in list(scopes)
        if any(requests.fullmatch(f"{route[1]} {route[0]}") for requests in dialects)
    }
    assert {(template, "*" if "{path:path}" in template else method) for template, method, *_ in ROUTES} == set(scopes)
    public = {template for template, *_, none, _, _, _, _ in ROUTES if none == 200}
    assert {template for (template, _), scope in scopes.items() if scope is None} == public
    assert others == dict.fromkeys(others, "predict") | SCOPES


@pytest.mark.parametrize(("template", "method", "path", "statuses"), [(*row[:3], row[3:]) for row in ROUTES])
@pytest.mark.anyio
async def test_each_route_requires_the_scope_of_the_table(
    served: FakeServed, file: Path, template: str, method: str, path: str, statuses: tuple[int, ...]
) -> None:
    async with connect(service(served, api_keys_file=file)) as client:
        for key, status in zip(KEYS, statuses, strict=True):
            for sent in ("GET", "HEAD") if method == "GET" else (method,):
                response = await client.request(sent, path, headers=key)
                assert (response.status_code if response.status_code in (401, 403) else 200) == status
            if status != 200 and method != "GET":
                assert response.headers["content-type"] == "application/problem+json"
                assert response.json()["status"] == status


@pytest.mark.parametrize(
    ("key", "status", "challenge", "kind"),
    [
        (NO_KEY, 401, "Bearer", "unauthenticated"),
        (WRONG, 401, 'Bearer error="invalid_token"', "unauthenticated"),
        (bearer("late"), 401, 'Bearer error="invalid_token"', "unauthenticated"),
        (bearer("reader"), 403, None, "forbidden"),
    ],
)
@pytest.mark.anyio
async def test_a_rejection_is_a_problem_with_a_challenge(
    served: FakeServed, file: Path, key: dict[str, str], status: int, challenge: str | None, kind: str
) -> None:
    async with connect(service(served, api_keys_file=file)) as client:
        response = await client.get("/metrics", headers=key)
    assert (response.status_code, response.headers.get("www-authenticate")) == (status, challenge)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == f"/problems/{kind}"
    assert "seqserve_" not in response.text


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ([("Authorization", f"bearer {SECRETS['reader']}")], True),
        ([("X-API-Key", SECRETS["reader"])], True),
        ([("Authorization", "Basic YTpi"), ("X-API-Key", SECRETS["reader"])], True),
        ([("Authorization", "Bearer nonsense"), ("X-API-Key", SECRETS["reader"])], False),
        ([("X-API-Key", "nonsense"), ("X-API-Key", SECRETS["reader"])], False),
        ([("Authorization", SECRETS["reader"])], False),
        ([("Authorization", "Bearer")], False),
        ([("Authorization", "Bearer \u00e9\u00ff")], False),
        ([("X-API-Key", "")], False),
        ([("X-API-Key", hashlib.sha256(SECRETS["reader"].encode()).hexdigest())], False),
    ],
)
@pytest.mark.anyio
async def test_a_key_is_sent_as_bearer_token_or_in_x_api_key(
    served: FakeServed, file: Path, headers: list[tuple[str, str]], allowed: bool
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    async with connect(service(served, api_keys_file=file)) as client:
        assert (await client.get("/models", headers=raw)).status_code == (200 if allowed else 401)


@pytest.mark.parametrize("path", ["/metrics%0A", "/metrics/", "//metrics", "/Metrics", "/metrics;x", "/./metrics"])
@pytest.mark.anyio
async def test_no_spelling_of_a_path_bypasses_authorization(served: FakeServed, file: Path, path: str) -> None:
    async with connect(service(served, api_keys_file=file)) as client:
        response = await client.get(f"http://localhost{path}")
    assert response.status_code in (401, 404)
    assert "seqserve_requests" not in response.text


@pytest.mark.anyio
async def test_a_rejected_request_is_not_read_to_its_end(served: FakeServed, file: Path) -> None:
    sent: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        for place in range(5000):
            sent.append(place)
            yield b" " * 1024

    async with connect(service(served, api_keys_file=file)) as client:
        response = await client.post("/digits", content=body(), headers={"Content-Type": "image/png"})
        modest = await client.post("/digits", content=b" " * 1000, headers={"Content-Type": "image/png"})
    assert (response.status_code, response.headers["connection"]) == (401, "close")
    assert len(sent) < 1100
    assert (modest.status_code, modest.headers.get("connection")) == (401, None)


@pytest.mark.anyio
async def test_the_openapi_document_has_the_security_of_each_operation(served: FakeServed, file: Path) -> None:
    async with connect(service(served)) as open_client, connect(service(served, api_keys_file=file)) as client:
        without, document = [(await one.get("/openapi.json")).json() for one in (open_client, client)]
    assert "securitySchemes" not in without["components"]
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    public = {template for template, *_, none, _, _, _, _ in ROUTES if none == 200}
    public |= {path for (path, _), scope in SCOPES.items() if scope is None}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert bool(operation.get("security")) != (path in public)
            assert ("401" in operation["responses"]) != (path in public)


def from_afar(app: FastAPI, state: object, address: str) -> httpx.AsyncClient:
    client = talk(app, state)
    client._transport.client = (address, 1)  # type: ignore[attr-defined]  # noqa: SLF001
    return client


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("127.8.9.1", {}, 200),
        ("::1", {}, 200),
        ("10.0.0.1", {}, 403),
        ("::ffff:10.0.0.1", {}, 403),
        ("nonsense", {}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "10.0.0.1"}, 403),
        ("127.0.0.1", {"Forwarded": "for=10.0.0.1"}, 403),
        ("127.0.0.1", {"Host": "LocalHost:8000"}, 200),
        ("127.0.0.1", {"Host": "127.0.0.1:8000"}, 200),
        ("::1", {"Host": "[::1]:8000"}, 200),
        ("127.0.0.1", {"Host": "page.example:8000"}, 403),
        ("127.0.0.1", {"Origin": "http://localhost:8000"}, 200),
        ("127.0.0.1", {"Origin": "https://page.example"}, 403),
        ("127.0.0.1", {"Origin": "null"}, 403),
        ("127.0.0.1", {"Host": "localhost.page.example"}, 403),
        ("127.0.0.1", {"Host": "127.0.0.1.page.example"}, 403),
        ("127.0.0.1", {"Host": "10.0.0.1"}, 403),
        ("127.0.0.1", {"Host": "[::1"}, 403),
        ("127.0.0.1", {"Host": ""}, 403),
    ],
)
@pytest.mark.anyio
async def test_without_keys_admin_endpoints_are_local_and_predictions_public(
    shared: FastAPI, address: str, headers: dict[str, str], status: int
) -> None:
    app = shared
    async with app.router.lifespan_context(app) as state, from_afar(app, state, address) as client:
        assert (await client.get("/metrics", headers=headers)).status_code == status
        assert (await client.post("/next-word", json={"text": "a"}, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("settings", "reported", "level"),
    [
        ({}, "answers to this machine alone", logging.INFO),
        ({"host": "0.0.0.0"}, "answers to all who reach it", logging.WARNING),  # noqa: S104  # nothing listens
    ],
)
@pytest.mark.anyio
async def test_a_service_without_keys_logs_its_exposure(
    served: FakeServed, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], reported: str, level: int
) -> None:
    with caplog.at_level(logging.INFO):
        async with connect(service(served, **settings)):
            pass
    assert [record.levelno for record in caplog.records if reported in record.getMessage()] == [level]


def test_keys_are_revoked_and_added_without_a_restart(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    found = Keys(file, now=clock)
    file.write_text(line("revoked", "predict"))
    assert found.find(SECRETS["reader"]), "the file is checked at most once a second"
    clock.time += keys.RELOAD_S
    assert found.find(SECRETS["reader"]) is None
    assert found.find(SECRETS["revoked"])


@pytest.mark.parametrize("break_it", [lambda file: file.write_text("nonsense"), Path.unlink], ids=["wrong", "gone"])
def test_an_invalid_file_leaves_the_last_valid_keys_in_force_and_is_logged_once(
    file: Path, caplog: pytest.LogCaptureFixture, break_it: Callable[[Path], object]
) -> None:
    clock, stale = Clock(), list[bool]()
    found = Keys(file, now=clock, report_stale=stale.append)
    good = file.read_text()
    break_it(file)
    for _ in range(3):
        clock.time += keys.RELOAD_S
        assert found.find(SECRETS["reader"])
    assert caplog.text.count("the keys loaded before stay in force") == 1
    file.write_text(good + "\n" + line("revoked", "predict"))
    clock.time += keys.RELOAD_S
    assert found.find(SECRETS["revoked"])
    assert stale == [True, False]


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", [b"nonsense", b"\xff", "twice"])
async def test_a_deleted_key_is_revoked_whatever_else_is_wrong_in_the_file(
    served: FakeServed, tmp_path: Path, wrong: bytes | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "RELOAD_S", 0.0)
    file = tmp_path / "keys"
    kept = line("operator", "admin")
    file.write_text(f"{line('reader', 'predict')}\n{kept}\n")
    async with connect(service(served, api_keys_file=file)) as client:
        assert (await client.get("/models", headers=bearer("reader"))).status_code == 200
        file.write_bytes(f"{kept}\n".encode() + (kept.encode() if isinstance(wrong, str) else wrong))
        assert (await client.get("/models", headers=bearer("reader"))).status_code == 401
        assert "seqserve_stale_keys 1.0" in (await client.get("/metrics", headers=bearer("operator"))).text
        file.write_text(kept)
        assert (await client.get("/models", headers=bearer("operator"))).status_code == 200
        assert "seqserve_stale_keys 0.0" in (await client.get("/metrics", headers=bearer("operator"))).text


def test_an_empty_file_revokes_all_keys(file: Path) -> None:
    clock = Clock()
    found = Keys(file, now=clock)
    file.write_text("")
    clock.time += keys.RELOAD_S
    assert found.find(SECRETS["reader"]) is None
    assert len(found) == 0


def test_a_key_expires_on_time(file: Path) -> None:
    now = [TODAY]
    found = Keys(file, today=lambda: now[0])
    file.write_text(line("late", "admin", TODAY.isoformat()))
    found = Keys(file, today=lambda: now[0])
    key = found.find(SECRETS["late"])
    assert key
    assert found.expired(key)
    now[0] = TODAY - timedelta(microseconds=1)
    assert not found.expired(key)


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        ("reader predict -", "expected a name"),
        ("reader owner - sha256:" + "0" * 64, "predict or admin"),
        ("reader predict - sha256:" + "0" * 63, "expected a name"),
        ("reader predict - md5:" + "0" * 64, "expected a name"),
        ("reader predict soon sha256:" + "0" * 64, "ISO 8601"),
        ("re/ader predict - sha256:" + "0" * 64, "expected a name"),
        ("a predict - sha256:" + "0" * 64 + "\na predict - sha256:" + "1" * 64, "each name once, found a"),
        ("a predict - sha256:" + "0" * 64 + "\nb predict - sha256:" + "0" * 64, "each hash once"),
        ("\udcff", "can't be read"),
    ],
)
def test_an_invalid_file_is_reported_with_its_line(tmp_path: Path, content: str, reported: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SettingsError, match=reported) as error:
        Keys(file)
    assert str(file) in str(error.value)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can't be read"):
        service(api_keys_file=tmp_path / "none")


def test_an_empty_file_has_no_keys(tmp_path: Path) -> None:
    (tmp_path / "keys").touch()
    assert Keys(tmp_path / "keys").find("") is None


def test_a_new_key_is_random_and_stored_as_a_hash_readable_by_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    made = [keys.create(file, name, "predict", None) for name in ("a", "b")]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(set(made)) == 2
    assert all(len(secret) == len("seqserve_") + 43 and secret not in file.read_text() for secret in made)
    found = Keys(file)
    assert [key.name for secret in made if (key := found.find(secret))] == ["a", "b"]


def test_a_new_key_is_appended_after_an_unterminated_line(file: Path) -> None:
    before = file.read_text()
    assert not before.endswith("\n")
    keys.create(file, "new", "admin", keys.moment("2999-01-01"))
    assert file.read_text().startswith(before + "\n")
    assert keys.read(file)[-1].expires == datetime(2999, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("expires", [TODAY, TODAY - timedelta(days=1)])
def test_an_expired_key_is_not_created(tmp_path: Path, expires: datetime) -> None:
    file = tmp_path / "keys"
    with pytest.raises(SettingsError, match="expected a time in the future, found"):
        keys.create(file, "late", "predict", expires, today=lambda: TODAY)
    assert not file.exists()
    keys.create(file, "late", "predict", TODAY + timedelta(seconds=1), today=lambda: TODAY)


@pytest.mark.parametrize("name", ["", "two words", "#a", "a" * 65, "\u00e9", "-"])
def test_a_name_that_is_none_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="expected a name"):
        keys.create(tmp_path / "keys", name, "predict", None)


def test_a_name_is_not_given_twice(file: Path) -> None:
    with pytest.raises(SettingsError, match="reader already"):
        keys.create(file, "reader", "predict", None)


@pytest.mark.anyio
async def test_the_log_names_the_key_and_never_holds_it(
    served: FakeServed, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with connect(service(served, api_keys_file=file)) as client:
            await client.get("/models", headers=bearer("reader"))
            await client.get("/metrics", headers=bearer("reader"))
            await client.get("/models", headers=WRONG)
    reported = [json.dumps(record.__dict__, default=str) for record in caplog.records]
    lines = [record.__dict__["fields"] for record in caplog.records if record.message == "request"]
    assert [(line.get("key"), line["route"], line["status"]) for line in lines] == [
        ("reader", "/models", 200),
        ("reader", "/metrics", 403),
        (None, "/models", 401),
    ]
    assert not any("seqserve_reader" in one or "seqserve_nobody" in one for one in reported)
