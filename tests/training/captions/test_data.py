"""Photographs with captions: the forms of a captions file, where photographs lie, what is refused, what is a word."""

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from app.errors import CorpusError
from training.captions.annotations import read
from training.captions.data import (
    FLICKR8K_SHA256,
    FLICKR8K_TERMS,
    Source,
    contents,
    load,
    photos,
    source,
)
from training.captions.features import Backbone
from training.captions.vocabulary import count_vocabulary, words
from training.corpora.files import sha256

DATA = Path(os.environ.get("TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
FLICKR8K = DATA / "flickr8k"
needs_flickr8k = pytest.mark.skipif(
    not FLICKR8K.is_dir(), reason="Flickr8k is not here: TEST_DATA names no folder with it"
)
NAMES = {"train": ("a.png", "b.png", "c.png"), "val": ("d.png",), "test": ("e.png", "f.png")}
LETTERS = "abcdefghijklmnopqrst"
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


def karpathy(folder: Path) -> None:
    """Karpathy's form, its photographs in the folder that an entry names or in any other; the train split in two."""
    entries = [
        {
            "filename": name,
            "split": "restval" if name == "c.png" else split,
            "sentences": [{"raw": caption, "tokens": []} for caption in SAID],
            **({"filepath": "val2014"} if split == "val" else {}),
        }
        for split, names in NAMES.items()
        for name in names
    ]
    for split, names in NAMES.items():
        for name in names:
            put(folder / ("val2014" if split == "val" else "Images"), name)
    write(folder / "dataset_tiny.json", {"dataset": "tiny", "images": entries})


FORMS = [documented, documented_without_tars, coco, coco_in_one_file, karpathy]


def kaggle(folder: Path, *lines: str) -> Source:
    """Kaggle's form, with twenty photographs."""
    rows = [f"{letter}.png,{caption}" for letter in LETTERS for caption in SAID]
    for letter in LETTERS:
        put(folder / "Images", f"{letter}.png")
    (folder / "captions.txt").write_text("\n".join(["image,caption", *rows, *lines, ""]), encoding="utf-8-sig")
    return source(folder)


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


@pytest.mark.parametrize("form", FORMS)
def test_a_byte_order_mark_is_ignored(form: Callable[[Path], None], tmp_path: Path) -> None:
    form(tmp_path)
    before = photos(source(tmp_path))
    for path in tmp_path.rglob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert photos(source(tmp_path)) == before


def test_captions_given_as_one_string_are_one_caption(tmp_path: Path) -> None:
    documented(tmp_path)
    edit(tmp_path, lambda content: content["images"][0].update(captions="A dog runs ."))
    assert photos(source(tmp_path))[0].captions == ("A dog runs .",)


def test_kaggles_form_is_read_and_split_by_name(tmp_path: Path) -> None:
    found = photos(kaggle(tmp_path, 'a.png,"Stop, he said"', "a.png,Stop, he said"))
    assert [photo.name for photo in found] == [f"{letter}.png" for letter in LETTERS]
    assert found[0].captions == (*SAID, "Stop, he said", "Stop, he said")
    assert {photo.captions for photo in found[1:]} == {SAID}
    assert Counter(photo.split for photo in found) == {"train": 16, "val": 2, "test": 2}
    again = photos(kaggle(tmp_path / "again"))
    assert [photo.split for photo in again] == [photo.split for photo in found]


def test_coco_without_splits_is_split_by_name(tmp_path: Path) -> None:
    coco_in_one_file(tmp_path)
    content = json.loads((tmp_path / "captions.json").read_text())
    images = [{key: image[key] for key in ("id", "file_name")} for image in content["images"]]
    write(tmp_path / "captions.json", content | {"images": images})
    assert Counter(photo.split for photo in photos(source(tmp_path))) == {"train": 4, "val": 1, "test": 1}


def test_photographs_are_read_in_the_given_order(tmp_path: Path) -> None:
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


# skipping and refusing


def test_a_missing_photograph_is_skipped_with_the_reason(tmp_path: Path) -> None:
    documented_without_tars(tmp_path)
    (tmp_path / "b.png").unlink()
    listing = read(tmp_path)
    assert [photo.name for photo in listing.photos] == ["a.png", "c.png", "d.png", "e.png", "f.png"]
    assert listing.skipped == {"b.png": f"expected a photograph in {tmp_path}, found none"}


def test_a_photograph_that_its_tar_does_not_hold_is_skipped_with_the_reason(tmp_path: Path) -> None:
    documented(tmp_path)
    pack(tmp_path / "images-train.tar", ("a.png", "c.png"))
    assert read(tmp_path).skipped == {"b.png": f"expected a photograph in {tmp_path}/images-train.tar, found none"}


@pytest.mark.parametrize("captions", [[], ["", " . "]])
def test_a_photograph_without_a_caption_is_skipped_with_the_reason(captions: list[str], tmp_path: Path) -> None:
    documented(tmp_path)
    edit(tmp_path, lambda content: content["images"][1].update(captions=captions))
    listing = read(tmp_path)
    assert "b.png" not in [photo.name for photo in listing.photos]
    assert listing.skipped == {"b.png": "expected a caption, found none"}


def test_a_caption_without_words_is_skipped_and_counted(tmp_path: Path) -> None:
    documented(tmp_path)
    edit(tmp_path, lambda content: content["images"][0].update(captions=["", "A dog runs .", " . "]))
    listing = read(tmp_path)
    assert listing.photos[0].captions == ("A dog runs .",)
    assert listing.skipped == {"2 captions of a.png": "expected words, found none"}


def test_what_was_skipped_is_recorded_with_the_corpus(colours: Backbone, tmp_path: Path) -> None:
    documented_without_tars(tmp_path)
    (tmp_path / "b.png").unlink()
    (tmp_path / "c.png").write_bytes(b"no image")
    corpus = load(source(tmp_path), colours, views=1, min_count=1, cache=tmp_path / "cache")
    assert list(corpus.corrupt) == ["b.png", "c.png"]
    assert corpus.describe()["photographs"] == {"train": 1, "val": 1, "test": 2}


def test_an_annotation_without_an_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    coco(tmp_path)
    stray = {"image_id": 404, "caption": "Nothing to see ."}
    name = "annotations/captions_val2017.json"
    changed = edit(tmp_path, lambda content: content["annotations"].append(stray), name)
    with pytest.raises(CorpusError, match=r"expected an image 404 for the caption 'Nothing to see \.', found none"):
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


def test_a_folder_without_captions_is_an_error_that_shows_the_simplest_form(tmp_path: Path) -> None:
    expected = (
        r"expected captions\.json, captions_train\*\.json, dataset\*\.json or captions\.txt, found none of them; .+"
    )
    with pytest.raises(CorpusError, match=expected + r'"image,caption", then lines as "dog\.jpg,A dog runs\."$'):
        photos(source(tmp_path))


@pytest.mark.parametrize("form", [documented, coco_in_one_file, karpathy])
def test_an_error_shows_an_example_that_is_read(form: Callable[[Path], None], tmp_path: Path) -> None:
    form(tmp_path)
    (path,) = tmp_path.glob("*.json")
    edit(tmp_path, lambda content: content["images"][0].clear(), path.name)
    with pytest.raises(CorpusError, match=r"an example of .+ form: ") as refusal:
        photos(source(tmp_path))
    path.write_text(str(refusal.value).split("form: ")[1])
    put(tmp_path, "dog.jpg")
    (photo,) = read(tmp_path).photos
    assert (photo.name, photo.captions) == ("dog.jpg", ("A dog runs.",))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "the first line is ''"),
        ("a.png,A dog .\n", "the first line is 'a.png,A dog .'"),
        ("image,caption\na.png\n", "line 2 is 'a.png'"),
    ],
)
def test_a_table_of_another_form_is_an_error_that_names_the_line(content: str, fault: str, tmp_path: Path) -> None:
    kaggle(tmp_path)
    (tmp_path / "captions.txt").write_text(content)
    with pytest.raises(CorpusError) as refusal:
        photos(source(tmp_path))
    message = (
        f"{tmp_path}/captions.txt: expected captions in CSV, found otherwise: {fault}; an example of Kaggle's form: "
    )
    assert str(refusal.value).startswith(message)


def test_a_split_whose_photographs_are_all_missing_is_an_error_that_names_one(tmp_path: Path) -> None:
    documented_without_tars(tmp_path)
    (tmp_path / "d.png").unlink()
    fault = rf"split val, found none; d\.png skipped: expected a photograph in {tmp_path}, found none$"
    with pytest.raises(CorpusError, match=fault):
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


def test_the_recorded_checksums_of_a_run_detect_changed_data(colours: Backbone, tmp_path: Path) -> None:
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
