"""Procedural road scenes with labels: the embedded data set.

Scenes carry CamVid's 11 classes and are a function of (seed, index), so that nothing is
downloaded. Cast shadows can be switched on and off over the very same scene: the
distillation papers' question, what a network makes of shadows it never saw, becomes a
controlled experiment (Wu et al., arXiv:2103.13733, Appendix B).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from spiritseg.data import scene_objects as so
from spiritseg.errors import ConfigError, DataError, unknown

__all__ = ["CAMERAS", "CLASSES", "PALETTES", "STYLES", "Scene", "SceneStyle", "render"]

CLASSES = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree",
    "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
)  # fmt: skip

Floats = npt.NDArray[np.float32]
_NEAR = 0.25  # metres before the camera at which surfaces are cut
_CELL = 0.08  # metres of ground a cell of the shadow map covers
_MAP = (1100, 600)  # its cells along Z and X
_MAP_ORIGIN = (-6.0, -24.0)  # its first Z and X


@dataclass(frozen=True)
class _Camera:
    """Ranges of a camera's draws; metres, degrees (pitch downwards, fov across)."""

    height: tuple[float, float]
    pitch: tuple[float, float]
    fov: tuple[float, float]
    side: int


@dataclass(frozen=True)
class _Light:
    """The light of a scene: colours are factors, directions point to the sun."""

    ambient: float
    tint: so.Colour
    level: float
    sky_top: so.Colour
    sky_low: so.Colour
    clouds: float
    haze: float
    shade: so.Colour
    elevation: float


CAMERAS: dict[str, _Camera] = {
    "target": _Camera((1.32, 1.38), (0.4, 1.2), (55.0, 56.0), -1),
    "varied": _Camera((1.2, 1.55), (-1.0, 3.0), (50.0, 62.0), -1),
    "proximity": _Camera((1.6, 2.1), (5.0, 8.5), (68.0, 78.0), 1),
}
PALETTES: dict[str, _Light | None] = {
    "overcast": _Light(0.85, (0.97, 0.99, 1.02), 1.0, (0.72, 0.76, 0.80), (0.88, 0.89, 0.90),
                       0.05, 0.006, (0.46, 0.48, 0.52), 50.0),
    "day": _Light(0.52, (1.04, 1.01, 0.95), 1.22, (0.30, 0.50, 0.82), (0.76, 0.86, 0.95),
                  0.55, 0.003, (0.34, 0.38, 0.45), 42.0),
    "dusk": _Light(0.66, (1.12, 0.97, 0.80), 0.80, (0.46, 0.50, 0.62), (0.93, 0.76, 0.58),
                   0.25, 0.005, (0.40, 0.44, 0.54), 22.0),
    "varied": None,
}  # fmt: skip


