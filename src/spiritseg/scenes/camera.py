"""How a procedural road scene is seen and lit: the camera, the light, faces onto pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from spiritseg.scenes.world import Colour, Face

__all__ = [
    "CAMERAS",
    "PALETTES",
    "Camera",
    "Floats",
    "Light",
    "draw_camera",
    "draw_light",
    "rasterise",
]

Floats = npt.NDArray[np.float32]
_NEAR = 0.25  # metres before the camera at which surfaces are cut


@dataclass(frozen=True)
class CameraRanges:
    """Ranges of a camera's draws; metres, degrees (pitch downwards, fov across)."""

    height: tuple[float, float]
    pitch: tuple[float, float]
    fov: tuple[float, float]
    side: int


@dataclass(frozen=True)
class Light:
    """The light of a scene: colours are factors, directions point to the sun."""

    ambient: float
    tint: Colour
    level: float
    sky_top: Colour
    sky_low: Colour
    clouds: float
    haze: float
    shade: Colour
    elevation: float


CAMERAS: dict[str, CameraRanges] = {
    "target": CameraRanges((1.32, 1.38), (0.4, 1.2), (55.0, 56.0), -1),
    "varied": CameraRanges((1.2, 1.55), (-1.0, 3.0), (50.0, 62.0), -1),
    "proximity": CameraRanges((1.6, 2.1), (5.0, 8.5), (68.0, 78.0), 1),
}
PALETTES: dict[str, Light | None] = {
    "overcast": Light(0.85, (0.97, 0.99, 1.02), 1.0, (0.72, 0.76, 0.80), (0.88, 0.89, 0.90),
                       0.05, 0.006, (0.46, 0.48, 0.52), 50.0),
    "day": Light(0.52, (1.04, 1.01, 0.95), 1.22, (0.30, 0.50, 0.82), (0.76, 0.86, 0.95),
                  0.55, 0.003, (0.34, 0.38, 0.45), 42.0),
    "dusk": Light(0.66, (1.12, 0.97, 0.80), 0.80, (0.46, 0.50, 0.62), (0.93, 0.76, 0.58),
                   0.25, 0.005, (0.40, 0.44, 0.54), 22.0),
    "varied": None,
}  # fmt: skip


@dataclass(frozen=True)
class Camera:
    """A camera at work; rays are (across[col], up[row], forward[row])."""

    height: float
    pitch: float
    focal: float
    size: tuple[int, int]
    across: Floats
    up: Floats
    forward: Floats


def draw_camera(name: str, rng: np.random.Generator, size: tuple[int, int]) -> Camera:
    """Draw a camera's height, pitch and lens.

    Args:
        name: of `CAMERAS`.
        rng: the generator of the lens.
        size: (H, W) in pixels.
    """
    camera = CAMERAS[name]
    height, degrees, fov = (
        float(rng.uniform(*bounds)) for bounds in (camera.height, camera.pitch, camera.fov)
    )
    rows, cols = size
    pitch = math.radians(degrees)
    focal = 0.5 * cols / math.tan(math.radians(fov) / 2)
    across = (np.arange(cols, dtype=np.float32) + 0.5 - cols / 2) / focal
    down = (np.arange(rows, dtype=np.float32) + 0.5 - rows / 2) / focal
    up = -down * math.cos(pitch) - math.sin(pitch)
    forward = -down * math.sin(pitch) + math.cos(pitch)
    f32 = np.float32
    return Camera(height, pitch, focal, (int(rows), int(cols)),
                 across.astype(f32), up.astype(f32), forward.astype(f32))  # fmt: skip


