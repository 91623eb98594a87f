"""The wheels of the server and of the client can be installed side by side."""

import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CLIENT = ROOT / "clients" / "python"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def build(source: Path, tmp_path: Path) -> zipfile.ZipFile:
    """Build the wheel of the files of `source` that git tracks or would, without the network."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=source, check=True, capture_output=True, encoding="utf-8").stdout.split("\0")
    copy, wheels = tmp_path / "source", tmp_path / "wheels"
    for name in names:
        if name.endswith((".py", ".toml", "README.md", "py.typed")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((source / name).read_bytes())
    wheels.mkdir()
    subprocess.run([sys.executable, "-c", BUILD, wheels], cwd=copy, check=True, capture_output=True)
    (wheel,) = wheels.iterdir()
    return zipfile.ZipFile(wheel)


def top_levels(wheel: zipfile.ZipFile) -> set[str]:
    return {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}


def test_the_server_and_the_client_share_no_top_level_name(tmp_path: Path) -> None:
    with build(ROOT, tmp_path / "server") as server, build(CLIENT, tmp_path / "client") as client:
        assert top_levels(server) == {"app", "training"}
        assert top_levels(client) == {"seqserve"}
        assert "seqserve/py.typed" in client.namelist()
        (metadata,) = (name for name in client.namelist() if name.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(client.read(metadata).decode())
    assert fields["Name"] == "seqserve"
    assert fields.get_all("Requires-Dist") == ["httpx<1,>=0.28"]


def test_the_client_imports_httpx_and_the_standard_library_alone(tmp_path: Path) -> None:
    code = "import sys, httpx; before = set(sys.modules); import seqserve; print(*set(sys.modules) - before)"
    options = {"cwd": tmp_path, "env": {"PYTHONPATH": str(CLIENT)}}
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, encoding="utf-8", **options)  # type: ignore[call-overload]
    others = {name.partition(".")[0] for name in loaded.stdout.split()} - {*sys.stdlib_module_names}
    assert others == {"seqserve"}


@pytest.mark.parametrize("field", ["version", "requires-python"])
def test_the_client_has_the_version_and_python_of_the_server(field: str) -> None:
    found = [tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"] for folder in (ROOT, CLIENT)]
    assert found[0][field] == found[1][field]
