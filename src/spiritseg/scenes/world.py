"""The geometry of a procedural road scene: the road's course, faces, what throws shadows.

Coordinates in metres: X right, Y up, Z forward; the camera is above the origin. Along
the road a place is (s, z): s is the distance from the road's centre line at depth z.

Surfaces are painted from far to near. The world is cut by planes of constant z into
slabs, whose order is exact; within a slab what is further aside is painted first.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Point = tuple[float, float, float]
Colour = tuple[float, float, float]
Params = tuple[float, float, float, float]

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
PLAIN, FACADE, BRICK, LEAVES, RAILING, PLANKS, ROOF, GLASS = range(8)
OPEN, HOUSES, PARK, JUNCTION = range(4)

FAR = 118.0  # where the backdrop stands
LANE = 1.6  # from the centre line to the middle of a lane
_SLAB = 5.0


@dataclass(frozen=True)
class Road:
    """The road's course and cross-section; `side` is -1 where one drives on the left."""

    half: float
    shoulders: tuple[float, float]
    curve: float
    yaw: float
    side: int

    def centre(self, z: float) -> float:
        """Return X of the centre line at depth z; the camera keeps to its lane."""
        return -LANE * self.side + self.yaw * z + 0.5 * self.curve * z * z

    def at(self, s: float, z: float, y: float = 0.0) -> Point:
        """Return the world point at s metres right of the centre line."""
        return (s + self.centre(z), y, z)

    def wall(self, s: float, z0: float, z1: float, top: float) -> list[Point]:
        """Return an upright quadrangle along the road, from depth z0 to z1."""
        return [self.at(s, z0), self.at(s, z1), self.at(s, z1, top), self.at(s, z0, top)]


@dataclass(frozen=True)
class Face:
    """A planar polygon: what it shows, and `axis`, along which its texture runs."""

    points: list[Point]
    label: int
    colour: Colour
    kind: int
    normal: Point
    axis: Point
    params: Params
    flat: bool  # a cut-out that faces the camera: lit like something round

    @classmethod
    def facing(
        cls, points: list[Point], label: int, colour: Colour, kind: int, params: Params
    ) -> Face:
        """Return a cut-out that faces the camera."""
        towards, axis = (0.0, 0.0, -1.0), (1.0, 0.0, 0.0)
        return cls(points, label, colour, kind, towards, axis, params, True)


@dataclass(frozen=True)
class Caster:
    """A polygon that throws a shadow from its lowest height `low` upwards.

    A cut-out has an `anchor`: it is turned towards the sun before it is projected.
    """

    points: list[Point]
    low: float
    leafy: bool = False
    anchor: Point | None = None


