"""The embedded data set: what a controlled experiment on shadows relies on."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from spiritseg.errors import ConfigError, DataError
from spiritseg.scenes import CAMERAS, CLASSES, PALETTES, STYLES, Scene, SceneStyle, render
from spiritseg.scenes.objects import build
from spiritseg.scenes.world import BUILDING, FAR, FENCE, draw_camera, rasterise

SMALL = (96, 128)
ROAD, PAVEMENT = CLASSES.index("Road"), CLASSES.index("Pavement")


def digest(scene: Scene) -> str:
    parts = (scene.image, scene.labels, scene.shadow)
    return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()


def pair(seed: int, index: int, camera: str, palette: str) -> tuple[Scene, Scene]:
    lit, shaded = (
        render(seed, index, SMALL, SceneStyle(shadows, camera, palette))
        for shadows in (False, True)
    )
    return lit, shaded


def shares(style: SceneStyle, count: int) -> np.ndarray:
    """Return the share of each class in each scene, (count, 11)."""
    rows = [
        np.bincount(render(3, i, SMALL, style).labels.ravel(), minlength=len(CLASSES))
        for i in range(count)
    ]
    return np.stack(rows) / (SMALL[0] * SMALL[1])


def test_seed_and_index_each_change_the_scene() -> None:
    base = render(5, 7, SMALL)
    for other in (render(5, 8, SMALL), render(6, 7, SMALL), render(7, 5, SMALL)):
        assert (base.labels != other.labels).mean() > 0.02


def test_another_process_renders_the_same_and_global_state_is_left_alone() -> None:
    np.random.seed(11)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    here = [digest(render(1, i, SMALL, STYLES["test"])) for i in range(3)]
    after = np.random.get_state()[1]  # type: ignore[index] # noqa: NPY002
    np.testing.assert_array_equal(before, after)
    # The other process renders in another order, without this one's caches.
    code = (
        "import hashlib, numpy as np; from spiritseg.scenes import STYLES, render\n"
        "for i in (2, 1, 0):\n"
        f"    s = render(1, i, {SMALL}, STYLES['test'])\n"
        "    b = b''.join(np.ascontiguousarray(p).tobytes() for p in"
        " (s.image, s.labels, s.shadow))\n"
        "    print(hashlib.sha256(b).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split()[::-1] == here


@pytest.mark.parametrize("camera", sorted(CAMERAS))
@pytest.mark.parametrize("palette", sorted(PALETTES))
def test_shadows_change_the_image_alone_and_only_where_they_lie(camera: str, palette: str) -> None:
    lowered = []
    for index in range(4):
        lit, shaded = pair(2, index, camera, palette)
        np.testing.assert_array_equal(lit.labels, shaded.labels)
        assert not lit.shadow.any()
        where = shaded.shadow
        np.testing.assert_array_equal(lit.image[~where], shaded.image[~where])
        assert (shaded.image[where] <= lit.image[where]).all()
        if where.any():
            lowered.append(float(shaded.image[where].mean() / lit.image[where].mean()))
    assert lowered
    assert float(np.mean(lowered)) < 0.75


def test_shadows_lie_across_road_and_pavement() -> None:
    covered = {ROAD: [], PAVEMENT: []}  # type: dict[int, list[float]]
    for index in range(25):
        scene = render(4, index, SMALL, STYLES["test"])
        assert not scene.shadow[scene.labels == CLASSES.index("Sky")].any()
        for label, values in covered.items():
            values.append(float(scene.shadow[scene.labels == label].mean()))
    road = np.array(covered[ROAD])
    assert 0.1 < road.mean() < 0.7
    assert ((road > 0.03) & (road < 0.97)).mean() > 0.6  # an edge crosses most roads
    assert 0.1 < np.nanmean(covered[PAVEMENT]) < 0.9


@pytest.mark.parametrize("name", sorted(STYLES))
def test_every_class_appears_with_a_sensible_share(name: str) -> None:
    each = shares(STYLES[name], 30)
    mean = dict(zip(CLASSES, each.mean(0).tolist(), strict=True))
    assert 0.15 < mean["Road"] < 0.45
    assert (each[:, ROAD] > 0.05).all()
    assert 0.02 < mean["Pavement"] < 0.25
    assert 0.05 < mean["Sky"] < 0.35
    assert 0.08 < mean["Building"] < 0.45
    assert 0.03 < mean["Tree"] < 0.30
    assert 0.01 < mean["Car"] < 0.15
    for label in ("Pole", "SignSymbol", "Fence", "Pedestrian", "Bicyclist"):
        assert 0.001 < mean[label] < 0.06, label
    assert each.sum(1) == pytest.approx(1.0)  # no label beyond the eleven


def test_the_ground_is_below_and_the_sky_above() -> None:
    for index in range(10):
        labels = render(0, index, SMALL).labels
        assert not (labels[: SMALL[0] // 4] == ROAD).any()
        assert not (labels[-SMALL[0] // 4 :] == CLASSES.index("Sky")).any()
        # The camera keeps to its lane, so only what stands on the road hides the road ahead.
        ahead = labels[-2:, SMALL[1] // 2]
        assert np.isin(ahead, [ROAD, CLASSES.index("Car"), CLASSES.index("Pedestrian")]).all()


def test_palettes_share_the_geometry_and_cameras_do_not() -> None:
    by_palette = [render(9, 1, SMALL, SceneStyle(palette=p)) for p in sorted(PALETTES)]
    for other in by_palette[1:]:
        np.testing.assert_array_equal(by_palette[0].labels, other.labels)
        assert (by_palette[0].image != other.image).mean() > 0.5
    target, proximity = (render(9, 1, SMALL, SceneStyle(camera=c)) for c in ("target", "proximity"))
    assert (target.labels != proximity.labels).mean() > 0.1


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (200, 40)])
def test_sizes_are_kept(size: tuple[int, int]) -> None:
    scene = render(0, 0, size, STYLES["test"])
    assert scene.image.shape == (*size, 3)
    assert scene.labels.shape == scene.shadow.shape == size
    assert [a.dtype.name for a in (scene.image, scene.labels, scene.shadow)] == [
        "uint8",
        "uint8",
        "bool",
    ]


def depth_buffered_labels(seed: int, index: int, style: SceneStyle) -> np.ndarray:
    """Label each pixel by the nearest of all faces: slow, and without any painting order."""
    streams = np.random.SeedSequence((seed, index)).spawn(4)
    layout, lens = (np.random.default_rng(s) for s in streams[:2])
    view = draw_camera(style.camera, lens, SMALL)
    faces = [f for _, f in build(layout, view.side, view.height).faces]
    nearest, labels = np.full(SMALL, np.inf), np.full(SMALL, 255)
    rays = np.stack(np.broadcast_arrays(
        view.across[None, :], view.up[:, None], view.forward[:, None]), -1)  # fmt: skip
    for face in faces:
        hit = rasterise([face], view) > 0
        normal = np.array(face.normal)
        offset = normal @ (np.array(face.points[0]) - (0.0, view.height, 0.0))
        depth = offset / np.where(hit, rays @ normal, 1.0)
        closer = hit & (depth <= nearest + 0.02)  # what is drawn on a face follows it
        nearest[closer], labels[closer] = depth[closer], face.label
    return labels


@pytest.mark.parametrize("name", ["target", "proximity"])
def test_the_painting_order_agrees_with_a_depth_buffer(name: str) -> None:
    for index in (0, 3, 8):
        expected = depth_buffered_labels(8, index, STYLES[name])
        got = render(8, index, SMALL, STYLES[name]).labels
        standing = expected != 255
        assert standing.mean() > 0.2
        # A crown that reaches into a wall is painted whole; the buffer cuts it off.
        assert (got[standing] == expected[standing]).mean() > 0.985


def test_a_scene_is_the_same_view_at_another_size() -> None:
    large, small = render(0, 3, (192, 256)).labels, render(0, 3, SMALL).labels
    assert (large[::2, ::2] == small).mean() > 0.9


@pytest.mark.parametrize(
    ("error", "kwargs", "says"),
    [
        (ConfigError, {"seed": -1}, "seed"),
        (ConfigError, {"seed": 0.5}, "seed"),
        (DataError, {"index": -1}, "index"),
        (DataError, {"index": True}, "index"),
        (ConfigError, {"size": (8, 64)}, "16 to 4096"),
        (ConfigError, {"size": (64.0, 64)}, "whole numbers"),
        (ConfigError, {"size": (64,)}, "two"),
        (ConfigError, {"size": 64}, "two"),
        (ConfigError, {"style": "test"}, "STYLES has proximity, target, test"),
    ],
)
def test_bad_arguments(error: type[Exception], kwargs: dict[str, object], says: str) -> None:
    arguments: dict[str, object] = {"seed": 0, "index": 0, "size": SMALL, **kwargs}
    with pytest.raises(error, match=says):
        render(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"targt.*Did you mean target"):
        SceneStyle(camera="targt")


@pytest.mark.parametrize("side", [-1, 1])
def test_the_layout_hides_no_house_in_the_road(side: int) -> None:
    for seed in range(6):
        world = build(np.random.default_rng(seed), side, 1.4)
        walls = world.half + min(side.width for side in world.sides.values())
        for _, face in world.faces:
            if face.label in (BUILDING, FENCE):
                near = [p for p in face.points if p[2] < FAR - 1]
                gaps = [abs(p[0] - world.centre(p[2])) for p in near]
                assert min(gaps, default=99.0) >= walls - 1e-6