@dataclass(frozen=True)
class SceneStyle:
    """How scenes are seen.

    Args:
        shadows: whether the sun throws shadows; the geometry and the labels stay.
        camera: target (a low camera, narrow view, left-hand traffic), varied (about the
            same place, other heights and lenses), or proximity (higher, wider, steeper,
            right-hand traffic).
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
        shadow: (H, W) bool, where a cast shadow lies; all False without shadows.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    shadow: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Table:
    """The faces as arrays, a row each."""

    origin: Floats
    normal: Floats
    axis: Floats
    params: Floats
    colour: Floats
    kind: npt.NDArray[np.int32]
    label: npt.NDArray[np.uint8]
    flat: npt.NDArray[np.bool_]


def _table(faces: list[so.Face]) -> _Table:
    rows = [
        (*f.points[0], *f.normal, *f.axis, *f.params, *f.colour, f.kind, f.label, f.flat)
        for f in faces
    ]
    origin, normal, axis, params, colour, rest = np.split(
        np.array(rows, np.float32), (3, 6, 9, 13, 16), axis=1
    )
    kind, label, flat = rest.T.astype(np.int32)
    return _Table(
        origin, normal, axis, params, colour, kind, label.astype(np.uint8), flat.astype(bool)
    )


@dataclass(frozen=True)
class _View:
    """A camera at work; rays are (across[col], up[row], forward[row])."""

    height: float
    pitch: float
    focal: float
    size: tuple[int, int]
    across: Floats
    up: Floats
    forward: Floats


def render(
    seed: int,
    index: int,
    size: tuple[int, int] = (288, 384),
    style: SceneStyle = STYLES["target"],
) -> Scene:
    """Render scene `index` of the world `seed`.

    Layout, camera, light and sensor noise have a random stream each, so that changing one
    part of the style leaves the draws of the others alone. With shadows the image is the
    one without them times a factor below 1 inside the cast shadows.

    Args:
        seed: which world, at least 0.
        index: which scene of it, at least 0.
        size: (H, W) in pixels, each 16 to 4096.
        style: shadows, camera and palette.

    Returns:
        Image, labels and shadow mask.

    Raises:
        ConfigError: the seed or the size is out of range, or the style is not one.
        DataError: the index is negative.
    """
    _check(seed, index, size, style)
    streams = np.random.SeedSequence((int(seed), int(index))).spawn(4)
    layout, lens, light_rng, sensor = (np.random.default_rng(s) for s in streams)
    camera = CAMERAS[style.camera]
    view = _view(camera, lens, size)
    world = so.build(layout, camera.side, view.height)
    light, sun = _light(style.palette, light_rng)
    faces = [face for _, face in sorted(world.faces, key=lambda item: item[0])]
    ids = _rasterise(faces, view)

    sky_rows = int(np.searchsorted(-view.up, 1e-3))
    image = np.zeros((*size, 3), np.float32)
    image[:sky_rows] = _sky(view, light, light_rng, sky_rows)
    labels = np.zeros(size, dtype=np.uint8)
    place = np.full((*size, 3), np.float32(1e6))  # off the shadow map
    receives = np.zeros(size, dtype=bool)
    _paint_ground(world, view, light, layout, sky_rows, image, labels, place)
    receives[sky_rows:] = True
    _paint_faces(faces, ids, view, light, sun, image, labels, place, receives)
    image = _blur(image) * _vignette(size)
    factor, shadow = np.ones((1, 1, 1), np.float32), np.zeros(size, dtype=bool)
    if style.shadows:
        dark = _cast(world.casters, sun, place, receives)
        shadow = dark > 0
        factor = 1 - dark[..., None] * (1 - _vec(light.shade))
    final = np.minimum(image, 1.0) * (factor * 255)
    grain = sensor.integers(0, 256, (2, *image.shape), dtype=np.uint8)
    final += (grain[0] - grain[1].astype(np.float32)) * np.float32(2.8 / 104.5) + np.float32(0.5)
    return Scene(np.clip(final, 0.0, 255.0).astype(np.uint8), labels, shadow)


def _check(seed: int, index: int, size: tuple[int, int], style: SceneStyle) -> None:
    if not isinstance(style, SceneStyle):
        raise ConfigError(
            f"expected a SceneStyle, got {style!r}; STYLES has {', '.join(sorted(STYLES))}."
        )
    whole = (int, np.integer)
    if not isinstance(seed, whole) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"expected a scene seed of at least 0, got {seed!r}.")
    if not isinstance(index, whole) or isinstance(index, bool) or index < 0:
        raise DataError(f"expected a scene index of at least 0, got {index!r}.")
    good = isinstance(size, tuple | list) and len(size) == 2
    if not good or not all(isinstance(n, whole) and 16 <= n <= 4096 for n in size):
        raise ConfigError(
            f"expected a scene size (H, W) of two whole numbers from 16 to 4096, got {size!r}."
        )


def _view(camera: _Camera, rng: np.random.Generator, size: tuple[int, int]) -> _View:
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
    return _View(height, pitch, focal, (int(rows), int(cols)),
                 across.astype(f32), up.astype(f32), forward.astype(f32))  # fmt: skip


def _light(palette: str, rng: np.random.Generator) -> tuple[_Light, Floats]:
    """Draw the light and the direction to the sun."""
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

    def colour(name: str, gain: Floats) -> so.Colour:
        r, g, b = (blend(name) * gain).tolist()
        return (r, g, b)

    one = np.ones(3, np.float32)
    balance = (one + spread * 0.06 * wobble[:3]).astype(np.float32)
    elevation = float(blend("elevation")) + spread * 9.0 * float(wobble[3])
    light = _Light(
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


def _rasterise(faces: list[so.Face], view: _View) -> npt.NDArray[np.int32]:
    """Paint the faces in order; a pixel holds 1 + the index of what it shows."""
    counts = [len(face.points) for face in faces]
    points = np.array([p for face in faces for p in face.points], np.float64)
    cos, sin = math.cos(view.pitch), math.sin(view.pitch)
    up = points[:, 1] - view.height
    x, y, z = points[:, 0], up * cos + points[:, 2] * sin, points[:, 2] * cos - up * sin
    rows, cols = view.size
    canvas = Image.new("I", (cols, rows), 0)
    draw = ImageDraw.Draw(canvas)
    safe = np.maximum(z, _NEAR)
    u = cols / 2 + view.focal * x / safe - 0.5
    v = rows / 2 - view.focal * y / safe - 0.5
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
            xy = cut[:, :2] / cut[:, 2:] * (view.focal, -view.focal)
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


def _sky(view: _View, light: _Light, rng: np.random.Generator, rows: int) -> Floats:
    cols = view.size[1]
    if rows == 0:
        return np.zeros((0, cols, 3), np.float32)
    slope = np.clip(view.up[:rows] / 0.45, 0.0, 1.0)[:, None, None] ** np.float32(0.7)
    low, top = _vec(light.sky_low), _vec(light.sky_top)
    cloud = np.zeros((rows, cols), np.float32)
    for grid, weight in (((5, 4), 0.5), ((11, 9), 0.3), ((24, 20), 0.2)):
        coarse = Image.fromarray(rng.random(grid, dtype=np.float32))
        wide = coarse.resize((cols, rows), Image.Resampling.BICUBIC)
        cloud += np.float32(weight) * np.asarray(wide, np.float32)
    cover = np.clip((cloud - 0.48) * 5.0, 0.0, 1.0)[..., None] * np.float32(light.clouds)
    gradient = low + (top - low) * slope
    white = np.float32(0.5) * low + np.float32(0.5)
    return np.asarray(gradient + (white - gradient) * cover, np.float32)


@lru_cache(maxsize=1)
def _tiles() -> tuple[Floats, Floats]:
    """White noise and smooth noise that repeat every 256 cells; mean 0, deviation 1."""
    rng = np.random.default_rng(20_210_313)
    white = rng.standard_normal((256, 256), dtype=np.float32)
    smooth = np.zeros_like(white)
    for octave in (8, 16, 32):
        grid = np.pad(rng.standard_normal((octave, octave)), 2, mode="wrap").astype(np.float32)
        cell = 256 // octave
        wide = Image.fromarray(grid).resize((256 + 4 * cell,) * 2, Image.Resampling.BICUBIC)
        smooth += np.asarray(wide, np.float32)[2 * cell : -2 * cell, 2 * cell : -2 * cell] / octave
    return white, ((smooth - smooth.mean()) / smooth.std()).astype(np.float32)


def _vec(colour: so.Colour) -> Floats:
    return np.array(colour, np.float32)


def _noise(tile: Floats, a: Floats, b: Floats, scale: float) -> Floats:
    i = (a * np.float32(scale)).astype(np.int32) & 255
    j = (b * np.float32(scale)).astype(np.int32) & 255
    return np.asarray(tile[i, j], np.float32)


def _paint_ground(
    world: so.World,
    view: _View,
    light: _Light,
    rng: np.random.Generator,
    first: int,
    image: Floats,
    labels: npt.NDArray[np.uint8],
    place: Floats,
) -> None:
    """Fill the rows below the horizon: road, markings, kerbs, pavements, verges."""
    look = rng.random(16).tolist()
    reach = (view.height / -view.up[first:])[:, None]
    z = np.minimum(reach * view.forward[first:, None], np.float32(4000.0))
    x = reach * view.across[None, :]
    road = world.road
    bend = np.minimum(z, so.FAR)
    s = x - np.float32(road.centre(0.0)) - road.yaw * bend - 0.5 * road.curve * bend**2
    s = np.asarray(s, np.float32)
    right, gap = s > 0, np.abs(s)
    kinds = []
    for bounds, names in zip(world.bounds, world.kinds, strict=True):
        row = np.clip(np.searchsorted(bounds, z[:, 0]) - 1, 0, len(names) - 1)
        kinds.append(np.array(names)[row][:, None])
    kind = np.where(right, kinds[1], kinds[0])
    width = np.where(right, *(np.float32(road.shoulders[i]) for i in (1, 0)))
    is_road = (gap < road.half) | (kind == so.JUNCTION)
    verge = ~is_road & (gap > road.half + width) & (kind != so.HOUSES)

    white, smooth = _tiles()
    print_ = reach / np.float32(view.focal)  # metres a pixel covers across
    fine = np.clip(0.06 / print_, 0.15, 1.0)
    grain = _noise(white, x + 64, z, 26.0) * fine
    blotch = _noise(smooth, x + 64, z, 5.0)
    grey = 0.36 + 0.06 * look[0]
    tone = grey + 0.022 * grain + 0.014 * blotch
    tone = tone - 0.03 * np.exp(-(((np.abs(gap - so.LANE) - 0.75) / 0.32) ** 2))  # wheel tracks
    patch = (np.abs(s - (look[1] - 0.5) * 5) < 0.9) & (
        np.abs(z - 6 - 14 * look[2]) < 2 + 3 * look[3]
    )
    tone = np.where(patch, tone - 0.05, tone)
    paint, yellow = _markings(s, z, print_, view, world, look)
    worn = np.clip(0.86 + 0.12 * blotch, 0.5, 1.0)
    rgb = tone[..., None] * np.array((1.0, 1.0, 1.02), np.float32)
    for cover, colour in ((paint, (0.84, 0.84, 0.82)), (yellow, (0.78, 0.62, 0.20))):
        amount = (cover * worn * is_road)[..., None]
        rgb = rgb + (_vec(colour) - rgb) * amount

    slab = np.minimum((gap - road.half) % 0.75, z % 0.9)
    joint = np.clip((0.03 - slab) / 0.03, 0, 1) * np.clip(0.06 / print_, 0, 1)
    flag = (grey + 0.05 + 0.08 * look[4]) + 0.02 * grain + 0.02 * blotch - 0.10 * joint
    kerb = gap - road.half
    flag = np.where(kerb < 0.16, grey + 0.16, flag)
    flag = np.where(kerb < 0.05, grey - 0.12, flag)
    stone = flag[..., None] * np.array((1.02, 1.0, 0.97), np.float32)
    rgb = np.where(is_road[..., None], rgb, stone)
    grass = (0.85 + 0.16 * grain + 0.12 * blotch)[..., None] * _vec((0.30, 0.36, 0.17))
    rgb = np.where(verge[..., None], grass, rgb)
    for foot_s, foot_z, long, half in world.feet:  # no daylight under a car
        near = np.flatnonzero((z[:, 0] > foot_z - 0.5) & (z[:, 0] < foot_z + long + 0.5))
        if near.size:
            beside = np.abs(s[near] - foot_s) - half
            ends = np.abs(z[near] - foot_z - long / 2) - long / 2
            rgb[near] *= 1 - 0.7 * np.clip(0.5 - np.maximum(beside, ends) / 0.5, 0, 1)[..., None]

    rgb = rgb * (_vec(light.tint) * np.float32(light.level))
    image[first:] = _hazy(rgb, z[..., None], light)
    labels[first:] = np.where(is_road, so.ROAD, np.where(verge, so.TREE, so.PAVEMENT))
    place[first:] = np.stack([x, np.zeros_like(x), np.broadcast_to(z, x.shape)], -1)


def _markings(
    s: Floats, z: Floats, pixel: Floats, view: _View, world: so.World, look: list[float]
) -> tuple[Floats, Floats]:
    """Return how much of each pixel white and yellow lines cover."""
    road = world.road
    deep = z * z / np.float32(view.height * view.focal)  # metres a pixel covers along

    def line(at: float, width: float) -> Floats:
        edge = (width / 2 - np.abs(s - at)) / pixel + 0.5
        return np.asarray(np.clip(edge, 0, 1) * np.minimum(1, width / pixel), np.float32)

    def band(start: float, end: float) -> Floats:
        return np.asarray(np.clip(np.minimum(z - start, end - z) / deep + 0.5, 0, 1), np.float32)

    on = 0.33 + 0.27 * look[6]
    beat = np.clip((on / 2 - np.abs((z / 6.0 + look[5]) % 1.0 - 0.5)) * 6.0 / deep + 0.5, 0, 1)
    beat = np.where(deep > 4.0, on, beat)
    white = line(0.0, 0.13) * beat
    if look[7] < 0.25:
        white = np.maximum(line(-0.14, 0.1), line(0.14, 0.1))
    yellow = np.zeros_like(white)
    for index, sign in enumerate((-1, 1)):
        choice = look[8 + index]
        edge = sign * road.half
        if choice < 0.35:
            yellow = np.maximum(yellow, line(edge - sign * 0.28, 0.09))
            yellow = np.maximum(yellow, line(edge - sign * 0.50, 0.09))
        elif choice < 0.7:
            white = np.maximum(white, line(edge - sign * 0.3, 0.12))
        for start, end, kind in zip(
            world.bounds[index], world.bounds[index][1:], world.kinds[index], strict=False
        ):
            if kind == so.JUNCTION:  # give way, and no edge line across the mouth
                mouth = band(start, end) * (s * sign > road.half - 0.7)
                dash = np.abs((z / 0.9) % 1.0 - 0.5) < 0.3
                white = white * (1 - mouth) + mouth * dash * line(edge + sign * 0.1, 0.25)
                yellow = yellow * (1 - mouth)
    if look[10] < 0.3:  # a zebra crossing
        start = 9.0 + 16.0 * look[11]
        stripes = np.clip((0.25 - np.abs(s % 1.0 - 0.5)) / pixel + 0.5, 0, 1)
        here = band(start, start + 2.6)
        white = white * (1 - band(start - 1.5, start + 4.1))
        white = np.maximum(white, here * stripes)
        stop = band(start - 1.2, start - 0.9) * (s * road.side > 0.1)
        white = np.maximum(white, stop)
    return np.asarray(white, np.float32), np.asarray(yellow, np.float32)


def _hazy(rgb: Floats, distance: Floats, light: _Light) -> Floats:
    clear = np.exp(np.minimum(distance, 150.0) * np.float32(-light.haze))
    far = _vec(light.sky_low)
    return np.asarray(far + (rgb - far) * clear, np.float32)


def _paint_faces(
    faces: list[so.Face],
    ids: npt.NDArray[np.int32],
    view: _View,
    light: _Light,
    sun: Floats,
    image: Floats,
    labels: npt.NDArray[np.uint8],
    place: Floats,
    receives: npt.NDArray[np.bool_],
) -> None:
    """Shade what stands on the ground, each pixel at its point of its face's plane."""
    rows, cols = np.nonzero(ids)
    if rows.size == 0:
        return
    which = ids[rows, cols] - 1
    table = _table(faces)
    normal, flat = table.normal, table.flat
    offset = (normal * (table.origin - _vec((0.0, view.height, 0.0)))).sum(1)
    facing = normal @ sun
    facing = np.where(offset > 0, -facing, facing)  # a fence is lit on the side one sees
    lit = np.where(flat, 0.6, np.clip(facing / max(float(sun[1]), 0.45), 0.0, 1.15))
    bright = light.level * (light.ambient + (1 - light.ambient) * lit)
    colour = table.colour * bright[:, None] * _vec(light.tint)

    n = normal[which]
    a, b, c = view.across[cols], view.up[rows], view.forward[rows]
    slant = n[:, 0] * a + n[:, 1] * b + n[:, 2] * c
    slant = np.where(np.abs(slant) < 1e-4, np.float32(1e-4), slant)
    reach = np.clip(offset[which] / slant, 0.1, 400.0).astype(np.float32)
    spot = np.stack([a * reach, view.height + b * reach, c * reach], 1)
    rgb = colour.astype(np.float32)[which]
    _texture(table, which, spot, reach, np.abs(slant), view, light, rgb)
    image[rows, cols] = _hazy(rgb, reach[:, None], light)
    labels[rows, cols] = table.label[which]
    place[rows, cols] = spot
    receives[rows, cols] = (flat | (facing > 0.02))[which]


