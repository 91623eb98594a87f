"""Commands, links, names and numbers in README.md, CONTRIBUTING.md, CHANGELOG.md and docs/.

The second word of a shell block says how it is tested:

run     Every command is run against a server of the shipped models, and its output is compared with the lines below it.
        `...` matches anything, numbers may differ by 1 %. A third word names a corpus; without it the block is skipped.
parse   The syntax is checked; for seqserve, `python -m training` and make, the command, its options and targets exist.
"""

import ast
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import httpx
import pytest

from app import __main__ as seqserve
from app import bundle as bundles
from app.settings import PREFIX, Settings
from tests.documents import OPENAPI, SETTINGS, openapi_document, settings_page
from tests.e2e.conftest import ENVIRONMENT, serving
from training import __main__ as training

ROOT: Final = Path(__file__).parents[1]
STORE: Final = ROOT / "models_store"
DOCUMENTS: Final = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "clients" / "python" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
DATA: Final = Path(os.environ.get("TEST_DATA", ROOT.parent / "shared" / "data"))
PHOTOGRAPH: Final = "3568197730_a071d7595b.jpg"  # of Flickr8k's test part
ADDRESS: Final = "127.0.0.1:8000"
MAX_LINES: Final = 150  # of README.md
MAX_WORDS: Final = 1300

