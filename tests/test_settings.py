"""SEQSERVE_* variables."""

import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from app.errors import SettingsError
from app.main import open_registry
from app.runtime.families import FAMILIES
from app.runtime.metrics import Metrics
from app.runtime.scheduler import MAX_INLINE_BATCH
from app.settings import Settings, unknown_variables
from app.text import TOKENIZERS


def test_the_environment_is_read_and_a_value_given_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQSERVE_PORT", "9000")
    monkeypatch.setenv("seqserve_queue_size", "7")
    settings = Settings(port=9001)
    assert (settings.port, settings.queue_size, settings.threads) == (9001, 7, 1)


@pytest.mark.parametrize(("workers", "max_inline_batch"), [(1, MAX_INLINE_BATCH), (2, 40), (3, 40)])
def test_all_cheap_steps_run_inline_if_each_processor_has_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, max_inline_batch: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    settings = Settings(store=tmp_path, workers=workers, batch_size=40)
    registry = open_registry(settings, Metrics(CollectorRegistry()), FAMILIES, TOKENIZERS)
    assert registry.max_inline_batch == max_inline_batch


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("SEQSERVE_PORT", "http", "integer"),
        ("SEQSERVE_PORT", "65536", "65535"),
        ("SEQSERVE_PORT", "", "integer"),
        ("SEQSERVE_WORKERS", "0", "greater than or equal to 1"),
        ("SEQSERVE_THREADS", "0", "greater than or equal to 1"),
        ("SEQSERVE_REQUEST_TIMEOUT_S", "inf", "finite"),
        ("SEQSERVE_STORE", "/nowhere/at/all", "directory"),
        ("SEQSERVE_LOG_LEVEL", "loud", "'warning'"),
        ("SEQSERVE_LOG_FORMAT", "xml", "'json'"),
        ("SEQSERVE_TRUSTED_PROXIES", "*", "IPv4 or IPv6"),
        ("SEQSERVE_TRUSTED_PROXIES", "10.0.0.1,proxy", "IPv4 or IPv6"),
        ("SEQSERVE_DEFAULT_MODELS", "ptb", "expected pairs like language_model=ptb, found 'ptb'"),
        ("SEQSERVE_DEFAULT_MODELS", "digits=a,digits=b", "expected one model a family"),
        ("SEQSERVE_CORS_ORIGINS", "example.org", "expected origins like https://example.org"),
        ("SEQSERVE_CORS_ORIGINS", "https://example.org/", "expected origins like https://example.org"),
    ],
)
def test_a_wrong_value_is_reported_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as reported:
        Settings()
    assert str(reported.value).startswith(f"{name}: ")
    assert expected in str(reported.value)
    assert f"found {value!r}" in str(reported.value)


@pytest.mark.parametrize(
    ("name", "closest"), [("SEQSERVE_PROT", "SEQSERVE_PORT"), ("seqserve_LogLevel", "SEQSERVE_LOG_LEVEL")]
)
def test_an_unknown_variable_is_ignored_with_a_warning_that_names_the_closest_known(
    monkeypatch: pytest.MonkeyPatch, name: str, closest: str
) -> None:
    monkeypatch.setenv(name, "1")
    assert Settings() == Settings(port=8000)
    assert unknown_variables(os.environ) == [f"{name}: no such setting, ignored; the closest is {closest}"]


KUBERNETES = {
    "SEQSERVE_PORT": "tcp://10.0.0.1:8000",
    "SEQSERVE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "SEQSERVE_PORT_8000_TCP_ADDR": "10.0.0.1",
    "SEQSERVE_PORT_8000_TCP_PORT": "8000",
    "SEQSERVE_PORT_8000_TCP_PROTO": "tcp",
    "SEQSERVE_SERVICE_HOST": "10.0.0.1",
    "SEQSERVE_SERVICE_PORT": "8000",
    "SEQSERVE_SERVICE_PORT_HTTP": "8000",
    "SEQSERVE_WEB_PORT": "udp://10.0.0.2:80",
    "SEQSERVE_WEB_SERVICE_HOST": "10.0.0.2",
}


def test_variables_that_kubernetes_sets_for_a_service_are_ignored_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    assert Settings().port == 8000
    assert unknown_variables(os.environ) == [f"{', '.join(KUBERNETES)}: ignored, set by Kubernetes for a Service"]


def test_a_known_variable_raises_no_warning() -> None:
    assert unknown_variables({"SEQSERVE_PORT": "8001", "seqserve_threads": "2", "HOME": "/"}) == []


def test_the_store_is_that_of_the_current_folder_if_it_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    beside = Settings().store
    (tmp_path / "models_store").mkdir()
    assert beside.is_absolute()
    assert beside.name == "models_store"
    assert Settings().store.resolve() == tmp_path / "models_store"


def test_workers_do_not_each_count_the_same_callers_rates() -> None:
    with pytest.raises(SettingsError, match=r"SEQSERVE_RATE_STORAGE: expected redis.*SEQSERVE_WORKERS=2.*'memory://'"):
        Settings(workers=2, rate_limit="5/minute")
    assert Settings(workers=2, rate_limit="5/minute", rate_storage="redis://host").workers == 2
    assert Settings(workers=2).rate_limit == ""


def test_lists_are_parted_by_commas() -> None:
    assert Settings().models_by_family == {}
    chosen = Settings(default_models="language_model = ptb, digits=mnist")
    assert chosen.models_by_family == {"language_model": "ptb", "digits": "mnist"}
    settings = Settings(trusted_proxies="10.0.0.0/8, ::1", cors_origins="https://a.example, http://b.example:81,")
    assert settings.origins == ["https://a.example", "http://b.example:81"]


def test_a_unix_socket_is_local_and_has_an_address_of_its_own() -> None:
    settings = Settings(host="::", unix_socket=Path("/run/seqserve"))
    assert (settings.is_local, settings.url) == (True, "unix:/run/seqserve")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.org", False)],  # noqa: S104
)
def test_a_service_knows_whether_other_machines_reach_it(host: str, local: bool) -> None:
    assert Settings(host=host).is_local == local


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())
