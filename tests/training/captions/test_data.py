"""Photographs with captions: the forms of a captions file, where photographs lie, what is refused, what is a word."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from app.errors import CorpusError
from training.captions.data import (
    FLICKR8K_SHA256,
    FLICKR8K_TERMS,
    Source,
    contents,
    count_vocabulary,
    load,
    photos,
    source,
    words,
)
from training.captions.features import Backbone
from training.corpora.files import sha256

DATA = Path(os.environ.get("TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
FLICKR8K = DATA / "flickr8k"
needs_flickr8k = pytest.mark.skipif(
    not FLICKR8K.is_dir(), reason="Flickr8k is not here: TEST_DATA names no folder with it"
)
NAMES = {"train": ("a.png", "b.png", "c.png"), "val": ("d.png",), "test": ("e.png", "f.png")}
SAID = ("A dog runs .", "A brown dog doesn't run !")


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(256, size=(8, 9, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def put(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(png(ord(name[0])))


def pack(path: Path, names: tuple[str, ...]) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(png(ord(name[0])))
            tar.addfile(member, io.BytesIO(png(ord(name[0]))))


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def documented(folder: Path) -> None:
    """Flickr8k's form, its photographs in a tar a split."""
    folder.mkdir(exist_ok=True)
    entries = [
        {"file": name, "split": split, "tar": f"images-{split}.tar", "captions": SAID}
        for split, names in NAMES.items()
        for name in names
    ]
    for split, names in NAMES.items():
        pack(folder / f"images-{split}.tar", names)
    write(folder / "captions.json", {"dataset": "tiny", "images": entries})


def documented_without_tars(folder: Path) -> None:
    """A corpus with its photographs as files."""
    entries = [{"file": name, "split": split, "captions": SAID} for split, names in NAMES.items() for name in names]
    for names in NAMES.values():
        for name in names:
            put(folder, name)
    write(folder / "captions.json", {"images": entries})


def coco_content(split: str, extra: dict[str, str]) -> dict[str, Any]:
    images = [{"id": ord(name[0]), "file_name": name, **extra} for name in NAMES[split]]
    annotations = [{"image_id": image["id"], "caption": caption} for caption in SAID for image in images]
    return {"images": images, "annotations": annotations}


def coco(folder: Path) -> None:
    """COCO's own: a file and a folder a split."""
    for split, names in NAMES.items():
        write(folder / "annotations" / f"captions_{split}2017.json", coco_content(split, {}))
        for name in names:
            put(folder / f"{split}2017", name)


def coco_in_one_file(folder: Path) -> None:
    """COCO's form with the splits in it."""
    parts = [coco_content(split, {"split": split}) for split in NAMES]
    joined = {key: [entry for part in parts for entry in part[key]] for key in ("images", "annotations")}
    write(folder / "captions.json", joined)
    for names in NAMES.values():
        for name in names:
            put(folder, name)


FORMS = [documented, documented_without_tars, coco, coco_in_one_file]


def edit(folder: Path, change: Callable[[Any], None], name: str = "captions.json") -> Source:
    """The source in `folder` after a change to its captions file."""
    content = json.loads((folder / name).read_text())
    change(content)
    write(folder / name, content)
    return source(folder)


# reading


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_are_read_alike(form: Callable[[Path], None], tmp_path: Path) -> None:
    form(tmp_path)
    found = photos(source(tmp_path))
    assert {split: tuple(p.name for p in found if p.split == split) for split in NAMES} == NAMES
    assert {photo.captions for photo in found} == {SAID}
    assert [content for _, content in contents(found)] == [png(ord(photo.name[0])) for photo in found]


def test_photographs_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    documented(tmp_path)
    found = photos(source(tmp_path))[::-2]
    assert [content.name for content in contents(found)] == [photo.name for photo in found]


def test_a_corpus_without_a_test_split_can_be_trained_on(tmp_path: Path) -> None:
    coco(tmp_path)
    (tmp_path / "annotations" / "captions_test2017.json").unlink()
    assert {photo.split for photo in photos(source(tmp_path))} == {"train", "val"}


