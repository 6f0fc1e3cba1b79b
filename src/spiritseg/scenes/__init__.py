"""Procedural road scenes with labels: the embedded data set.

Scenes have CamVid's 11 classes and are a function of (seed, index), so nothing is downloaded.
Cast shadows can be switched on and off in the same scene, which makes a controlled experiment
of how networks handle unseen shadows (Wu et al., arXiv:2103.13733, Appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spiritseg.errors import ConfigError, DataError, unknown
from spiritseg.scenes.ground import cast_shadows, paint_ground
from spiritseg.scenes.objects import build
from spiritseg.scenes.shading import PALETTES, Canvas, blur, draw_light, paint_faces, paint_sky
from spiritseg.scenes.world import CAMERAS, Floats, draw_camera

__all__ = ["CAMERAS", "CLASSES", "PALETTES", "STYLES", "Scene", "SceneStyle", "render"]

CLASSES = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree",
    "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
)  # fmt: skip


@dataclass(frozen=True)
class SceneStyle:
    """Shadows, camera and light of scenes.

    Args:
        shadows: whether the sun casts shadows; geometry and labels stay the same.
        camera: target (low, narrow view, left-hand traffic), varied (about the same position,
            other heights and lenses), or proximity (higher, wider, steeper, right-hand traffic).
        palette: overcast, day, dusk, or varied (light, colour and haze drawn per scene).

    Raises:
        ConfigError: for an unknown camera or palette.
    """

    shadows: bool = False
    camera: str = "target"
    palette: str = "overcast"

    def __post_init__(self) -> None:
        """Check the names."""
        if self.camera not in CAMERAS:
            raise ConfigError(unknown("scene camera", str(self.camera), CAMERAS))
        if self.palette not in PALETTES:
            raise ConfigError(unknown("scene palette", str(self.palette), PALETTES))


STYLES: dict[str, SceneStyle] = {
    "target": SceneStyle(shadows=False, camera="target", palette="overcast"),
    "test": SceneStyle(shadows=True, camera="target", palette="varied"),
    "proximity": SceneStyle(shadows=True, camera="proximity", palette="varied"),
}


@dataclass(frozen=True, eq=False)
class Scene:
    """A rendered scene.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8, CamVid's 11 classes in the order of `CLASSES`.
        shadow: (H, W) bool, where a cast shadow falls; all False without shadows.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    shadow: npt.NDArray[np.bool_]


def render(
    seed: int,
    index: int,
    size: tuple[int, int] = (288, 384),
    style: SceneStyle = STYLES["target"],
) -> Scene:
    """Render scene `index` of the world `seed`.

    Layout, camera, light and sensor noise have separate random streams, so changing one part
    of the style does not affect the draws of the others. Shadows multiply the image by a factor
    below 1 where they fall.

    Args:
        seed: at least 0.
        index: at least 0.
        size: (H, W) in pixels, each 16 to 4096.
        style: shadows, camera and palette.

    Returns:
        Image, labels and shadow mask.

    Raises:
        ConfigError: invalid seed, size or style.
        DataError: invalid index.
    """
    _check(seed, index, size, style)
    streams = np.random.SeedSequence((int(seed), int(index))).spawn(4)
    layout, lens, light_rng, sensor = (np.random.default_rng(s) for s in streams)
    camera = draw_camera(style.camera, lens, size)
    world = build(layout, camera.side, camera.height)
    light = draw_light(style.palette, light_rng)
    canvas = Canvas(size)
    sky_rows = int(np.searchsorted(-camera.up, 1e-3))
    paint_sky(canvas, camera, light, light_rng, sky_rows)
    paint_ground(canvas, world, camera, light, layout, sky_rows)
    paint_faces(canvas, [face for _, face in sorted(world.faces)], camera, light)
    factor, shadow = np.ones((1, 1, 1), np.float32), np.zeros(size, dtype=bool)
    if style.shadows:
        dark = cast_shadows(world.casters, light.sun, canvas.place, canvas.receives)
        shadow = dark > 0
        factor = 1 - dark[..., None] * (1 - light.shade)
    return Scene(_exposed(canvas.image, factor, sensor), canvas.labels, shadow)


def _exposed(image: Floats, factor: Floats, sensor: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return the picture in 8 bits, with the lens's blur and vignette and the sensor's grain."""
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) ** 2 for n in image.shape[:2])
    image = blur(image) * (1 - 0.07 * (y[:, None] + x[None, :])).astype(np.float32)[..., None]
    final = np.minimum(image, 1.0) * (factor * 255)
    grain = sensor.integers(0, 256, (2, *image.shape), dtype=np.uint8)
    final += (grain[0] - grain[1].astype(np.float32)) * np.float32(2.8 / 104.5) + np.float32(0.5)
    return np.clip(final, 0.0, 255.0).astype(np.uint8)


def _check(seed: int, index: int, size: tuple[int, int], style: SceneStyle) -> None:
    if not isinstance(style, SceneStyle):
        raise ConfigError(
            f"expected a SceneStyle, got {style!r}; STYLES has {', '.join(sorted(STYLES))}."
        )
    whole = (int, np.integer)
    for name, value, error in (("seed", seed, ConfigError), ("index", index, DataError)):
        if not isinstance(value, whole) or isinstance(value, bool) or value < 0:
            raise error(f"expected a scene {name} of at least 0, got {value!r}.")
    good = isinstance(size, tuple | list) and len(size) == 2
    if not good or not all(isinstance(n, whole) and 16 <= n <= 4096 for n in size):
        raise ConfigError(
            f"expected a scene size (H, W) of two whole numbers from 16 to 4096, got {size!r}."
        )