def _texture(
    table: _Table,
    which: npt.NDArray[np.int32],
    spot: Floats,
    reach: Floats,
    slant: Floats,
    view: _View,
    light: _Light,
    rgb: Floats,
) -> None:
    kind = table.kind[which]
    white, smooth = _tiles()
    for number in np.flatnonzero(np.bincount(kind)).tolist():
        at = np.flatnonzero(kind == number)
        who, p = which[at], spot[at]
        along = np.einsum("ij,ij->i", p - table.origin[who], table.axis[who])
        y, q, far = p[:, 1], table.params[who], reach[at]
        sharp = np.clip(view.focal * 0.05 / far, 0.0, 1.0)
        if number == so.FACADE:
            resolved = np.clip(view.focal * q[:, 0] * slant[at] / far / 5.0, 0.0, 1.0)
            rgb[at] = _facade(rgb[at], along + q[:, 3], y, q, resolved, light)
        elif number == so.LEAVES:
            tuft = _noise(smooth, p[:, 0] + p[:, 2] + 512, y + 8, 22.0)
            speck = _noise(white, p[:, 0] + p[:, 2] + 512, y + 8, 28.0)
            rise = np.clip((y - q[:, 0]) / np.maximum(q[:, 1] - q[:, 0], 0.1), 0, 1)
            rgb[at] *= (0.72 + 0.42 * rise + 0.17 * tuft + 0.12 * speck * sharp)[:, None]
        elif number == so.RAILING:
            bar = (along * 5.5 % 1.0 < 0.3) | (y > q[:, 1] - 0.1) | (y < 0.14)
            gap = np.array((0.27, 0.29, 0.22), np.float32) * np.float32(light.level)
            fine = np.clip(view.focal * slant[at] / far / 25.0, 0.0, 1.0)
            between = (0.8 * (0.7 + (~bar - np.float32(0.7)) * fine))[:, None]
            rgb[at] += (gap - rgb[at]) * between
        elif number == so.PLANKS:
            seam = (along * 4.0 % 1.0 < 0.12) * sharp
            board = white[(along * 4.0).astype(np.int32) & 255, 7]
            rgb[at] *= (1 + 0.07 * board - 0.35 * seam)[:, None]
        elif number == so.ROOF:
            row = (y * 4.0 % 1.0 < 0.25) * sharp
            rgb[at] *= (1 + 0.05 * _noise(white, along + 512, y, 4.0) - 0.15 * row)[:, None]
        elif number == so.GLASS:
            mirror = _vec(light.sky_low)
            share = (0.10 + 0.25 * np.clip((y - 1.0) / 0.6, 0, 1))[:, None]
            rgb[at] += (mirror - rgb[at]) * share
        elif number == so.BRICK:
            course = _noise(white, p[:, 0] + p[:, 2] + 512, y, 7.0) * sharp
            rgb[at] *= (1 + 0.05 * course + 0.04 * _noise(smooth, p[:, 0] + 512, y, 6.0))[:, None]


