from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spiritseg.config import Experiment, Input, Proximity, Stage, Target
from spiritseg.data.augment import prepare
from spiritseg.data.datasets import EvalData
from spiritseg.data.domains import (
    open_domains,
    open_proximity,
    open_target,
    open_target_all,
    resolve_classes,
)
from spiritseg.errors import BadImageError, ConfigError, DataError

Write = Callable[..., Path]


def target(root: Path, **fields: object) -> Target:
    return replace(Target(root=str(root), subset="all"), **fields)  # type: ignore[arg-type]


def stems(names: list[str]) -> list[str]:
    return [Path(name).stem for name in names]


@pytest.mark.parametrize(
    ("subset", "want"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("first:2", [0, 1]),
        ("even:3", [0, 2, 4]),
        ("even:4", [0, 1, 3, 4]),
        ("list:names.txt", [1, 4]),
    ],
)
def test_subsets(camvid: Path, small: Input, subset: str, want: list[int]) -> None:
    (camvid / "names.txt").write_text("seq_004\n# a comment\ntrain/seq_001.png\n")
    config = target(camvid, subset=subset)
    assert stems(open_target(config, small, "train").names) == [f"seq_{i:03d}" for i in want]
    assert len(open_target(config, small, "test")) == 4


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ("first:7", "first:7 asks for 7 images, there are 6. Use all, or first:6"),
        ("first:0", "N from 1"),
        ("some", "expected all, first:N, even:N"),
        ("list:none.txt", "no list file none.txt or"),
        ("list:names.txt", "example, train/seq_000.png:\n  seq_999: not found"),
    ],
)
def test_impossible_subsets(camvid: Path, small: Input, subset: str, message: str) -> None:
    (camvid / "names.txt").write_text("seq_004\nseq_999\n")
    with pytest.raises((ConfigError, DataError), match=message):
        open_target(target(camvid, subset=subset), small, "train")


def test_missing_root_and_folders(camvid: Path, small: Input) -> None:
    with pytest.raises(ConfigError, match=r"target\.root: expected the folder.*--target\.dataset"):
        open_target(Target(), small, "train")
    with pytest.raises(DataError, match=r"no folder .*none.*Found in .*: camvid/"):
        open_target(target(camvid.parent / "none"), small, "train")
    for name in ("._seq_000.png", ".DS_Store"):  # hidden files are left out
        (camvid / "train" / name).write_bytes(b"x")
    assert len(open_target(target(camvid), small, "train")) == 6
    shutil.rmtree(camvid / "val")
    with pytest.raises(DataError, match=r"val images: there is no folder .*val"):
        open_target(target(camvid), small, "val")
    with pytest.raises(DataError, match="is a file; expected a folder"):
        open_target(target(camvid / "train" / "seq_000.png"), small, "train")


def test_no_images(camvid: Path, small: Input) -> None:
    for path in (camvid / "train").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"no images in .*train.*\.jpg, \.jpeg, \.png.*is empty"):
        open_target(target(camvid), small, "train")


def test_images_and_masks_without_each_other_are_all_listed(
    camvid: Path, small: Input, write_image: Write, write_mask: Write
) -> None:
    for i in range(12):
        write_image(camvid / "train" / f"alone_{i:02d}.png")
    write_mask(camvid / "trainannot" / "widow.png")
    with pytest.raises(DataError) as caught:
        open_target(target(camvid), small, "train")
    message = str(caught.value)
    assert "12 images without a mask" in message
    assert "alone_00.png" in message
    assert "... and 2 more" in message
    assert "1 masks without an image" in message
    assert "widow.png" in message
    write_image(camvid / "train" / "seq_000.jpg")
    with pytest.raises(DataError, match="two files of one name"):
        open_target(target(camvid), small, "train")


