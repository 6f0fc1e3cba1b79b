"""Ranking folders: the known order of the procedural scenes; the command; bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spiritseg.cli import main
from spiritseg.config import Target
from spiritseg.errors import ConfigError, DataError
from spiritseg.models import Segmenter, teacher
from spiritseg.proximity import Ranking, _files, proximity
from spiritseg.scenes import SceneStyle, render

SIZE = (64, 96)
SIDE = 64


def _write(folder: Path, pictures: list[np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
    return folder


def _scenes(folder: Path, seed: int, n: int, style: SceneStyle | None = None) -> Path:
    style = style or SceneStyle()
    return _write(folder, [render(seed, i, SIZE, style).image for i in range(n)])


@pytest.fixture(scope="module")
def network() -> Segmenter:
    return teacher("efficientnet_lite0", "pretrained")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    _scenes(root / "target", 0, 24)
    _scenes(root / "same", 1, 24)
    _scenes(root / "few", 2, 8)
    _scenes(root / "shadows", 3, 24, SceneStyle(shadows=True))
    _scenes(root / "dusk", 4, 24, SceneStyle(palette="dusk"))
    noise = np.random.default_rng(0).integers(0, 256, (12, *SIZE, 3), dtype=np.uint8)
    _write(root / "noise", list(noise))
    return root


@pytest.fixture(scope="module")
def ranking(folders: Path, network: Segmenter) -> Ranking:
    others = [folders / name for name in ("noise", "dusk", "few", "shadows", "same")]
    return proximity(folders / "target", others, network, side=SIDE)


def test_scenes_are_ranked_in_the_known_order(ranking: Ranking) -> None:
    names = [c.name.split("/")[-1] for c in ranking.candidates]
    assert [n for n in names if n != "few"] == ["same", "shadows", "dusk", "noise"]
    assert names.index("few") < names.index("dusk")  # eight images are not far for their number
    found = dict(zip(names, ranking.candidates, strict=True))
    assert not found["same"].distance.beyond_noise
    assert found["dusk"].distance.beyond_noise
    assert found["noise"].distance.value > 0.4


def test_few_images_of_the_same_kind_are_as_near_as_many(ranking: Ranking) -> None:
    found = {c.name.split("/")[-1]: c.distance for c in ranking.candidates}
    few, same, dusk = found["few"], found["same"], found["dusk"]
    assert few.raw > 1.6 * same.raw  # what the correction is for
    assert abs(few.value - same.value) < 0.35 * (few.raw - same.raw)
    assert few.value < 0.5 * dusk.value


def test_advice(ranking: Ranking) -> None:
    advice = {c.name.split("/")[-1]: ranking.advice(c) for c in ranking.candidates}
    assert advice["same"].startswith("more of the same")
    assert advice["dusk"].startswith("similar")
    assert advice["noise"].startswith("another kind of picture")
    assert "--toward" in ranking.summary()
    table = ranking.table()
    assert table[0] == ["folder", "images", "distance %", "diversity"]
    assert len(table) == 6


def test_toward_prefers_what_leads_there(folders: Path, network: Segmenter) -> None:
    others = [folders / "same", folders / "noise", folders / "shadows"]
    dusk = _scenes(folders / "later", 9, 16, SceneStyle(palette="dusk"))
    found = proximity(
        folders / "target", [*others, dusk], network, toward=folders / "dusk", side=SIDE
    )
    assert found.best is not None
    assert found.best.name.endswith("later")
    gains = {c.name.split("/")[-1]: c.gain for c in found.candidates}
    assert gains["later"] is not None
    assert gains["later"].beyond_noise
    assert gains["noise"] is not None
    assert gains["noise"].value < 0
    assert found.target is not None
    assert found.target.beyond_noise
    assert "most likely to help" in found.summary()
    assert "gain %" in found.table()[0]


def test_own_images_are_left_out(folders: Path, network: Segmenter, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number in range(3):
        (mixed / f"own{number}.png").symlink_to(folders / f"target/{number:03d}.png")
        (mixed / f"new{number}.png").symlink_to(folders / f"same/{number:03d}.png")
    (mixed / "torn.png").write_bytes(b"\x89PNG")
    found = proximity(folders / "target", [mixed], network, side=SIDE, limit=8)
    assert (found.candidates[0].images, found.candidates[0].shared) == (3, 3)
    assert [Path(p).name for p in found.skipped] == ["torn.png"]
    assert "3 images left out" in found.summary()


def test_command(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["proximity", "--target", str(folders / "target"), "--side", str(SIDE), "--limit", "6"]
    words += ["--candidates", str(folders / "same"), str(folders / "noise")]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--out", str(tmp_path / "p.png")])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "distance %" in out
    assert "noise" in out
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"), dtype=int)
    assert (np.abs(pixels - (0x00, 0x72, 0xB2)).sum(-1) < 30).sum() > 50  # points and intervals


def test_bad_input_is_one_clear_error(folders: Path, network: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        proximity(folders / "target", [folders / "nowhere"], network)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        proximity(folders / "target", [tmp_path / "empty"], network)
    with pytest.raises(DataError, match="target's own"):
        proximity(folders / "target", [folders / "target"], network)
    with pytest.raises(ConfigError, match="side"):
        proximity(folders / "target", [folders / "same"], network, side=3)


def test_the_target_is_looked_at_where_training_looks(tmp_path: Path) -> None:
    root = tmp_path / "cityscapes"
    for number in range(80):
        stem = f"aachen_{number:06d}_000019"
        for kind, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            path = root / kind / "train/aachen" / f"{stem}_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(path)
    found = [path.name for path in _files(root, Target.subset)]
    assert found == [f"aachen_{number:06d}_000019_leftImg8bit.png" for number in range(64)]