def _facade(
    wall: Floats, u: Floats, y: Floats, q: Floats, resolved: Floats, light: _Light
) -> Floats:
    """Give walls storeys of windows, doors, and now and then a shop below."""
    white, smooth = _tiles()
    iu, iv = np.floor(u / q[:, 0]), np.floor(y / q[:, 1])
    fu, fv = u / q[:, 0] - iu, y / q[:, 1] - iv
    key = q[:, 2].astype(np.int32)
    mark = white[(iu.astype(np.int32) * 7 + key) & 255, (iv.astype(np.int32) * 13 + key) & 255]
    wall = wall * (1 + 0.04 * _noise(smooth, u + 512, y, 8.0))[:, None]
    wall = wall * np.where((fv < 0.04) & (iv > 0), 0.88, 1.0)[:, None]
    wide = 0.16 + 0.08 * (key % 3).astype(np.float32)
    frame = (np.abs(fu - 0.5) < wide + 0.05) & (np.abs(fv - 0.55) < 0.31)
    pane = (np.abs(fu - 0.5) < wide) & (np.abs(fv - 0.55) < 0.26)
    pane &= (np.abs(fu - 0.5) > 0.015) & (np.abs(fv - 0.6) > 0.012)
    shop, ground = key % 4 == 0, iv == 0
    door = ground & ~shop & (iu.astype(np.int32) % 3 == 0)
    off, window = np.abs(fu - 0.5), ground & shop
    frame = np.where(door, (off < 0.22) & (fv < 0.76), frame)
    frame = np.where(window, fv < 0.78, frame)
    pane = np.where(door, (off < 0.17) & (fv < 0.68), pane)
    pane = np.where(window, (off < 0.44) & (fv > 0.14) & (fv < 0.70), pane)
    tall = light.level * _vec(light.tint)
    glass = (_vec((0.17, 0.20, 0.24)) + (0.05 * mark)[:, None]) * tall
    leaf = _vec((0.30, 0.14, 0.12)) * (0.7 + 0.5 * np.abs(mark))[:, None] * tall
    glass = np.where(door[:, None], leaf, glass)
    light_frame = np.where((key % 2 == 0)[:, None], wall * 1.16, wall * 0.8)
    board = (ground & shop & (fv > 0.8) & (fv < 0.97))[:, None]
    trim = (
        np.array(((0.15, 0.3, 0.24), (0.42, 0.14, 0.12), (0.16, 0.2, 0.4)), np.float32)[
            key // 4 % 3
        ]
        * tall
    )
    out = np.where(pane[:, None], glass, np.where(frame[:, None], light_frame, wall))
    out = np.where(board, trim, out)
    # Windows narrower than a few pixels fade into their mean tone rather than flicker.
    return np.asarray(wall * 0.86 + (out - wall * 0.86) * resolved[:, None], np.float32)