def test_masks_that_do_not_fit(camvid: Path, small: Input, write_mask: Write) -> None:
    write_mask(camvid / "testannot" / "seq_002.png", (0, 77))
    with pytest.raises(DataError, match=r"seq_002\.png: values 77 are not .* it knows 0, 1, 2"):
        open_target_all(target(camvid), small)
    write_mask(camvid / "testannot" / "seq_002.png", (0, 3))
    for i in (1, 2):
        write_mask(camvid / "trainannot" / f"seq_00{i}.png", size=(40, 60))
    with pytest.raises(DataError, match="2 masks do not fit") as caught:
        open_target(target(camvid), small, "train")
    assert "seq_001.png is 40 x 60" in str(caught.value)
    assert "seq_002.png is 40 x 60" in str(caught.value)
    for path in sorted((camvid / "trainannot").iterdir()):
        write_mask(path, (11,))
    with pytest.raises(DataError, match="all pixels of the training images are ignored"):
        open_target_all(target(camvid), small)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"val": "fraction:2"}, r"target\.val: expected auto, .* fraction:F with F between.*:2'"),
        ({"val": "fraction:x"}, r"target\.val: expected auto, folder:DIR"),
        ({"val": "half"}, r"target\.val: expected auto, folder:DIR"),
        ({"val": "folder:"}, r"target\.val: expected auto, folder:DIR"),
        ({"val": "fraction:0.9", "test": "fraction:0.5"}, "no images are left to train on"),
        ({"val": "list:a.txt", "test": "list:a.txt"}, "in two splits"),
    ],
)
def test_split_rules_are_checked(
    folder: Path, small: Input, rules: dict[str, str], said: str
) -> None:
    (folder / "a.txt").write_text("frame_03\n")
    with pytest.raises((ConfigError, DataError), match=said):
        open_target_all(target(folder, **rules), small)