@dataclass
class World:
    """Everything that stands on the ground, and the draws that the ground needs."""

    road: Road
    eye: Point
    bounds: tuple[list[float], list[float]]
    kinds: tuple[list[int], list[int]]
    faces: list[tuple[tuple[int, float, float, int], Face]] = field(default_factory=list)
    casters: list[Caster] = field(default_factory=list)
    feet: list[tuple[float, float, float, float]] = field(default_factory=list)
    cuts: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Cut the depth at the section ends and at least every few metres."""
        ends = {b for side in self.bounds for b in side}
        self.cuts = sorted(ends | set(np.arange(0.0, FAR, _SLAB).tolist()))

    def add(
        self,
        points: Sequence[Point],
        place: tuple[float, float],
        label: int,
        colour: Colour,
        kind: int = PLAIN,
        params: Params = (0.0, 0.0, 0.0, 0.0),
        away_from: Point | None = None,
    ) -> bool:
        """Add a face unless it shows its back; `away_from` is a point behind it.

        Returns:
            Whether the face can be seen.
        """
        a, b, c = points[0], points[1], points[2]
        normal, axis = _normal(a, b, c), _unit(_minus(b, a))
        if away_from is not None and _dot(normal, _minus(a, away_from)) < 0:
            normal = (-normal[0], -normal[1], -normal[2])
        facing = _dot(normal, _minus(self.eye, a))
        if away_from is not None and facing <= 0:
            return False
        face = Face(list(points), label, colour, kind, normal, axis, params, False)
        self._insert(face, place[0], place[1])
        return True

    def cutout(
        self,
        place: tuple[float, float],
        shape: Sequence[tuple[float, float]],
        label: int,
        colour: Colour,
        kind: int = PLAIN,
        shadow: bool = True,
        leafy: bool = False,
    ) -> None:
        """Add an upright shape of (across, height) points that faces the camera."""
        x, _, z = self.road.at(*place)
        points = [(x + w, y, z) for w, y in shape]
        low, high = min(y for _, y in shape), max(y for _, y in shape)
        self._insert(Face.facing(points, label, colour, kind, (low, high, 0.0, 0.0)), place[0], z)
        if shadow:
            self.casters.append(Caster(points, low, leafy, (x, 0.0, z)))

    def prism(
        self,
        bottom: Sequence[Point],
        top: Sequence[Point],
        place: tuple[float, float],
        label: int,
        colour: Colour,
        glass: Colour | None = None,
        shadow: bool = True,
    ) -> None:
        """Add the visible sides and the top of a block; `glass` insets windows."""
        ring = [*bottom, *top]
        mx, my, mz = (sum(p[i] for p in ring) / len(ring) for i in range(3))
        middle = (mx, my, mz)
        for i in range(4):
            j = (i + 1) % 4
            side = [bottom[i], bottom[j], top[j], top[i]]
            seen = self.add(side, place, label, colour, away_from=middle)
            if seen and glass is not None:
                self.add(_inset(side, 0.86), place, label, glass, GLASS, away_from=middle)
            if shadow:
                self.casters.append(Caster(side, 0.0))
        self.add(list(top), place, label, colour, away_from=middle)
        if shadow:
            self.casters.append(Caster(list(top), 0.0))

    def _insert(self, face: Face, s: float, z: float) -> None:
        """Add a face with its key in the painting order."""
        aside = abs(s - LANE * self.road.side)
        key = (-bisect_right(self.cuts, z + 1e-6), -aside, -z, len(self.faces))
        self.faces.append((key, face))


def blob(
    rng: np.random.Generator, w: float, y: float, rw: float, ry: float
) -> list[tuple[float, float]]:
    """Outline a crown or a bush around (w, y), its radii about rw and ry."""
    n = 48
    rough = 0.05 * rng.standard_normal(n + 3)
    radii = 1.0 + rough[3:] + rough[2:-1] + rough[1:-2] + rough[:-3]
    angles = np.linspace(0.0, 2 * np.pi, n, endpoint=False)
    across, up = w + rw * radii * np.cos(angles), y + ry * radii * np.sin(angles)
    return list(zip(across.tolist(), up.tolist(), strict=True))


def box(x0: float, x1: float, y0: float, y1: float) -> list[tuple[float, float]]:
    """Outline a rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def disc(w: float, y: float, r: float, n: int = 14) -> list[tuple[float, float]]:
    """Outline a disc of radius r around (w, y) by n points."""
    step = 2 * math.pi / n
    return [(w + r * math.cos(i * step), y + r * math.sin(i * step)) for i in range(n)]


def tint(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    """Draw a colour near another one."""
    grey = float(rng.uniform(-spread, spread))
    r, g, b = (rng.uniform(-spread, spread, 3) * 0.4 + grey + np.array(colour)).clip(0.02, 1.0)
    return (float(r), float(g), float(b))


def pick(rng: np.random.Generator, colours: Sequence[Colour]) -> Colour:
    """Draw one of several colours."""
    return colours[int(rng.integers(len(colours)))]


def scale(colour: Colour, k: float) -> Colour:
    """Make a colour k times as bright."""
    return (colour[0] * k, colour[1] * k, colour[2] * k)


def _inset(points: Sequence[Point], k: float) -> list[Point]:
    n = len(points)
    mx, my, mz = (sum(p[i] for p in points) / n for i in range(3))
    return [(mx + k * (x - mx), my + k * (y - my), mz + k * (z - mz)) for x, y, z in points]


def _minus(a: Point, b: Point) -> Point:
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def _dot(a: Point, b: Point) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _unit(a: Point) -> Point:
    n = math.sqrt(_dot(a, a)) or 1.0
    return (a[0] / n, a[1] / n, a[2] / n)


def _normal(a: Point, b: Point, c: Point) -> Point:
    u, v = _minus(b, a), _minus(c, a)
    return _unit((u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]))