def test_a_folder_of_ones_own_is_named_after_itself(tmp_path: Path) -> None:
    documented(tmp_path / "holiday")
    assert source(tmp_path / "holiday", "mine alone") == Source("holiday", tmp_path / "holiday", "mine alone")


# refusing


def test_a_caption_without_its_photograph_is_an_error_that_names_it(tmp_path: Path) -> None:
    documented_without_tars(tmp_path)
    (tmp_path / "b.png").unlink()
    with pytest.raises(CorpusError, match=r"expected the photograph b\.png of 'A dog runs \.', found none"):
        photos(source(tmp_path))


def test_a_photograph_that_its_tar_does_not_hold_is_an_error_that_names_it(tmp_path: Path) -> None:
    documented(tmp_path)
    pack(tmp_path / "images-train.tar", ("a.png", "c.png"))
    with pytest.raises(CorpusError, match=r"images-train\.tar: expected the photograph b\.png"):
        photos(source(tmp_path))


def test_an_annotation_without_an_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    coco(tmp_path)
    stray = {"image_id": 404, "caption": "Nothing to see ."}
    name = "annotations/captions_val2017.json"
    changed = edit(tmp_path, lambda content: content["annotations"].append(stray), name)
    with pytest.raises(CorpusError, match=r"expected an image 404 for the caption 'Nothing to see \.', found none"):
        photos(changed)


@pytest.mark.parametrize("captions", [[], ["", " . "]])
def test_a_photograph_without_a_caption_is_an_error_that_names_it(captions: list[str], tmp_path: Path) -> None:
    documented(tmp_path)
    changed = edit(tmp_path, lambda content: content["images"][1].update(captions=captions))
    with pytest.raises(CorpusError, match=r"^b\.png: expected a caption, found none$"):
        photos(changed)


def test_an_unknown_split_is_an_error(tmp_path: Path) -> None:
    documented(tmp_path)
    changed = edit(tmp_path, lambda content: content["images"][0].update(split="dev"))
    with pytest.raises(CorpusError, match=r"^a\.png: expected a split of train, val, test; found dev$"):
        photos(changed)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_training_needs_must_be_there(split: str, tmp_path: Path) -> None:
    coco(tmp_path)
    (tmp_path / "annotations" / f"captions_{split}2017.json").unlink()
    with pytest.raises(CorpusError, match=f"expected photographs of the split {split}, found none"):
        photos(source(tmp_path))


@pytest.mark.parametrize("field", ["file", "split", "captions"])
def test_an_entry_that_lacks_a_field_is_an_error_that_names_the_field(field: str, tmp_path: Path) -> None:
    documented(tmp_path)
    changed = edit(tmp_path, lambda content: content["images"][0].pop(field))
    with pytest.raises(CorpusError, match=rf"captions\.json: expected an entry with '{field}', found one without"):
        photos(changed)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"images": 3}', '{"images": ["a.png"]}'])
def test_a_captions_file_of_another_form_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(CorpusError, match=r"captions\.json: expected captions in JSON, found otherwise"):
        photos(source(tmp_path))


def test_a_folder_without_captions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"expected captions\.json or captions_train\*\.json, found neither"):
        photos(source(tmp_path))


def test_a_tar_that_is_none_is_an_error(tmp_path: Path) -> None:
    documented(tmp_path)
    (tmp_path / "images-val.tar").write_bytes(b"no tar")
    with pytest.raises(CorpusError, match=r"images-val\.tar: expected a readable tar"):
        photos(source(tmp_path))


# loading