def test_bad_images_stop_or_are_left_out(camvid: Path, small: Input) -> None:
    content = (camvid / "train" / "seq_001.png").read_bytes()
    (camvid / "train" / "seq_001.png").write_bytes(content[: len(content) // 2])
    (camvid / "testannot" / "seq_003.png").write_bytes(b"")
    with pytest.raises(BadImageError, match=r"train/seq_001\.png") as caught:
        open_target_all(target(camvid), small)
    assert pickle.loads(pickle.dumps(caught.value)).path == caught.value.path
    opened = open_target_all(target(camvid), replace(small, skip_bad=True))
    assert stems(opened.train.names) == ["seq_000", "seq_002", "seq_003", "seq_004", "seq_005"]
    assert opened.train.skipped == [str(camvid / "train" / "seq_001.png")]
    assert opened.test.skipped == [str(camvid / "testannot" / "seq_003.png")]
    for path in (camvid / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(BadImageError, match=r"seq_000\.png: .*and 5 others, such as .*seq_001"):
        open_target(target(camvid), small, "train")
    with pytest.raises(DataError, match="no image is left"):
        open_target(target(camvid), replace(small, skip_bad=True), "train")


def test_crop_must_fit_the_training_images(camvid: Path, small: Input, write_image: Write) -> None:
    large = replace(small, crop=41)
    with pytest.raises(
        ConfigError, match=r"41 x 41 does not fit 6 of 6.*\n  train/seq_000.png: 40 x 56"
    ):
        open_target(target(camvid), large, "train")
    assert len(open_target(target(camvid), large, "test")) == 4


def test_the_same_image_in_two_splits(camvid: Path, small: Input) -> None:
    shutil.copy(camvid / "train" / "seq_002.png", camvid / "val" / "seq_001.png")
    with pytest.raises(DataError, match=r"1 images are in two splits") as caught:
        open_target_all(target(camvid), small)
    assert "val/seq_001.png (val) is train/seq_002.png (train)" in str(caught.value)


def test_folder_says_its_classes(folder: Path, small: Input) -> None:
    config = target(folder, classes="all")
    with pytest.raises(ConfigError, match=r"Put a classes\.yaml with names"):
        open_target(config, small, "train")
    (folder / "classes.yaml").write_text("names: [Sand, Road]\nids: {0: Sand, 1: Road, 255: Sand}")
    assert open_target(config, small, "train").classes.names == ("Sand", "Road")
    assert open_target(target(folder), small, "train").classes.names == ("background", "road")


def test_class_map_from_a_file_or_by_name(folder: Path, tmp_path: Path) -> None:
    (folder / "mine.yaml").write_text("names: [a, b]")
    for path in ("mine.yaml", str(folder / "mine.yaml")):
        assert resolve_classes(Target(classes=path), "folder", folder).names == ("a", "b")
    assert len(resolve_classes(Target(classes="ade20k"), "folder", folder)) == 150
    with pytest.raises(ConfigError, match=r"unknown classes 'rode'\. Did you mean road"):
        resolve_classes(Target(classes="rode"), "camvid", tmp_path)


def test_masks_of_0_and_255_are_not_taken_for_empty(
    folder: Path, small: Input, write_mask: Write
) -> None:
    for path in sorted((folder / "masks").rglob("*.png")):
        write_mask(path, (0, 255))
    with pytest.raises(DataError, match=r"no pixel .* is road.*ids: \{0: 0, 255: 1\}"):
        open_target_all(target(folder), small)


def test_pickling_leaves_pictures_behind(camvid: Path, small: Input) -> None:
    images = open_target(target(camvid), small, "train")
    copy = pickle.loads(pickle.dumps(images))
    assert len(copy.cache) == 0
    assert torch.equal(copy[2][0], images[2][0])
    assert len(copy.cache) == 1


def test_evaluation_gives_whole_images(camvid: Path, small: Input) -> None:
    images = open_target(target(camvid), small, "test")
    sample = EvalData(images, small)[1]
    assert torch.equal(sample["image"], prepare(images[1][0], small))
    assert sample["image"].shape == (3, 20, 28)
    assert torch.equal(sample["labels"], images[1][1].long())
    assert sample["index"] == 1
    with pytest.raises(IndexError):  # so that a plain loop over it ends
        EvalData(images, small)[4]


@pytest.fixture
def unlabelled(tmp_path: Path, write_image: Write) -> Path:
    root = tmp_path / "near"
    for i, suffix in enumerate((".jpg", ".JPEG", ".png", ".webp", ".bmp", ".tif", ".TIFF", ".png")):
        write_image(root / f"drive{i % 3}" / "left" / f"{i}{suffix}", size=(24, 60))
    (root / "notes.txt").write_text("x")
    return root


def test_proximity_folder(unlabelled: Path, small: Input) -> None:
    train, held_out = open_proximity(Proximity(root=str(unlabelled), held_out=0.25), small)
    assert (len(train), len(held_out)) == (6, 2)
    assert not set(train.names) & set(held_out.names)
    assert train.names == sorted(train.names)
    assert train[0].shape == (3, 32, 80)  # 24 x 60 resized up for a crop of 32
    assert train[0] is train[0]
    assert train.part(train.items[:1])[0] is train[0]  # parts share what is decoded


def test_proximity_subsets_and_several_roots(unlabelled: Path, small: Input) -> None:
    roots = [str(unlabelled / "drive0"), str(unlabelled / "drive1"), str(unlabelled / "drive0")]
    train, held_out = open_proximity(Proximity(root=roots, held_out=0), small)
    assert (len(train), len(held_out)) == (6, 0)
    train, _ = open_proximity(Proximity(root=roots[:2], held_out=0), small)
    assert train.names[0] == "drive0/left/0.jpg"
    train, held_out = open_proximity(Proximity(root=str(unlabelled), subset="even:4"), small)
    assert (len(train), len(held_out)) == (3, 1)


def test_no_proximity(small: Input) -> None:
    train, held_out = open_proximity(Proximity(), small)
    assert len(train) == len(held_out) == 0
    with pytest.raises(ConfigError, match=r"proximity\.root: expected a folder"):
        open_proximity(Proximity(dataset="folder"), small)


def test_proximity_problems(unlabelled: Path, small: Input) -> None:
    (unlabelled / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .*empty, at any depth.*\.webp"):
        open_proximity(Proximity(root=[str(unlabelled), str(unlabelled / "empty")]), small)
    with pytest.raises(DataError, match=r"proximity\.root: there is no folder"):
        open_proximity(Proximity(root=str(unlabelled / "none")), small)
    (unlabelled / "drive0" / "left" / "0.jpg").write_bytes(b"")
    with pytest.raises(BadImageError, match=r"0\.jpg: the file is empty"):
        open_proximity(Proximity(root=str(unlabelled)), small)
    skipping = replace(small, skip_bad=True)
    train, held_out = open_proximity(Proximity(root=str(unlabelled)), skipping)
    assert (len(train), len(held_out)) == (6, 1)
    assert train.skipped == [str(unlabelled / "drive0" / "left" / "0.jpg")]


def test_all_images_of_an_experiment(camvid: Path, unlabelled: Path, small: Input) -> None:
    near = Proximity(root=str(unlabelled))
    experiment = Experiment(target=target(camvid), proximity=near, input=small)
    domains = open_domains(experiment)
    assert domains.classes.names == ("background", "road")
    assert [len(i) if i is not None else None for i in domains.train(Stage())] == [6, None]
    mixed = domains.train(Stage(images="target+proximity"))
    assert [len(i) if i is not None else None for i in mixed] == [6, 7]
    assert domains.train(Stage(images="proximity"))[0] is None
    assert {name: len(data) for name, data in domains.held_out().items()} == {
        "target": 3, "proximity": 1,
    }  # fmt: skip
    assert len(domains.evaluation("test")) == len(domains.test) == 4
    assert domains.names("val")[0] == "val/seq_000.png"
    assert domains.skipped() == []
    with pytest.raises(ConfigError, match=r"unknown split 'tset'\. Did you mean test"):
        domains.evaluation("tset")
    alone = open_domains(experiment, target_only=True)
    assert list(alone.held_out()) == ["target"]
    with pytest.raises(ConfigError, match="trains on proximity images, got none"):
        alone.train(Stage(images="target+proximity"))


def test_proximity_images_must_not_be_test_images(camvid: Path, small: Input) -> None:
    def experiment(folder: str) -> Experiment:
        near = Proximity(root=str(camvid / folder))
        return Experiment(target=target(camvid), proximity=near, input=small)

    assert len(open_domains(experiment("train")).proximity[0]) == 5
    with pytest.raises(DataError, match=r"\(val or test\) is seq_000.jpg \(proximity\)"):
        open_domains(experiment("test"))


@pytest.mark.data
def test_real_camvid_and_kitti(shared_data: Path) -> None:
    experiment = Experiment(
        target=Target(root=str(shared_data / "camvid")),
        proximity=Proximity(root=str(shared_data / "kitti")),
        input=Input(cache_mib=64),
    )
    domains = open_domains(experiment)
    sizes = [len(domains.names(split)) for split in ("train", "val", "test")]
    assert sizes == [64, 101, 233]
    assert domains.names("train")[0] == "train/0001TP_006690.jpg"
    assert sum("0001TP" in name for name in domains.names("train")) == 62
    counts = domains.target.pixels["train"]
    assert sum(counts.values()) == 64 * 360 * 480
    assert 0.1 < counts["road"] / sum(counts.values()) < 0.4
    assert (len(domains.proximity[0]), len(domains.proximity[1])) == (112, 16)
    assert min(domains.proximity[0][0].shape[1:]) == 256


def test_a_split_alone_is_opened_whatever_the_training_images_are(
    folder: Path, small: Input
) -> None:
    config = target(folder, subset="first:64", test="fraction:0.5")  # there are 20
    assert len(open_target(config, replace(small, crop=512), "test")) == 10
    whole = replace(config, subset="all")
    assert open_target(config, small, "val").names == open_target(whole, small, "val").names
    with pytest.raises(ConfigError, match="first:64 asks for 64 images, there are"):
        open_target(config, small, "train")
