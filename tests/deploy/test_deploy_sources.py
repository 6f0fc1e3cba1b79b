"""What inputs stand for: every file once, links followed, outputs of an earlier call left out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spiritseg import images
from spiritseg.deploy.sources import find_images, find_items
from spiritseg.errors import ConfigError, DataError
from spiritseg.images import files_below


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _link(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("no symbolic links here")


def _names(items: list[Path], below: Path) -> list[str]:
    return [path.relative_to(below).as_posix() for path in items]


def test_training_and_deployment_find_the_same_images(tmp_path: Path) -> None:
    root = tmp_path / "root"
    _touch(root, "b/1.png", "b/deep/2.JPG", "a.webp", ".hidden/3.png", "b/.4.png", "notes.txt")
    _touch(tmp_path, "other/5.png")
    _link(root / "linked", tmp_path / "other")
    _link(root / "one.png", tmp_path / "other/5.png")
    wanted = ["a.webp", "b/1.png", "b/deep/2.JPG", "linked/5.png", "one.png"]
    assert _names(images.find_images(root), root) == wanted
    found = _names(find_images([root]), root)
    assert found == wanted[:-1]  # linked/5.png and one.png are one file


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    _touch(tmp_path, "a/1.png", "b/2.png")
    for link, target in (("a/up", "."), ("a/b", "b"), ("b/a", "a"), ("b/self", "b")):
        _link(tmp_path / link, tmp_path / target)
    assert sorted(path.name for path in files_below(tmp_path, (".png",))) == ["1.png", "2.png"]
    assert sorted(path.name for path in find_images([tmp_path])) == ["1.png", "2.png"]


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path, "a/1.png", "closed/2.png", ".hidden/3.png", "lost+found/4.png")
    scan = os.scandir

    def closed(path: Any) -> Any:
        if Path(path).name in ("closed", ".hidden", "lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)  # the mode 000 means nothing to root
    with pytest.raises(DataError, match=r"into the folder .*/closed: Permission denied\. Make it"):
        files_below(tmp_path, (".png",))
    (tmp_path / "closed").rename(tmp_path / "open")
    assert _names(files_below(tmp_path, (".png",)), tmp_path) == ["a/1.png", "open/2.png"]


def test_a_link_that_leads_nowhere_is_nothing_to_segment(tmp_path: Path) -> None:
    _touch(tmp_path, "1.png")
    _link(tmp_path / "2.png", tmp_path / "gone.png")
    assert _names(find_images([tmp_path]), tmp_path) == ["1.png"]


@pytest.mark.parametrize(
    ("given", "out", "wanted"),
    [
        ("pics", "pics/out", ["pics/day/1.png", "pics/day/2.png"]),
        ("pics/**/*.png", "pics/out", ["pics/day/1.png", "pics/day/2.png"]),
        ("pics/day", "pics", ["pics/day/1.png", "pics/day/2.png"]),
        ("pics/day", ".", ["pics/day/1.png", "pics/day/2.png"]),
        ("pics/day", "pics/day", ["pics/day/1.png", "pics/day/2.png"]),
        ("*.png", ".", ["0.png"]),
        ("pics/out/3.png", "pics/out", ["pics/out/3.png"]),
        ("pics/out", "pics", ["pics/out/3.png"]),
        ("camera:0", ".", ["0"]),
    ],
)
def test_only_an_out_below_an_input_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, out: str, wanted: list[str]
) -> None:
    _touch(tmp_path, "0.png", "pics/day/1.png", "pics/day/2.png", "pics/out/3.png")
    monkeypatch.chdir(tmp_path)
    items = find_items([given], Path(out))
    assert [item.path.as_posix() for item in items] == wanted


def test_what_was_made_is_found_by_its_own_name_alone(tmp_path: Path) -> None:
    _touch(tmp_path, "0.png", "0.overlay.png", "drive.mp4.overlay/000000.png")
    made = {tmp_path / "0.overlay.png", tmp_path / "drive.mp4.overlay"}
    made = {path.resolve() for path in made}
    for given in (tmp_path, tmp_path / "*.png", tmp_path / "**/*.png"):
        assert [item.name for item in find_items([given], tmp_path, made)] == ["0.png"]
    own = find_items([tmp_path / "0.overlay.png"], tmp_path, made)
    assert [item.name for item in own] == ["0.overlay.png"]
    with pytest.raises(ConfigError, match="made by an earlier call"):
        find_items([tmp_path / "*.overlay.png"], tmp_path, made)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("**.png", r"\*\* stands for folders"),
        ("a**/*.png", r"\*\* stands for folders"),
        ("nowhere.png", "no such file"),
        ("camera:", "nothing to segment"),
        ("none*.png", "nothing to segment"),
    ],
)
def test_what_stands_for_nothing_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        find_items([given])


def test_a_home_of_nobody_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="~nobody-of-this-name"):
        find_items(["~nobody-of-this-name/1.png"])


def test_finding_files_needs_no_torch_and_no_video_library() -> None:
    code = (
        "import sys, spiritseg.deploy.sources, spiritseg.deploy.video_reader\n"
        "assert not {'torch', 'av'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
