"""Bundles: atomic publication and verified reading."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app import bundle
from app.errors import BundleError
from app.manifest import CorpusEntry, FileEntry, Manifest
from tests.bench import flipped_bits
from tests.manifests import tiny_manifest

SHIPPED = Path(__file__).parents[1] / "models_store"
Damage = Callable[[Path], object]
CONTENTS: dict[str, bytes | Path] = {
    "weights.safetensors": bytes(range(256)) * 40,
    "vocabulary.txt": "<eos>\n<unk>\nnaïve\r\n".encode(),
    "probe.json": b'{"text": "the", "answer": [0.25]}',
}


def manifest(model: str = "ptb", version: str = "v1", **fields: Any) -> Manifest:
    given = {
        "config": {"hidden_sizes": [4, 2], "tied": True},
        "corpus": CorpusEntry(name="tiny", terms="free", sha256={"a.txt": "0" * 64}),
        "metrics": {"test_perplexity": 81.5},
    }
    return tiny_manifest("language_model", model=model, version=version, **given | fields)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store that does not exist yet."""
    return tmp_path / "models_store"


@pytest.fixture
def folder(store: Path) -> Path:
    """A published bundle, ptb/v1."""
    return bundle.publish(store, manifest(), CONTENTS)


def edit_manifest(folder: Path, **fields: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        bundle.read(folder)
    return str(caught.value)


# publishing


def test_what_was_published_is_read_back(store: Path, folder: Path) -> None:
    found = bundle.read(folder)

    assert folder == store / "ptb" / "v1"
    assert found.folder == folder
    assert found.manifest.model_copy(update={"files": {}}) == manifest()
    assert {name: found.path(name).read_bytes() for name in found.manifest.files} == CONTENTS
    assert found.text("vocabulary.txt") == "<eos>\n<unk>\nnaïve\r\n"
    assert found.json("probe.json") == {"text": "the", "answer": [0.25]}
    assert (bundle.models(store), bundle.versions(store, "ptb"), bundle.current(store, "ptb")) == (
        ["ptb"],
        ["v1"],
        "v1",
    )


def test_the_manifest_records_size_and_sha256(folder: Path) -> None:
    content = CONTENTS["weights.safetensors"]
    assert isinstance(content, bytes)

    entry = bundle.read(folder).manifest.files["weights.safetensors"]

    assert entry == FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=10240)


def test_a_file_longer_than_a_chunk_is_copied_whole(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "_CHUNK", 7)
    source = tmp_path / "graph.onnx"
    source.write_bytes(bytes(range(250)))

    found = bundle.read(bundle.publish(store, manifest(), {"graph.onnx": source}))

    assert found.path("graph.onnx").read_bytes() == source.read_bytes()


def test_a_relative_folder_can_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert bundle.read(Path("v1")).manifest.version == "v1"


def test_a_new_version_becomes_the_current_one(store: Path, folder: Path) -> None:
    bundle.publish(store, manifest(version="v2"), CONTENTS)

    assert bundle.versions(store, "ptb") == ["v1", "v2"]
    assert bundle.current(store, "ptb") == "v2"


def test_the_same_version_is_rejected_twice_and_stays_as_it_was(store: Path, folder: Path) -> None:
    with pytest.raises(BundleError, match=r"ptb/v1: expected an unpublished version"):
        bundle.publish(store, manifest(), {"probe.json": b"other"})

    assert bundle.read(folder).json("probe.json") == {"text": "the", "answer": [0.25]}


def test_of_two_publishers_of_one_version_the_second_is_rejected(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename_after_another_published(staging: Path, target: Path) -> Path:
        monkeypatch.undo()
        bundle.publish(store, manifest(), CONTENTS)
        return staging.rename(target)

    monkeypatch.setattr(Path, "rename", rename_after_another_published)
    with pytest.raises(BundleError, match="expected an unpublished version"):
        bundle.publish(store, manifest(), {"probe.json": b"other"})

    assert bundle.read(store / "ptb" / "v1").json("probe.json") == {"text": "the", "answer": [0.25]}
    assert entries(store / "ptb") == ["CURRENT", "v1"]


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "", "..", "manifest.json", "a\\b", "a\n", "/etc/passwd"])
def test_a_file_name_that_is_not_plain_is_never_written(store: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected a plain file name"):
        bundle.publish(store, manifest(), {name: b"x"})
    assert not store.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "PTB", "a/b", ".staging-1", "a" * 65, "v1\n", "é"])
