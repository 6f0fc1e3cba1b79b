"""The geometry of a procedural road scene: the road, faces, shadow casters and the camera.

Coordinates in metres: X right, Y up, Z forward; the camera is above the origin. Along the
road a place is (s, z): s metres right of the centre line at depth z.

Faces are painted from far to near. Planes of constant z cut the world into slabs, whose
order is exact; within a slab the faces farthest to the side are painted first.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Point = tuple[float, float, float]
Colour = tuple[float, float, float]
Params = tuple[float, float, float, float]
Shape = list[tuple[float, float]]  # (across, height)

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
PLAIN, FACADE, BRICK, LEAVES, RAILING, PLANKS, ROOF, GLASS = range(8)
OPEN, HOUSES, PARK, JUNCTION = range(4)

FAR = 118.0  # depth of the backdrop
LANE = 1.6  # from the centre line to the middle of a lane
_SLAB = 5.0
_NEAR = 0.25  # depth of the near clipping plane


class Face(NamedTuple):
    """A planar polygon with its texture along `axis`, by default a cut-out facing the camera."""

    points: list[Point]
    label: int
    colour: Colour
    kind: int
    params: Params
    normal: Point = (0.0, 0.0, -1.0)
    axis: Point = (1.0, 0.0, 0.0)
    flat: bool = True  # a cut-out: lit as if it were round


class Caster(NamedTuple):
    """A polygon that casts a shadow on points below its lowest height `low`.

    A cut-out has an `anchor`, around which it is turned towards the sun.
    """

    points: list[Point]
    low: float
    leafy: bool = False
    anchor: Point | None = None


@dataclass(frozen=True)
class Side:
    """One side of the road: width of the pavement, bounds (along z) and kinds of sections."""

    width: float
    bounds: list[float]
    kinds: list[int]

    def sections(self) -> list[tuple[float, float, int]]:
        """Return (start, end, kind) of each section."""
        return list(zip(self.bounds[:-1], self.bounds[1:], self.kinds, strict=True))

    def kind_at(self, z: float) -> int:
        """Return the kind of the section at depth z."""
        return self.kinds[min(bisect_right(self.bounds, z), len(self.kinds)) - 1]


@dataclass
class World:
    """The road and everything that stands on the ground."""

    half: float  # half the width of the road
    curve: float
    yaw: float  # slope of the centre line at the camera
    side: int  # -1 for driving on the left, 1 on the right
    height: float  # of the camera
    sides: dict[int, Side]  # left (-1) and right (1) of the road
    faces: list[tuple[tuple[float, ...], Face]] = field(default_factory=list)  # with sort keys
    casters: list[Caster] = field(default_factory=list)
    feet: list[tuple[float, float, float, float]] = field(default_factory=list)  # of cars
    cuts: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Cut the depth at the section ends and at least every few metres."""
        ends = {b for side in self.sides.values() for b in side.bounds}
        self.cuts = sorted(ends | set(np.arange(0.0, FAR, _SLAB).tolist()))

    def centre(self, z: float) -> float:
        """Return X of the centre line at depth z; the camera keeps to its lane."""
        return -LANE * self.side + self.yaw * z + 0.5 * self.curve * z * z

    def at(self, s: float, z: float, y: float = 0.0) -> Point:
        """Return the world point s metres right of the centre line."""
        return (s + self.centre(z), y, z)

    def wall(self, s: float, z0: float, z1: float, top: float) -> list[Point]:
        """Return an upright quadrangle along the road, from depth z0 to z1."""
        return [self.at(s, z0), self.at(s, z1), self.at(s, z1, top), self.at(s, z0, top)]

    def pieces(self, z0: float, z1: float) -> list[tuple[float, float]]:
        """Cut a stretch of the road at the slabs, without what lies behind the camera."""
        inner = [c for c in self.cuts if z0 < c < z1]
        return [p for p in zip([z0, *inner], [*inner, z1], strict=True) if p[1] >= 0.4]

    def add(
        self,
        points: list[Point],
        place: tuple[float, float],
        label: int,
        colour: Colour,
        kind: int = PLAIN,
        params: Params = (0.0, 0.0, 0.0, 0.0),
        away_from: Point | None = None,
    ) -> bool:
        """Add a face unless it is seen from its back, the side of `away_from`; return whether."""
        a = points[0]
        u, v = _minus(points[1], a), _minus(points[2], a)
        normal = _unit(
            (u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0])
        )
        if away_from is not None:
            if _dot(normal, _minus(a, away_from)) < 0:
                normal = (-normal[0], -normal[1], -normal[2])
            if _dot(normal, _minus((0.0, self.height, 0.0), a)) <= 0:
                return False
        self._insert(Face(points, label, colour, kind, params, normal, _unit(u), False), *place)
        return True

    def cutout(
        self,
        place: tuple[float, float],
        shape: Shape,
        label: int,
        colour: Colour,
        kind: int = PLAIN,
        shadow: bool = True,
        leafy: bool = False,
    ) -> None:
        """Add an upright shape that faces the camera."""
        x, _, z = self.at(*place)
        points = [(x + w, y, z) for w, y in shape]
        low, high = min(y for _, y in shape), max(y for _, y in shape)
        self._insert(Face(points, label, colour, kind, (low, high, 0.0, 0.0)), place[0], z)
        if shadow:
            self.casters.append(Caster(points, low, leafy, (x, 0.0, z)))

    def prism(
        self,
        bottom: list[Point],
        top: list[Point],
        place: tuple[float, float],
        label: int,
        colour: Colour,
        glass: Colour | None = None,
    ) -> None:
        """Add the visible sides and the top of a block; `glass` insets windows."""
        middle = _middle([*bottom, *top])
        for i in range(4):
            j = (i + 1) % 4
            side = [bottom[i], bottom[j], top[j], top[i]]
            seen = self.add(side, place, label, colour, away_from=middle)
            if seen and glass is not None:
                mx, my, mz = _middle(side)
                pane = [(mx + 0.86 * (x - mx), my + 0.86 * (y - my), mz + 0.86 * (z - mz))
                        for x, y, z in side]  # fmt: skip
                self.add(pane, place, label, glass, GLASS, away_from=middle)
            self.casters.append(Caster(side, 0.0))
        self.add(top, place, label, colour, away_from=middle)
        self.casters.append(Caster(top, 0.0))

    def _insert(self, face: Face, s: float, z: float) -> None:
        aside = abs(s - LANE * self.side)
        key = (-bisect_right(self.cuts, z + 1e-6), -aside, -z, len(self.faces))
        self.faces.append((key, face))


