"""Folders, globs and files: each input once, links followed, outputs left out and never shared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from spiritseg.errors import ConfigError, DataError
from spiritseg.predict.inputs import Item, Kind, find_images, find_items, plan

_OVERLAYS = ["a/1.png.overlay.png", "a/1.jpg.overlay.png", "2.overlay.png"]


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_gives_each_file_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    _touch(root, "b/1.png", "b/2.JPG", "a.webp", "c.tif", ".hidden/3.png", "b/.4.png", "notes.txt")
    _touch(tmp_path, "other/5.png")
    (root / "one.png").symlink_to(tmp_path / "other/5.png")
    (root / "linked").symlink_to(tmp_path / "other")
    (root / "b/up").symlink_to(root)
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = [path.relative_to(root).as_posix() for path in find_images([root])]
    # linked/5.png and one.png are one file
    assert found == ["a.webp", "b/1.png", "b/2.JPG", "c.tif", "linked/5.png"]
    _touch(root, "film.mp4")
    items = find_items([root / "b/1.png", str(root / "**/*.*"), root])
    assert items[0].name == "1.png"
    assert len(items) == len({item.path.resolve() for item in items}) == 6
    assert [item.name for item in items if item.is_video] == ["film.mp4"]


@pytest.mark.parametrize(
    ("given", "out", "wanted"),
    [
        ("pics", "pics/out", ["day/1.png"]),
        ("pics/**/*.png", "pics/out", ["day/1.png"]),
        ("pics/day", "pics", ["1.png"]),
        ("pics/day", ".", ["1.png"]),
        ("pics/out/3.png", "pics/out", ["3.png"]),
        ("pics/out", "pics", ["3.png"]),
        ("pics", "elsewhere", ["day/1.png", "out/3.png"]),
    ],
)
def test_outputs_below_an_input_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, out: str, wanted: list[str]
) -> None:
    _touch(tmp_path, "pics/day/1.png", "pics/out/3.png")
    monkeypatch.chdir(tmp_path)
    assert [item.name for item in find_items([given], Path(out))] == wanted


@pytest.mark.parametrize(("given", "out"), [("pics", "pics"), ("pics/*.png", "pics"), (".", ".")])
def test_a_folder_that_is_searched_takes_no_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, out: str
) -> None:
    _touch(tmp_path, "pics/1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="the folder of the inputs"):
        find_items([given], Path(out))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("**.png", r"\*\* matches whole folders"),
        ("a**/*.png", r"\*\* matches whole folders"),
        ("nowhere.png", "no such file"),
        ("none*.png", "nothing to segment"),
        ("empty", "nothing to segment"),
        ("~nobody-of-this-name/1.png", "~nobody-of-this-name"),
        ("x" * 5000, "too long"),
        ("*/" + "x" * 5000, "too long"),
        ("**/" + "x" * 300, "too long"),
    ],
)
def test_what_matches_nothing_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        find_items([given])


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("mask", ["a/1.png.png", "a/1.jpg.png", "2.png", "f.mp4", "g.webm"]),
        (
            "overlay",
            [*_OVERLAYS, "f.mp4.overlay", "g.webm.overlay"],
        ),
        (
            "video",
            [*_OVERLAYS, "f.overlay.mp4", "g.overlay.mkv"],
        ),
    ],
)
def test_outputs_are_named_after_their_inputs(kind: Kind, wanted: list[str]) -> None:
    names = ["a/1.png", "a/1.jpg", "2.tif", "f.mp4", "g.webm"]
    planned = plan([Item(Path("in", name), name) for name in names], Path("out"), kind)
    assert [path.relative_to("out").as_posix() for path in planned.values()] == wanted


def test_outputs_are_neither_shared_nor_put_over_inputs(tmp_path: Path) -> None:
    _touch(tmp_path, "a/1.png", "b/1.png")
    with pytest.raises(DataError, match=r"(?s)one output.*1\.png"):
        plan(find_items([tmp_path / "a/1.png", tmp_path / "b"]), tmp_path / "out", "mask")
    with pytest.raises(DataError, match="replace inputs"):
        plan(find_items([tmp_path / "a/1.png"]), tmp_path / "a", "mask")


def test_the_inputs_need_no_torch_and_no_video_library() -> None:
    code = (
        "import sys, spiritseg.predict.predict\n"
        "assert not {'torch', 'av'} & set(sys.modules), set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
