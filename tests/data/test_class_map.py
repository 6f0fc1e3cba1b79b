from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spiritseg.data.class_map import NAMED, binary, load_class_map, named
from spiritseg.errors import ConfigError, DataError
from spiritseg.scenes import CLASSES


@pytest.mark.parametrize(("name", "count"), [("camvid", 11), ("cityscapes", 19), ("ade20k", 150)])
def test_named_maps_have_their_classes(name: str, count: int) -> None:
    classes = named(name)
    assert len(classes) == len(classes.colours) == count
    assert sorted(set(classes.ids.values()) - {255}) == list(range(count))


def test_cityscapes_ids_are_the_official_ones() -> None:
    classes = named("cityscapes")
    raw = np.array([[-1, 0, 6, 7, 8, 9, 11, 16, 17], [18, 23, 24, 28, 29, 31, 32, 33, 255]])
    want = [[255, 255, 255, 0, 1, 255, 2, 255, 5], [255, 10, 11, 15, 255, 16, 17, 18, 255]]
    assert [[classes.ids[int(v)] for v in row] for row in raw] == want
    assert classes.to_train_ids(np.abs(raw).astype(np.uint8)[1:]).tolist() == want[1:]
    assert classes.names[13] == "car"
    assert classes.colours[13] == (0, 0, 142)


def test_camvid_has_the_ids_of_the_embedded_scenes() -> None:
    camvid = named("camvid")
    assert camvid.names == CLASSES
    assert camvid.to_train_ids(np.array([[3, 11]])).tolist() == [[3, 255]]


def test_ade20k_counts_from_one_in_the_benchmark_s_order() -> None:
    """Spot checks over the whole list of objectInfo150.txt: a class lost would shift the rest."""
    ade20k = named("ade20k")
    assert dict(ade20k.ids) == {0: 255, **{i + 1: i for i in range(150)}}
    official = {7: "road", 13: "person", 21: "car", 33: "fence", 55: "runway", 81: "bus",
                94: "pole", 117: "minibike", 128: "bicycle", 150: "flag"}  # fmt: skip
    assert {raw: ade20k.names[ade20k.ids[raw]] for raw in official} == official
    colours = dict(zip(ade20k.names, ade20k.colours, strict=True))
    assert (colours["wall"], colours["car"]) == ((120, 120, 120), (0, 102, 200))
    assert (colours["bicycle"], colours["flag"]) == ((255, 245, 0), (92, 0, 255))


@pytest.mark.parametrize("name", NAMED)
def test_road_merge_puts_background_first_and_keeps_ignored(name: str) -> None:
    whole = named(name)
    road = whole.road()
    assert road.names == ("background", "road")
    for raw, train_id in whole.ids.items():
        is_road = train_id != 255 and whole.names[train_id].lower() == "road"
        assert road.ids[raw] == (255 if train_id == 255 else int(is_road))


def test_merge_without_rest_ignores_the_others() -> None:
    merged = named("camvid").merge({"flat": ["Road", "Pavement"], "car": ["Car"]})
    assert merged.names == ("flat", "car")
    assert merged.to_train_ids(np.array([[3, 4, 8, 0, 11]])).tolist() == [[0, 0, 1, 255, 255]]
    with pytest.raises(ConfigError, match=r"unknown class in merged class 'x'.*Did you mean Road"):
        named("camvid").merge({"x": ["Roads"]})
    with pytest.raises(ConfigError, match=r"merged class 'x': .* list of classes.*'Road'"):
        named("camvid").merge({"x": "Road"})
    with pytest.raises(ConfigError, match="'Road' is in two merged classes"):
        named("camvid").merge({"x": ["Road"], "y": ["Road"]})


def test_foreign_values_name_file_values_and_expected_ones() -> None:
    for mask in (np.array([[0, 12, 13]], np.uint8), np.array([[0, 12, 70000]], np.int32)):
        with pytest.raises(DataError) as caught:
            named("camvid").to_train_ids(mask, "masks/a.png")
        message = str(caught.value)
        assert "masks/a.png" in message
        assert ("values 12, 13 are" if mask.dtype == np.uint8 else "values 12, 70000") in message
        assert "it knows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 for Sky, Building" in message
        assert "target.classes" in message


def test_colourise_paints_classes_and_leaves_ignored_black() -> None:
    picture = named("camvid").colourise(np.array([[3, 255]]))
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[[128, 64, 128], [0, 0, 0]]]


def test_yaml_with_names_ids_and_colours(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(
        "names: [dirt, road]\ncolours: [[1, 2, 3], [4, 5, 6]]\nids: {0: dirt, 255: road, 9: ignore}"
    )
    classes = load_class_map(path)
    assert classes.colours == ((1, 2, 3), (4, 5, 6))
    assert classes.to_train_ids(np.array([[0, 255, 9]])).tolist() == [[0, 1, 255]]


def test_yaml_defaults_and_base(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("names: [a, b, c]")
    plain = load_class_map(path)
    assert dict(plain.ids) == {0: 0, 1: 1, 2: 2, 255: 255}
    assert len(set(plain.colours)) == 3
    path.write_text("base: cityscapes\nmerge: {drivable: [road]}\nrest: other")
    assert load_class_map(path).names == ("other", "drivable")
    path.write_text("base: ade20k")
    assert load_class_map(path) == named("ade20k")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "needs the field names"),
        ("names: [a", "not valid YAML"),
        ("names: [a]\ncolors: []", "unknown field 'colors'. Did you mean colours"),
        ("names: [a, a]", "same name"),
        ("names: [a]\ncolours: [[1, 2]]", "not a class map"),
        ("names: [a, b]\ncolours: [[1, 2, 3], [1, 2, 300]]", "0..255"),
        ("names: [a, b]\ncolours: [[1, 2, 3]]", "one colour a class"),
        ("names: [a]\nids: {0: b}", "unknown class of value 0"),
        ("names: [a, b]\nids: {0: 4}", "leads to class 4"),
        ("names: [a, b]\nids: {99999: 0}", "16-bit"),
        ("base: kitti", "unknown class map 'kitti'"),
        ("names: []", "2 to 253 classes, got 0"),
        ("names: [road]", "got 1. Name the background too"),
        ("base: camvid\nmerge: {road: [Road]}", "or rest: background where classes are merged"),
        ("names: {0: background, 1: road}", "expected a list of words"),
        ("names: road", "got 'road'. Put quotes"),
        ("names: [0, 1]", "quotes around what YAML takes for a number"),
        ("names: [no, road]", "got [False, 'road']"),
        ("names:", "got None"),
        ("{base: cityscapes, ids: {0: road}}", "ids would have no effect"),
        ("{base: camvid, rest: background}", "rest would have no effect"),
        ("{names: [a, b], rest: a}", "rest would have no effect"),
    ],
)
def test_bad_yaml_is_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_class_map(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match=r"cannot read the class map .*none\.yaml"):
        load_class_map(tmp_path / "none.yaml")


def test_require_refuses_another_order() -> None:
    binary().require(("background", "road"))
    with pytest.raises(DataError, match="the network knows the classes road, background"):
        binary().require(("road", "background"))