def _cast(
    casters: list[so.Caster], sun: Floats, place: Floats, receives: npt.NDArray[np.bool_]
) -> Floats:
    """Return how deep each pixel lies in a cast shadow, 0 to 1.

    Casters are projected along the sun onto the ground. A cell keeps the greatest of the
    casters' lowest heights: what is above the caster there is lit, what is below is not.
    """
    slope = sun[[0, 2]] / sun[1]
    points = np.array([p for c in casters for p in c.points], np.float32)
    counts = np.array([len(c.points) for c in casters])
    anchors = np.repeat(np.array([c.anchor or (np.nan,) * 3 for c in casters], np.float32),
                        counts, axis=0)  # fmt: skip
    turned = ~np.isnan(anchors[:, 0])
    level = math.hypot(float(sun[0]), float(sun[2]))
    off = points[:, 0] - anchors[:, 0]
    x = np.where(turned, anchors[:, 0] + off * sun[2] / level, points[:, 0])
    z = np.where(turned, points[:, 2] - off * sun[0] / level, points[:, 2])
    cols = (x - points[:, 1] * slope[0] - _MAP_ORIGIN[1]) / _CELL
    rows = (z - points[:, 1] * slope[1] - _MAP_ORIGIN[0]) / _CELL
    cells = np.stack([cols, rows], 1)
    maps = {leafy: Image.new("L", _MAP[::-1], 0) for leafy in (False, True)}
    draws = {leafy: ImageDraw.Draw(picture) for leafy, picture in maps.items()}
    starts = np.concatenate([[0], np.cumsum(counts)])
    lo, hi = (f.reduceat(cells, starts[:-1]) for f in (np.minimum, np.maximum))
    lows = np.array([c.low for c in casters])
    for i in np.argsort(lows, kind="stable").tolist():
        if (hi[i] >= 0).all() and (lo[i] < _MAP[::-1]).all():
            value = min(1 + int(lows[i] * 8), 255)
            xy = cells[starts[i] : starts[i + 1]]
            draws[casters[i].leafy].polygon(xy.ravel().tolist(), fill=value)
    solid, leafy = (np.asarray(maps[k]) for k in (False, True))

    spot = np.flatnonzero(receives)
    x, y, z = place.reshape(-1, 3)[spot].T
    gx, gz = x - y * slope[0], z - y * slope[1]
    # Reading a cell or so beside the true one breaks the map's staircase into grain.
    jitter = np.float32(0.3) * np.resize(_tiles()[0], gx.shape)
    i = (gz - np.float32(_MAP_ORIGIN[0])) / np.float32(_CELL) + jitter
    j = (gx - np.float32(_MAP_ORIGIN[1])) / np.float32(_CELL) - jitter[::-1]
    inside = (i >= 0) & (i < _MAP[0]) & (j >= 0) & (j < _MAP[1])
    spot, y, gx, gz = spot[inside], y[inside], gx[inside], gz[inside]
    cell = i[inside].astype(np.int32) * _MAP[1] + j[inside].astype(np.int32)
    # A point on the ground needs any caster, a raised one a caster that is clearly above it.
    need = np.where(y > 0.02, 2.6 + y * 8, np.float32(1.0))
    hole = _noise(_tiles()[1], gx + 512, gz + 512, 34.0) > 0.75
    dark = np.zeros(receives.shape, np.float32)
    dark.ravel()[spot] = (solid.ravel()[cell] >= need) | ((leafy.ravel()[cell] >= need) & ~hole)
    soft = _blur(dark[..., None])[..., 0] * receives
    return np.where(soft > 0.12, soft, np.float32(0.0))


def _blur(picture: Floats) -> Floats:
    """Blur (H, W, C) with the separable kernel 1/5, 3/5, 1/5; borders repeat."""
    for axis in (0, 1):
        source = picture.swapaxes(0, axis)
        side = source * np.float32(0.2)
        result = source * np.float32(0.6)
        result[1:] += side[:-1]
        result[:-1] += side[1:]
        result[0] += side[0]
        result[-1] += side[-1]
        picture = result.swapaxes(0, axis)
    return picture


def _vignette(size: tuple[int, int]) -> Floats:
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) ** 2 for n in size)
    return np.asarray(1 - 0.07 * (y[:, None] + x[None, :]), np.float32)[..., None]