def _middle(points: Sequence[Point]) -> Point:
    x, y, z = (sum(p[i] for p in points) / len(points) for i in range(3))
    return (x, y, z)


def _minus(a: Point, b: Point) -> Point:
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def _dot(a: Point, b: Point) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _unit(a: Point) -> Point:
    n = math.sqrt(_dot(a, a)) or 1.0
    return (a[0] / n, a[1] / n, a[2] / n)


# Ranges of height in metres, pitch downwards and field of view in degrees; the side to drive on.
CAMERAS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float], int]] = {
    "target": ((1.32, 1.38), (0.4, 1.2), (55.0, 56.0), -1),
    "varied": ((1.2, 1.55), (-1.0, 3.0), (50.0, 62.0), -1),
    "proximity": ((1.6, 2.1), (5.0, 8.5), (68.0, 78.0), 1),
}


class Camera(NamedTuple):
    """A camera; the ray of a pixel is (across[col], up[row], forward[row])."""

    side: int
    height: float
    pitch: float
    focal: float
    size: tuple[int, int]
    across: Floats
    up: Floats
    forward: Floats


def draw_camera(name: str, rng: np.random.Generator, size: tuple[int, int]) -> Camera:
    """Draw height, pitch and lens of one of `CAMERAS` for pictures of (H, W) pixels."""
    *ranges, side = CAMERAS[name]
    height, degrees, fov = (float(rng.uniform(*bounds)) for bounds in ranges)
    rows, cols = int(size[0]), int(size[1])
    pitch = math.radians(degrees)
    focal = 0.5 * cols / math.tan(math.radians(fov) / 2)
    across, down = ((np.arange(n, dtype=np.float32) + 0.5 - n / 2) / focal for n in (cols, rows))
    up = -down * math.cos(pitch) - math.sin(pitch)
    forward = -down * math.sin(pitch) + math.cos(pitch)
    return Camera(side, height, pitch, focal, (rows, cols), across, up, forward)


def rasterise(faces: list[Face], camera: Camera) -> npt.NDArray[np.int32]:
    """Paint faces in order; return (H, W), 1 + the index of each pixel's face, 0 for none."""
    starts = np.concatenate([[0], np.cumsum([len(face.points) for face in faces])])
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
    """Clip a polygon in camera coordinates at the near plane (Sutherland-Hodgman)."""
    kept = []
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        if a[2] >= _NEAR:
            kept.append(a)
        if (a[2] >= _NEAR) != (b[2] >= _NEAR):
            kept.append(a + (b - a) * (_NEAR - a[2]) / (b[2] - a[2]))
    return np.array(kept)