FENCE = re.compile(r"^```(\w+)?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
FOLDERS = "app|training|tests|docs|docker|models_store|requirements|deploy|clients"
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*|[\w-]+\.(?:toml|md|yml))(?:::(\w+))?`")
INLINE_COMMAND = re.compile(r"`((?:make|seqserve|\.venv/bin/\w+|python -m training) [^`]*)`")
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
MADE_BY_SECRETS = "docker/secrets/"  # docker/secrets.sh writes it


@dataclass(frozen=True)
class Block:
    """One fenced block: its document, language, the words after that, and its lines."""

    document: str
    language: str
    words: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.document}: {self.text.splitlines()[0][:60]}"


@dataclass(frozen=True)
class Command:
    """A command of a `console` block, and what it prints."""

    line: str
    expected: str


def blocks() -> list[Block]:
    """Return the shell blocks of all documents."""
    return [
        Block(str(path.relative_to(ROOT)), found[1], tuple(found[2].split()), found[3])
        for path in DOCUMENTS
        for found in FENCE.finditer(path.read_text(encoding="utf-8"))
        if found[1] in ("sh", "bash", "shell", "console")
    ]


def commands(block: Block) -> list[Command]:
    """Split a block into commands; those of a `console` block start with `$ ` and are followed by what they print."""
    if block.language == "sh":
        return [Command(line, "...") for line in logical_lines(block.text)]
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    split = [re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n(.*)", part, re.DOTALL) for part in parts]
    return [Command(found[1], found[2]) for found in split if found]


def logical_lines(text: str) -> list[str]:
    """Join lines that end with a backslash to the next, and drop blank ones and comments."""
    joined = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [line for line in joined if line.strip() and not line.lstrip().startswith("#")]


BLOCKS: Final = blocks()
RUN: Final = [block for block in BLOCKS if block.words[:1] == ("run",)]
INLINE: Final = sorted({found for path in DOCUMENTS for found in INLINE_COMMAND.findall(path.read_text("utf-8"))})
LINES: Final = sorted({command.line for block in BLOCKS for command in commands(block)} | set(INLINE))


def test_every_shell_block_says_how_it_is_tested() -> None:
    assert BLOCKS
    undeclared = [str(block) for block in BLOCKS if block.words[:1] not in (("run",), ("parse",))]
    assert not undeclared


# --- commands that are run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shipped models, which a command may change."""
    return Path(shutil.copytree(STORE, tmp_path_factory.mktemp("store") / "models_store"))


@pytest.fixture(scope="module")
def client(store: Path) -> Iterator[httpx.Client]:
    with serving(store) as (client, _):
        yield client


@pytest.fixture
def checkout(store: Path, tmp_path: Path) -> Path:
    """A folder that looks like a checkout after `make install`, in which commands may write."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "models_store").symlink_to(store)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, module in (("seqserve", "-m app"), ("python", "")):
        program = tmp_path / ".venv" / "bin" / name
        program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {module} "$@"\n')
        program.chmod(0o755)
    return tmp_path


def bring(corpus: str, checkout: Path) -> None:
    """Lay the example files of a corpus into the checkout; skip the test where the corpus is missing."""
    if not (DATA / corpus).is_dir():
        pytest.skip(f"TEST_DATA names no folder with {corpus}/")
    if corpus == "ptb":
        (checkout / "ptb.test.txt").symlink_to(DATA / "ptb" / "ptb.test.txt")
    else:
        with tarfile.open(DATA / "flickr8k" / "images-test.tar") as photographs:
            member = next(one for one in photographs if Path(one.name).name == PHOTOGRAPH)
            content = photographs.extractfile(member)
            assert content is not None
            (checkout / "photo.jpg").write_bytes(content.read())


def assert_prints(found: str, expected: str) -> None:
    """Compare with wildcards (`...`), any white space and numbers that are equal to 1 %."""
    pattern, numbers = "", list[str]()
    for part in re.split(rf"(\.\.\.|{NUMBER.pattern}|\s+)", expected.strip()):
        if part == "...":
            pattern += ".*?"
        elif NUMBER.fullmatch(part):
            pattern += f"({NUMBER.pattern})"
            numbers.append(part)
        else:
            pattern += r"\s*" if part.isspace() else re.escape(part)
    matched = re.fullmatch(pattern, found.strip(), re.DOTALL)
    assert matched, f"expected {expected}, found {found}"
    for shown, printed in zip(numbers, matched.groups(), strict=True):
        assert float(printed.replace(",", "")) == pytest.approx(float(shown.replace(",", "")), rel=0.01, abs=1e-4)


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_command_prints_what_the_document_says(block: Block, client: httpx.Client, checkout: Path) -> None:
    for corpus in block.words[1:]:
        bring(corpus, checkout)
    for command in commands(block):
        line = command.line.replace(ADDRESS, client.base_url.netloc.decode())
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=checkout,
            env=ENVIRONMENT,
            capture_output=True,
            encoding="utf-8",
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        assert_prints(done.stdout, command.expected)


@pytest.mark.parametrize(
    ("found", "expected"),
    [("a  1.004", "a 1"), ('{"a":1,\n"b":2}', '{"a": 1, ...}'), ("1,646.1", "1646"), ("-2.5e", "-2.5...")],
)
def test_output_is_compared_with_wildcards_and_a_tolerance(found: str, expected: str) -> None:
    assert_prints(found, expected)


@pytest.mark.parametrize(("found", "expected"), [("a 1.02", "a 1"), ("b", "a"), ("a b", "a"), ("a", "a b")])
def test_other_output_is_noticed(found: str, expected: str) -> None:
    with pytest.raises(AssertionError):
        assert_prints(found, expected)


# --- commands that are parsed


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_valid_shell(block: Block) -> None:
    for command in commands(block):
        subprocess.run(["bash", "-n", "-c", command.line], check=True, timeout=20)


@pytest.mark.parametrize("line", LINES)
def test_a_command_and_its_options_exist(line: str) -> None:
    for part in re.split(r"&&|;|\||\$\(", line):
        words = shlex.split(re.sub(r"[)\"]", " ", part), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        match words:
            case [program, *arguments] if Path(program).name == "seqserve":
                assert_options("seqserve", arguments)
            case [program, "-m", "training", *arguments] if Path(program).name == "python":
                assert_options("training", arguments)
            case ["make", *targets]:
                assert_targets(targets)


def assert_options(program: str, arguments: list[str]) -> None:
    """Every option must be in the help text of the command that the words before the first option name."""
    names = [word for word in arguments if word.startswith("--")]
    first = arguments.index(names[0]) if names else len(arguments)
    help_text = help_of(program, *(word for word in arguments[:first] if word != "-"))
    assert not [name for name in names if not re.search(rf"{name.partition('=')[0]}\b", help_text)]


@cache
def help_of(program: str, *leading: str) -> str:
    """Return the help text of a command."""
    main = (seqserve if program == "seqserve" else training).main
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            patch.delenv(name)
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [program, *leading, "--help"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0, f"{program} {' '.join(leading)}: no such command"
    return printed.getvalue()


def assert_targets(targets: list[str]) -> None:
    for target in [word for word in targets if "=" not in word]:
        assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), (
            target
        )
    command = ["make", "--dry-run", "DATA=corpora", "RUN=runs/mine", *targets]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)


# --- links, paths and names


@cache
def slugs(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = HEADING.findall(FENCE.sub("", path.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    broken = []
    for target, anchor in LINK.findall(FENCE.sub("", document.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", target):
            continue
        file = (document.parent / target).resolve() if target else document
        if not file.exists() or (anchor and anchor not in slugs(file)):
            broken.append(f"{target}#{anchor}")
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_and_test_that_is_named_exists(document: Path) -> None:
    missing = []
    for name, test in PATH.findall(document.read_text(encoding="utf-8")):
        file = ROOT / name if "/" in name or (ROOT / name).exists() else document.parent / name
        if name.startswith(MADE_BY_SECRETS):
            continue
        if not file.exists():
            missing.append(name)
        elif test and test not in definitions(file):
            missing.append(f"{name}::{test}")
    assert not missing


@cache
def definitions(file: Path) -> frozenset[str]:
    """Return the names that a module defines."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_setting_that_is_named_exists(document: Path) -> None:
    named = set(re.findall(rf"{PREFIX}[A-Z_]*[A-Z]", document.read_text(encoding="utf-8")))
    assert named <= {PREFIX + name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_metric_that_is_named_exists(document: Path, client: httpx.Client) -> None:
    named = set(re.findall(r"`(seqserve_\w+)`", document.read_text(encoding="utf-8")))
    exposed = set(re.findall(r"^# HELP (\w+)", client.get("/metrics").text, re.MULTILINE))
    assert named <= exposed


def test_the_readme_is_short() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= MAX_LINES
    assert len(readme.split()) <= MAX_WORDS


# --- generated documents and numbers


def test_the_settings_page_is_current() -> None:
    assert SETTINGS.read_text(encoding="utf-8") == settings_page(), "run `make docs`"


def test_the_openapi_document_is_current() -> None:
    assert json.loads(OPENAPI.read_text(encoding="utf-8")) == json.loads(openapi_document()), "run `make docs`"


@pytest.mark.parametrize("document", ["README.md", "docs/models.md"])
def test_the_headline_results_are_those_of_the_manifests(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    metrics = {name: bundles.read(STORE / name / bundles.current(STORE, name)).manifest.metrics for name in MODELS}
    assert f"{metrics['everyday']['valid_bits_per_byte']:.3f}" in text
    assert f"{metrics['everyday']['typing/top-3']:.1f} %" in text
    assert f"{metrics['ptb']['test_perplexity']:.2f}" in text
    assert f"{metrics['digits']['test_accuracy']:.2%}".replace("%", " %") in text
    assert f"{metrics['captions']['test_cider']:.1f}" in text


MODELS: Final = ("everyday", "ptb", "digits", "captions")
PEERS: Final = {
    "seqserve": ["ours"],
    "seqserve, two workers": ["ours-2-workers"],
    "LitServe": ["litserve-int8", "litserve-torch"],
    "BentoML": ["bentoml-int8", "bentoml-torch"],
    "Ray Serve": ["ray-int8", "ray-torch"],
    "FastAPI": ["plain"],
}


@pytest.mark.parametrize("document", ["README.md", "docs/benchmarks.md"])
def test_the_comparison_with_peers_is_that_of_the_benchmark(document: str) -> None:
    results = (ROOT / "tests" / "bench" / "serving" / "results.md").read_text(encoding="utf-8")
    measured = {  # by workload and server; requests a second with 16 connections
        (section.splitlines()[0], cells[1].strip()): cells[6].strip()
        for section in re.split(r"^## ", results, flags=re.MULTILINE)[1:6]
        for line in section.splitlines()
        if len(cells := line.split("|")) == 17
    }
    rows = [line.strip("|").split("|") for line in (ROOT / document).read_text(encoding="utf-8").splitlines()]
    shown = {row[0].strip(): [cell.replace("*", "").strip() for cell in row[1:6]] for row in rows if len(row) == 6}
    compared = [name for name in PEERS if name in shown]
    assert len(compared) >= 5
    for name in compared:
        for workload, cell in zip(("typing", "cold", "scoring", "digits", "captions"), shown[name], strict=True):
            assert cell == " / ".join(measured[workload, server] for server in PEERS[name])