class Colours(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@pytest.fixture
def colours() -> Backbone:
    return Backbone("colours", Colours(), 3, "0" * 64)


def test_training_photographs_are_seen_in_several_views_the_others_whole(colours: Backbone, tmp_path: Path) -> None:
    documented(tmp_path)
    corpus = load(source(tmp_path), colours, views=4, min_count=1, cache=tmp_path / "cache")
    assert {name: split.features.shape for name, split in corpus.splits.items()} == {
        "train": (3, 4, 3),
        "val": (1, 1, 3),
        "test": (2, 1, 3),
    }
    assert corpus.splits["test"].names == NAMES["test"]
    assert corpus.splits["test"].captions == (SAID, SAID)


def test_a_corrupt_photograph_is_skipped_reported_and_counted(colours: Backbone, tmp_path: Path) -> None:
    documented_without_tars(tmp_path)
    (tmp_path / "b.png").write_bytes(png(1)[:60])
    corpus = load(source(tmp_path), colours, views=1, min_count=1, cache=tmp_path / "cache")
    assert corpus.splits["train"].names == ("a.png", "c.png")
    assert len(corpus.splits["train"].features) == len(corpus.splits["train"].captions) == 2
    assert list(corpus.corrupt) == ["b.png"]
    assert corpus.describe()["corrupt"] == corpus.corrupt
    assert corpus.describe()["photographs"] == {"train": 2, "val": 1, "test": 2}


@pytest.mark.parametrize("weights", [None, Path("cnn") / "weights.safetensors"])
def test_a_run_writes_down_where_the_backbones_weights_were(
    weights: Path | None, colours: Backbone, tmp_path: Path
) -> None:
    documented(tmp_path)
    backbone = replace(colours, weights=weights)
    described = load(source(tmp_path), backbone, views=1, min_count=1, cache=tmp_path / "cache").describe()
    assert described["weights"] == (None if weights is None else str(weights.resolve()))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_corrupt_photographs_alone_is_an_error(split: str, colours: Backbone, tmp_path: Path) -> None:
    documented_without_tars(tmp_path)
    for name in NAMES[split]:
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(CorpusError, match=f"expected photographs of the split {split} that can be decoded, found none"):
        load(source(tmp_path), colours, views=1, min_count=1, cache=tmp_path / "cache")


def test_what_a_run_writes_down_tells_changed_data(colours: Backbone, tmp_path: Path) -> None:
    documented_without_tars(tmp_path)

    def checksums(backbone: Backbone = colours) -> dict[str, str]:
        return load(source(tmp_path), backbone, views=1, min_count=1, cache=tmp_path / "cache").describe()["sha256"]  # type: ignore[no-any-return]

    def changed(other: dict[str, str]) -> set[str]:
        return {key for key, value in first.items() if other[key] != value}

    first = checksums()
    assert changed(checksums()) == set()
    assert changed(checksums(replace(colours, sha256="1" * 64))) == {"backbone"}
    (tmp_path / "d.png").write_bytes(png(99))
    assert changed(checksums()) == {"val"}
    edit(tmp_path, lambda content: content["images"][0].update(captions=["A cat ."]))
    assert changed(checksums()) == {"captions", "val"}


# words


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A black dog is running .", "a black dog is running"),
        ("Two men , one in a T-shirt , play", "two men one in a t-shirt play"),
        ("He doesn't see the man's hat", "he does n't see the man 's hat"),
        ("A 5-year-old on a 4-wheeler !", "a 5-year-old on a 4-wheeler"),
        ('A sign says " Stop " ...', "a sign says stop"),
        ("rock'n'roll and/or jazz", "rock n roll and/or jazz"),
        (" . ", ""),
    ],
)
def test_words_are_lower_cased_and_without_punctuation(caption: str, expected: str) -> None:
    assert words(caption) == expected.split()


def test_the_vocabulary_is_the_words_that_stand_often_enough() -> None:
    vocabulary = count_vocabulary(["A dog runs .", "a dog , a cat", "The dog !"], 2)
    assert vocabulary.tokens == ("<eos>", "<unk>", "a", "dog")
    assert count_vocabulary(["b a", "b a"], 2).tokens == ("<eos>", "<unk>", "a", "b")


# Flickr8k


@needs_flickr8k
def test_flickr8k_is_known_by_its_captions_and_split_as_everybody_splits_it() -> None:
    assert sha256(FLICKR8K / "captions.json") == FLICKR8K_SHA256
    flickr8k = source(FLICKR8K)
    assert (flickr8k.name, flickr8k.terms) == ("flickr8k", FLICKR8K_TERMS)
    found = photos(flickr8k)
    counts = {split: sum(photo.split == split for photo in found) for split in NAMES}
    assert counts == {"train": 6000, "val": 1000, "test": 1000}
    assert {len(photo.captions) for photo in found} == {5}