def test_a_name_that_could_lead_out_of_the_store_is_no_name(store: Path, folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected a name of the form"):
        manifest(model=name)
    with pytest.raises(ValueError, match="expected a name of the form"):
        manifest(version=name)
    with pytest.raises(BundleError, match="expected a name of the form"):
        bundle.current(store, name)
    with pytest.raises(BundleError, match="expected one of the versions"):
        bundle.activate(store, "ptb", name)


def test_an_invalid_bundle_is_not_published(store: Path) -> None:
    with pytest.raises(BundleError, match="expected at most"):
        bundle.publish(store, manifest(config={"too long": "x" * (1 << 20)}), CONTENTS)
    assert entries(store / "ptb") == []


# crashes


class Crash(BaseException):
    """The process ends here."""


STEPS = [(os, "fsync"), (os, "open"), (Path, "mkdir"), (Path, "rename"), (Path, "replace"), (Path, "open")]


@pytest.mark.parametrize("cleans_up", [True, False], ids=["raised", "killed"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[0].__name__}.{step[1]}")
def test_a_crash_at_any_step_leaves_the_store_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str], cleans_up: bool
) -> None:
    owner, name = step
    crashes = 0
    while crash_at(crashes, tmp_path / str(crashes), monkeypatch, owner, name, cleans_up):
        crashes += 1
    assert crashes > 0


