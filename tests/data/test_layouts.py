"""Each data set in its layout on disk: found, split, and its labels read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spiritseg.config import Input, Scenes, Target
from spiritseg.data.domains import open_target, open_target_all
from spiritseg.errors import ConfigError, DataError

Write = Callable[..., Path]


def target(root: Path, **fields: object) -> Target:
    return replace(Target(root=str(root), subset="all"), **fields)  # type: ignore[arg-type]


def test_camvid_layout(camvid: Path, small: Input) -> None:
    opened = open_target_all(target(camvid, classes="all"), small)
    assert [len(images) for images in (opened.train, opened.val, opened.test)] == [6, 3, 4]
    assert opened.train.names[0] == "train/seq_000.png"
    assert opened.test.names[0] == "test/seq_000.jpg"
    image, labels = opened.train[0]
    assert (image.shape, image.dtype) == ((3, 40, 56), torch.uint8)
    assert (labels.shape, labels.dtype) == ((40, 56), torch.uint8)
    assert labels[0, :5].tolist() == [0, 3, 4, 255, 0]
    counts = opened.pixels["train"]
    assert counts["Road"] == counts["ignored"] == 6 * 40 * 14
    assert counts["Car"] == 0
    before = opened.train.record()
    assert before["images"] == 6
    (camvid / opened.train.names[0]).write_bytes(b"another")
    assert opened.train.record()["images"] == 6
    assert opened.train.record() != before


def test_cityscapes_layout_and_its_splits(cityscapes: Path, small: Input) -> None:
    opened = open_target_all(target(cityscapes, subset="first:4"), small)
    assert [name.rsplit("/", 1)[1][:13] for name in opened.train.names] == [
        f"aachen_{i:06d}" for i in range(4)
    ]
    assert len(opened.val) == 1  # a tenth of the eight that are left, one at least
    assert not set(opened.val.names) & set(opened.train.names)
    assert all("/val/lindau/" in name for name in opened.test.names)
    assert len(opened.test) == 2
    assert opened.train[0][1][0, :6].tolist() == [1, 0, 0, 255, 255, 1]
    held = {
        tuple(open_target(target(cityscapes, subset="first:4", split_seed=s), small, "val").names)
        for s in range(8)
    }
    assert len(held) > 1  # drawn by split_seed


def test_ade20k_layout_and_its_splits(ade20k: Path, small: Input) -> None:
    opened = open_target_all(target(ade20k, subset="first:4", classes="all"), small)
    assert [len(images) for images in (opened.train, opened.val, opened.test)] == [4, 1, 3]
    assert opened.train.names == [f"images/training/ADE_train_{i:08d}.jpg" for i in range(1, 5)]
    assert opened.val.names[0].startswith("images/training/ADE_train_")
    assert not set(opened.val.names) & set(opened.train.names)
    assert opened.test.names[-1] == "images/validation/ADE_val_00000003.jpg"
    assert opened.train[0][1][0, :5].tolist() == [255, 0, 6, 149, 255]
    assert (len(opened.classes), opened.classes.names[6]) == (150, "road")
    counts = opened.pixels["test"]
    assert counts["ignored"] == counts["wall"] == counts["road"] == counts["flag"] == 3 * 40 * 14


def test_ade20k_without_annotations(ade20k: Path, small: Input) -> None:
    with pytest.raises(DataError, match=re.escape(f"Did you mean {ade20k}?")):
        open_target(target(ade20k.parent), small, "train")
    shutil.rmtree(ade20k / "annotations" / "validation")
    with pytest.raises(DataError, match=r"validation masks: there is no folder"):
        open_target(target(ade20k), small, "test")


@pytest.mark.parametrize("name", ["cityscapes", "ade20k"])
def test_all_training_images_hold_a_tenth_out(
    name: str, small: Input, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(name)
    opened = open_target_all(target(root, dataset=name), small)
    assert (len(opened.train), len(opened.val)) == (11, 1)
    assert opened.classes.names == ("background", "road")
    with pytest.raises(ConfigError, match="first:12 leaves no training image of 12"):
        open_target(target(root, subset="first:12"), small, "val")
    with pytest.raises(ConfigError, match=r"target\.val: .* has its own splits"):
        open_target(target(root, val="fraction:0.5"), small, "train")


def test_folder_layout_draws_val_and_test(folder: Path, small: Input) -> None:
    opened = open_target_all(target(folder, val="fraction:0.2"), small)
    names = [set(images.names) for images in (opened.train, opened.val, opened.test)]
    assert [len(n) for n in names] == [14, 4, 2]
    assert len(set.union(*names)) == 20
    assert opened.train.names == sorted(opened.train.names)
    assert opened.train[0][1][0, :4].tolist() == [0, 1, 255, 0]
    again = open_target(target(folder, val="fraction:0.2"), small, "val")
    other = open_target(target(folder, val="fraction:0.2", split_seed=1), small, "val")
    assert again.names == opened.val.names
    assert other.names != opened.val.names


def test_folder_splits_by_folder_and_list(folder: Path, small: Input, write_image: Write) -> None:
    (folder / "masks").rename(folder / "kept")
    for split, day in (("train", "day0"), ("val", "day1")):
        shutil.move(folder / "images" / day, folder / split / "images" / day)
        shutil.move(folder / "kept" / day, folder / split / "masks" / day)
    (folder / "images").rmdir()
    (folder / "test.txt").write_text("# two of them\nframe_03\nday0/frame_04.png\n\n")
    opened = open_target_all(target(folder, test="list:test.txt"), small)
    assert [Path(name).stem for name in opened.test.names] == ["frame_03", "frame_04"]
    assert (len(opened.train), len(opened.val)) == (8, 10)
    assert opened.val.names[0] == "val/images/day1/frame_10.png"


@pytest.fixture
def divided(folder: Path) -> Path:
    """A folder whose images/ and masks/ are divided into train (12), val (5) and test (3)."""
    days = {"train": range(12), "val": range(12, 17), "test": range(17, 20)}
    for kind in ("images", "masks"):
        for split, numbers in days.items():
            for number in numbers:
                found = next((folder / kind).glob(f"day*/frame_{number:02d}.png"))
                target_file = folder / kind / split / found.parent.name / found.name
                target_file.parent.mkdir(parents=True, exist_ok=True)
                found.rename(target_file)
        for day in (folder / kind).glob("day*"):
            day.rmdir()
    return folder


def _frames(names: list[str]) -> list[int]:
    return [int(Path(name).stem.removeprefix("frame_")) for name in names]


def test_splits_within_images_and_masks(divided: Path, small: Input) -> None:
    opened = open_target_all(target(divided), small)
    found = [_frames(images.names) for images in (opened.train, opened.val, opened.test)]
    assert found == [list(range(12)), list(range(12, 17)), [17, 18, 19]]
    assert opened.val.names[0] == "images/val/day1/frame_12.png"
    (divided / "list.txt").write_text("frame_13\nframe_14\n")
    ruled = open_target_all(target(divided, val="list:list.txt", test="folder:test"), small)
    found = [_frames(images.names) for images in (ruled.train, ruled.val, ruled.test)]
    assert found == [list(range(12)), [13, 14], [17, 18, 19]]  # rules come first
    shutil.rmtree(divided / "images/test")
    shutil.rmtree(divided / "masks/test")
    opened = open_target_all(target(divided), small)  # test is a tenth of the training images
    assert [len(images) for images in (opened.train, opened.val, opened.test)] == [11, 5, 1]


def test_images_beside_splits_are_refused(divided: Path, small: Input) -> None:
    for kind in ("images", "masks"):
        shutil.copytree(divided / kind / "test", divided / kind / "spare")
    with pytest.raises(DataError, match=r"split into train, val, test, but 3 images are in none"):
        open_target(target(divided), small, "train")


def test_a_folder_called_train_alone_is_no_split(divided: Path, small: Input) -> None:
    for kind in ("images", "masks"):
        (divided / kind / "val").rename(divided / kind / "tram")
        (divided / kind / "test").rename(divided / kind / "bus")
    opened = open_target_all(target(divided), small)
    assert [len(images) for images in (opened.train, opened.val, opened.test)] == [16, 2, 2]


def test_scenes_need_no_root(small: Input) -> None:
    config = Target(dataset="scenes", scenes=Scenes(train=3, val=2, test=2, size=(48, 64)))
    opened = open_target_all(config, small)
    assert [len(s) for s in (opened.train, opened.val, opened.test)] == [3, 2, 2]
    image, labels = opened.train[0]
    assert image.shape == (3, 48, 64)
    assert set(labels.flatten().tolist()) <= {0, 1, 255}
    assert not torch.equal(image, opened.val[0][0])  # the splits are worlds of their own
    assert not torch.equal(opened.val[0][0], opened.test[0][0])
    again = open_target(config, small, "train")
    assert torch.equal(again[0][0], image)
    eleven = open_target(replace(config, classes="all"), small, "train")
    assert len(eleven.classes) == 11


def test_auto_detection_says_what_it_knows_and_found(tmp_path: Path, small: Input) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(DataError) as caught:
        open_target(target(tmp_path), small, "train")
    message = str(caught.value)
    for part in (
        "camvid (train/ and trainannot/)",
        "leftImg8bit/",
        "images/training/ and annotations/training/",
        "images/ and masks/",
    ):
        assert part in message
    assert "pictures/, readme.txt" in message