def draw_light(palette: str, rng: np.random.Generator) -> tuple[Light, Floats]:
    """Draw the light and the direction to the sun.

    Args:
        palette: of `PALETTES`.
        rng: the generator of the light.

    Returns:
        The light, and a unit vector (3,) towards the sun.
    """
    plain = [p for p in PALETTES.values() if p is not None]
    weights = rng.dirichlet((0.5,) * len(plain))
    wobble, azimuth = rng.uniform(-1.0, 1.0, 8), float(rng.uniform(20.0, 75.0))
    azimuth *= 1 if rng.random() < 0.5 else -1  # ahead and aside: shadows cut the road
    chosen = PALETTES[palette]
    mix, spread = ([(1.0, chosen)], 0.25) if chosen else (
        list(zip(weights.tolist(), plain, strict=True)), 1.0)  # fmt: skip

    def blend(name: str) -> Floats:
        total = sum(w * np.array(getattr(p, name), np.float32) for w, p in mix)
        return np.asarray(total, np.float32)

    def colour(name: str, gain: Floats) -> Colour:
        r, g, b = (blend(name) * gain).tolist()
        return (r, g, b)

    one = np.ones(3, np.float32)
    balance = (one + spread * 0.06 * wobble[:3]).astype(np.float32)
    elevation = float(blend("elevation")) + spread * 9.0 * float(wobble[3])
    light = Light(
        ambient=float(blend("ambient")),
        tint=colour("tint", balance),
        level=float(blend("level")) * (1 + 0.14 * spread * float(wobble[4])),
        sky_top=colour("sky_top", balance),
        sky_low=colour("sky_low", balance),
        clouds=float(blend("clouds")),
        haze=float(blend("haze")) * (1 + 0.8 * spread * float(wobble[5])),
        shade=colour("shade", one * np.float32(1 + 0.15 * spread * wobble[6])),
        elevation=elevation,
    )
    a, e = math.radians(azimuth), math.radians(max(elevation, 14.0))
    sun = (math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e))
    return light, np.array(sun, np.float32)


def rasterise(faces: list[Face], camera: Camera) -> npt.NDArray[np.int32]:
    """Paint the faces in order.

    Args:
        faces: the far ones first.
        camera: the camera.

    Returns:
        (H, W): 1 + the index of the face that a pixel shows, 0 for none.
    """
    counts = [len(face.points) for face in faces]
    points = np.array([p for face in faces for p in face.points], np.float64)
    cos, sin = math.cos(camera.pitch), math.sin(camera.pitch)
    up = points[:, 1] - camera.height
    x, y, z = points[:, 0], up * cos + points[:, 2] * sin, points[:, 2] * cos - up * sin
    rows, cols = camera.size
    canvas = Image.new("I", (cols, rows), 0)
    draw = ImageDraw.Draw(canvas)
    safe = np.maximum(z, _NEAR)
    u = cols / 2 + camera.focal * x / safe - 0.5
    v = rows / 2 - camera.focal * y / safe - 0.5
    flat = np.clip(np.stack([u, v], 1), -20_000, 20_000)
    starts = np.concatenate([[0], np.cumsum(counts)])
    nearest, farthest = (f.reduceat(z, starts[:-1]) for f in (np.minimum, np.maximum))
    lo, hi = (f.reduceat(flat, starts[:-1]) for f in (np.minimum, np.maximum))
    inside = np.all(hi >= 0, axis=1) & np.all(lo < np.array((cols, rows)), axis=1)
    seen = (farthest >= _NEAR) & (inside | (nearest < _NEAR))
    for i in np.flatnonzero(seen).tolist():
        part = slice(starts[i], starts[i + 1])
        xy = flat[part]
        if nearest[i] < _NEAR:
            cut = _clip(np.stack([x[part], y[part], z[part]], 1))
            xy = cut[:, :2] / cut[:, 2:] * (camera.focal, -camera.focal)
            xy = np.clip(np.add(xy, (cols / 2 - 0.5, rows / 2 - 0.5)), -20_000, 20_000)
        draw.polygon(xy.ravel().tolist(), fill=i + 1)
    return np.asarray(canvas, dtype=np.int32)


def _clip(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cut a polygon of camera coordinates at the near plane (Sutherland-Hodgman)."""
    kept = []
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        if a[2] >= _NEAR:
            kept.append(a)
        if (a[2] >= _NEAR) != (b[2] >= _NEAR):
            kept.append(a + (b - a) * (_NEAR - a[2]) / (b[2] - a[2]))
    return np.array(kept)