def crash_at(count: int, store: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, cleans_up: bool) -> bool:
    """Publish v2 beside v1, crash at call `count` of the step, check the store; False if there was no such call."""
    bundle.publish(store, manifest(version="v1"), CONTENTS)
    step, calls = getattr(owner, name), 0

    def step_or_crash(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count + 1:
            raise Crash
        return step(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, step_or_crash)
        if not cleans_up:
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            patch.setattr(Path, "unlink", lambda *_, **__: None)
        try:
            bundle.publish(store, manifest(version="v2"), CONTENTS)
            crashed = False
        except Crash:
            crashed = True

    for version in bundle.versions(store, "ptb"):
        assert set(bundle.read(store / "ptb" / version).manifest.files) == set(CONTENTS)
    assert bundle.versions(store, "ptb") in (["v1"], ["v1", "v2"])
    assert bundle.current(store, "ptb") in bundle.versions(store, "ptb")
    assert crashed or bundle.current(store, "ptb") == "v2"
    if cleans_up:
        assert not [name for name in entries(store / "ptb") if name.startswith(".")]
    bundle.publish(store, manifest(version="v3"), CONTENTS)
    assert bundle.current(store, "ptb") == "v3"
    return crashed


def test_a_half_written_version_is_never_listed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(staging: Path, target: Path) -> Path:
        assert (staging / "manifest.json").is_file()
        assert bundle.models(store) == []
        assert bundle.versions(store, "ptb") == []
        raise Crash

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(Crash):
        bundle.publish(store, manifest(), CONTENTS)


# reading

DAMAGES: dict[str, tuple[Damage, str]] = {
    "a flipped bit": (
        lambda folder: flip_bit(folder / "weights.safetensors"),
        r"weights\.safetensors: expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}$",
    ),
    "truncated": (
        lambda folder: os.truncate(folder / "weights.safetensors", 100),
        r"weights\.safetensors: expected 10240 bytes, found 100$",
    ),
    "longer": (
        lambda folder: append(folder / "probe.json"),
        r"probe\.json: expected 33 bytes, found 34$",
    ),
    "missing": (lambda folder: (folder / "probe.json").unlink(), r"probe\.json: can't be read: No such file"),
    "a folder": (lambda folder: into_folder(folder / "probe.json"), r"probe\.json: expected a plain file, found d"),
    "a link": (lambda folder: into_link(folder / "probe.json"), r"probe\.json: expected a plain file, found l"),
    "a pipe": (lambda folder: into_pipe(folder / "probe.json"), r"probe\.json: expected a plain file, found p"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json: can't be read: No such file"),
    "a linked manifest": (lambda folder: into_link(folder / "manifest.json"), r"manifest\.json: expected a plain file"),
    "another format": (
        lambda folder: (folder / "manifest.json").write_text('{"format": 2, "weights": "elsewhere"}'),
        r"manifest\.json: format: expected 1, found 2$",
    ),
    "a format that is nearly ours": (
        lambda folder: edit_manifest(folder, format=True),
        r"manifest\.json: format: expected 1, found True$",
    ),
    "no format": (
        lambda folder: (folder / "manifest.json").write_text("{}"),
        r"manifest\.json: format: expected 1, found None$",
    ),
    "not JSON": (lambda folder: (folder / "manifest.json").write_text("PK\x03"), r"manifest\.json: expected JSON"),
    "not an object": (
        lambda folder: (folder / "manifest.json").write_text("[1]"),
        r"manifest\.json: expected a JSON object, found list$",
    ),
    "not UTF-8": (
        lambda folder: (folder / "manifest.json").write_bytes(b'{"format": "\xff"}'),
        r"manifest\.json: expected UTF-8, found byte 0xff at 12$",
    ),
    "nested without end": (
        lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
        r"manifest\.json: expected JSON",
    ),
    "a manifest without bounds": (
        lambda folder: os.truncate(folder / "manifest.json", (1 << 20) + 1),
        r"manifest\.json: expected at most 1048576 bytes, found 1048577$",
    ),
    "a metric that is no number": (
        lambda folder: edit_manifest(folder, metrics={"test_perplexity": float("nan")}),
        r"manifest\.json: expected JSON, found an error: expected a JSON number, found NaN$",
    ),
    "an infinite metric": (
        lambda folder: replace_text(folder / "manifest.json", "81.5", "1e999"),
        r"manifest\.json: metrics\.test_perplexity: .*finite number, found inf$",
    ),
    "a string for a number": (
        lambda folder: edit_manifest(folder, parameters="12"),
        r"manifest\.json: parameters: .*valid integer, found '12'$",
    ),
    "a field too many": (
        lambda folder: edit_manifest(folder, pickle="weights.pkl"),
        r"manifest\.json: pickle: .*not permitted, found 'weights\.pkl'$",
    ),
    "a field too few": (
        lambda folder: edit_manifest(folder, files=None),
        r"manifest\.json: files: .*valid dictionary, found None$",
    ),
    "another model's": (
        lambda folder: edit_manifest(folder, model="wikitext"),
        r"manifest\.json: expected model and version ptb/v1, as its folder, found wikitext/v1$",
    ),
    "a flipped bit in a number of the manifest": (
        lambda folder: replace_text(folder / "manifest.json", "81.5", "81.4"),
        r"manifest\.json: expected the sha256 in manifest\.sha256, .*, found [0-9a-f]{64}$",
    ),
    "a space more in the manifest": (
        lambda folder: append(folder / "manifest.json"),
        r"manifest\.json: expected the sha256 in manifest\.sha256",
    ),
    "another name in the manifest's checksum": (
        lambda folder: replace_text(folder / "manifest.sha256", "json", "jsom"),
        r"manifest\.json: expected the sha256 in manifest\.sha256",
    ),
    "a link in place of the manifest's checksum": (
        lambda folder: into_link(folder / "manifest.sha256"),
        r"manifest\.sha256: expected a plain file, found l",
    ),
    "more parameters than any model has": (
        lambda folder: edit_manifest(folder, parameters=1 << 60),
        r"manifest\.json: parameters: .*less than or equal to",
    ),
    "a configuration that is no JSON": (
        lambda folder: edit_manifest(folder, config={"deep": ["\ud800"]}),
        r"manifest\.json: config: .*surrogates not allowed",
    ),
    "an infinite number in the configuration": (
        lambda folder: replace_text(folder / "manifest.json", '"tied": true', '"tied": 1e999'),
        r"manifest\.json: config: .*not JSON compliant",
    ),
    "another version's": (
        lambda folder: edit_manifest(folder, version="v2"),
        r"manifest\.json: expected model and version ptb/v1, as its folder, found ptb/v2$",
    ),
}


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def replace_text(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def into_link(path: Path) -> None:
    """The content is the same; outside the bundle."""
    outside = path.parent.parent / f"outside-{path.name}"
    path.rename(outside)
    path.symlink_to(outside)


def into_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_bundle_is_rejected_by_name(folder: Path, damage: Damage, message: str) -> None:
    bundle.read(folder)
    damage(folder)

    with pytest.raises(BundleError, match=message) as caught:
        bundle.read(folder)

    assert str(caught.value).startswith(f"{folder}/")


def test_a_bundle_of_before_the_manifest_s_checksum_is_read_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "manifest.sha256").unlink()
    assert bundle.read(folder).manifest.version == "v1"
    assert f"{folder}: expected a file manifest.sha256, found none" in caplog.text


def test_every_flipped_bit_of_the_shipped_bundles_is_rejected_by_name(tmp_path: Path) -> None:
    store = Path(shutil.copytree(SHIPPED, tmp_path / "store"))
    files = flipped_bits.bundle_files(store)
    once = [flip for file in files for flip in flipped_bits.flip_bits(store, [file], flips=1)]
    small = [file for file in files if file.name.startswith("manifest.")]
    many = flipped_bits.flip_bits(store, small, flips=40)
    assert [flip for flip in (*once, *many) if not flip.rejected] == []


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "sub/file", ".hidden", "", "manifest.json", "manifest.sha256"]
)
def test_a_listed_name_never_leads_out_of_the_bundle(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_bytes(b"s")
    entry = {"sha256": hashlib.sha256(b"s").hexdigest(), "bytes": 1}
    edit_manifest(folder, files={name: entry})

    assert "expected a plain file name" in refusal(folder)


def test_a_file_that_is_not_listed_is_out_of_reach_and_does_no_harm(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")

    with pytest.raises(BundleError, match=r"manifest\.json: expected a file notes\.txt in the list, found none"):
        bundle.read(folder).path("notes.txt")


def test_text_and_json_name_a_file_that_is_neither(store: Path) -> None:
    found = bundle.read(bundle.publish(store, manifest(), {"probe.json": b"\xffx"}))

    with pytest.raises(BundleError, match=r"probe\.json: expected UTF-8, found byte 0xff at 0"):
        found.text("probe.json")
    with pytest.raises(BundleError, match=r"probe\.json: expected UTF-8"):
        found.json("probe.json")


def test_a_missing_bundle_is_reported_by_its_path(store: Path) -> None:
    assert refusal(store / "ptb" / "v1") == f"{store}/ptb/v1/manifest.json: can't be read: No such file or directory"


# the store


def test_activate_goes_back_to_an_older_version(store: Path, folder: Path) -> None:
    bundle.publish(store, manifest(version="v2"), CONTENTS)

    bundle.activate(store, "ptb", "v1")

    assert (store / "ptb" / "CURRENT").read_text() == "v1\n"
    assert bundle.current(store, "ptb") == "v1"


def test_a_version_that_is_not_there_can_not_be_activated(store: Path, folder: Path) -> None:
    with pytest.raises(BundleError, match=r"ptb: expected one of the versions \['v1'\], found 'v9'"):
        bundle.activate(store, "ptb", "v9")
    assert bundle.current(store, "ptb") == "v1"


@pytest.mark.parametrize("content", ["v9\n", "", "\n", "v1\nv1\n", "v1\x0b", "../ptb/v1\n", " v1", ".staging-1\n"])
def test_current_must_be_one_line_that_names_a_version(store: Path, folder: Path, content: str) -> None:
    (folder.parent / "CURRENT").write_text(content)

    with pytest.raises(BundleError, match=r"CURRENT: expected one line that names one of \['v1'\], found "):
        bundle.current(store, "ptb")
    assert bundle.models(store) == ["ptb"]


def test_a_model_without_current_is_listed_and_rejected_by_name(store: Path, folder: Path) -> None:
    (folder.parent / "CURRENT").unlink()

    assert bundle.models(store) == ["ptb"]
    with pytest.raises(BundleError, match=r"ptb/CURRENT: can't be read: No such file"):
        bundle.current(store, "ptb")


def test_a_model_whose_versions_are_gone_is_listed_and_rejected_by_name(store: Path, folder: Path) -> None:
    shutil.rmtree(folder)

    assert bundle.models(store) == ["ptb"]
    with pytest.raises(BundleError, match=r"CURRENT: expected one line that names one of \[\], found 'v1\\n'"):
        bundle.current(store, "ptb")


def test_only_folders_with_proper_names_are_models_and_versions(store: Path, folder: Path) -> None:
    (store / "README.md").write_text("about the store")
    (store / "empty").mkdir()
    (store / ".git").mkdir()
    (folder.parent / ".staging-0").mkdir()
    (folder.parent / "Old").mkdir()
    (folder.parent / "latest").symlink_to(folder)

    assert bundle.models(store) == ["ptb"]
    assert bundle.versions(store, "ptb") == ["v1"]


def test_a_missing_store_is_reported_by_its_path(store: Path) -> None:
    with pytest.raises(BundleError, match=r"models_store: can't be read: No such file or directory"):
        bundle.models(store)
