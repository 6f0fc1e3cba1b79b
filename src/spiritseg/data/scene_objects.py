"""What stands in a procedural road scene: the road, its sides, vehicles, people.

Coordinates in metres: X right, Y up, Z forward; the camera is above the origin. Along
the road a place is (s, z): s is the distance from the road's centre line at depth z.

Surfaces are painted from far to near. The world is cut by planes of constant z into
slabs, whose order is exact; within a slab what is further aside is painted first.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

Point = tuple[float, float, float]
Colour = tuple[float, float, float]
At = Callable[[float, float, float], Point]

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
PLAIN, FACADE, BRICK, LEAVES, RAILING, PLANKS, ROOF, GLASS = range(8)
OPEN, HOUSES, PARK, JUNCTION = range(4)

FAR = 118.0  # where the backdrop stands
LANE = 1.6  # from the centre line to the middle of a lane
_SLAB = 5.0

_FACADES: tuple[Colour, ...] = (
    (0.62, 0.42, 0.34), (0.70, 0.62, 0.50), (0.58, 0.52, 0.46), (0.74, 0.70, 0.64),
    (0.50, 0.34, 0.28), (0.56, 0.57, 0.58), (0.78, 0.72, 0.58), (0.44, 0.44, 0.46),
)  # fmt: skip
_CARS: tuple[Colour, ...] = (
    (0.10, 0.10, 0.11), (0.20, 0.21, 0.23), (0.55, 0.57, 0.60), (0.78, 0.79, 0.80),
    (0.46, 0.10, 0.10), (0.12, 0.18, 0.36), (0.30, 0.31, 0.33), (0.16, 0.26, 0.20),
)  # fmt: skip
_CLOTHES: tuple[Colour, ...] = (
    (0.15, 0.16, 0.20), (0.45, 0.12, 0.12), (0.20, 0.28, 0.45), (0.60, 0.58, 0.52),
    (0.30, 0.34, 0.26), (0.72, 0.62, 0.20), (0.38, 0.30, 0.26),
)  # fmt: skip
_SKIN: Colour = (0.72, 0.54, 0.44)
_RED: Colour = (0.74, 0.10, 0.10)
_WHITE: Colour = (0.88, 0.88, 0.86)
_DARK: Colour = (0.07, 0.07, 0.08)


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


@dataclass(frozen=True)
class Face:
    """A planar polygon: what it shows, and `axis`, along which its texture runs."""

    points: list[Point]
    label: int
    colour: Colour
    kind: int
    normal: Point
    axis: Point
    params: tuple[float, float, float, float]
    flat: bool  # a cut-out that faces the camera: lit like something round


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
        params: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
        away_from: Point | None = None,
        flat: bool = False,
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
        slab = bisect_right(self.cuts, place[1] + 1e-6)
        aside = abs(place[0] - LANE * self.road.side)
        key = (-slab, -aside, -place[1], len(self.faces))
        face = Face(list(points), label, colour, kind, normal, axis, params, flat)
        self.faces.append((key, face))
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
        low = min(y for _, y in shape)
        high = max(y for _, y in shape)
        self.faces.append(
            (
                (
                    -bisect_right(self.cuts, z + 1e-6),
                    -abs(place[0] - LANE * self.road.side),
                    -z,
                    len(self.faces),
                ),
                Face(
                    points, label, colour, kind,
                    (0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (low, high, 0.0, 0.0), True,
                ),
            )
        )  # fmt: skip
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
        count = float(len(ring))
        middle = (
            sum(p[0] for p in ring) / count,
            sum(p[1] for p in ring) / count,
            sum(p[2] for p in ring) / count,
        )
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


def build(rng: np.random.Generator, side: int, height: float) -> World:
    """Draw a world.

    Args:
        rng: the generator of the layout.
        side: -1 for driving on the left, 1 on the right.
        height: height of the camera above the ground in metres.

    Returns:
        The world, its faces not yet sorted.
    """
    parking = (rng.random() < 0.32, rng.random() < 0.32)
    half = float(rng.uniform(4.7, 5.1) if any(parking) else rng.uniform(3.2, 4.2))
    shoulders = (float(rng.uniform(2.0, 4.4)), float(rng.uniform(2.0, 4.4)))
    curve = float(rng.normal(0.0, 0.0042))
    road = Road(half, shoulders, float(np.clip(curve, -0.008, 0.008)),
                float(rng.normal(0.0, 0.012)), side)  # fmt: skip
    sections = [_sections(rng), _sections(rng)]
    world = World(
        road,
        (0.0, height, 0.0),
        (sections[0][0], sections[1][0]),
        (sections[0][1], sections[1][1]),
    )
    _backdrop(world, rng)
    for index, sign in enumerate((-1, 1)):
        _roadside(world, rng, index, sign)
        _furniture(world, rng, index, sign)
        _pavement_people(world, rng, index, sign)
        if parking[index]:
            _parked(world, rng, sign)
    _traffic(world, rng)
    return world


def _sections(rng: np.random.Generator) -> tuple[list[float], list[int]]:
    bounds: list[float] = [-6.0]
    kinds: list[int] = []
    while bounds[-1] < FAR - 6:
        last = kinds[-1] if kinds else PARK
        weights = (0.14, 0.58, 0.20, 0.08 if last != JUNCTION else 0.0)
        kind = int(rng.choice(4, p=np.array(weights) / sum(weights)))
        if kind == JUNCTION and bounds[-1] < 6:
            kind = HOUSES  # a junction beside the camera leaves nothing to see there
        length = rng.uniform(6.0, 8.0) if kind == JUNCTION else rng.uniform(8.0, 20.0)
        bounds.append(float(bounds[-1] + length))
        kinds.append(kind)
    return bounds, kinds


def _backdrop(world: World, rng: np.random.Generator) -> None:
    x = -170.0
    while x < 170.0:
        width = float(rng.uniform(6.0, 18.0))
        tall = float(rng.uniform(5.0, 15.0))
        if rng.random() < 0.5:
            shape = [(x, 0.0), (x + width, 0.0), (x + width, tall), (x, tall)]
            colour = _pick(rng, _FACADES)
            label, kind, params = BUILDING, FACADE, (3.0, 3.0, float(rng.integers(1000)), 0.0)
        else:
            shape = _blob(rng, x + width / 2, tall * 0.4, width * 0.7, tall * 0.55)
            colour, label, kind, params = _green(rng), TREE, LEAVES, (0.0, tall, 0.0, 0.0)
        points = [(w, max(y, 0.0), FAR) for w, y in shape]
        face = Face(points, label, colour, kind, (0.0, 0.0, -1.0), (1.0, 0.0, 0.0), params, True)
        world.faces.append(((-10_000, 0.0, 0.0, len(world.faces)), face))
        x += width * float(rng.uniform(0.55, 0.95))
    hedge = [(-200.0, 0.0, FAR), (200.0, 0.0, FAR), (200.0, 3.0, FAR), (-200.0, 3.0, FAR)]
    face = Face(hedge, TREE, _green(rng), LEAVES, (0.0, 0.0, -1.0), (1.0, 0.0, 0.0),
                (0.0, 3.0, 0.0, 0.0), True)  # fmt: skip
    world.faces.append(((-9_999, 0.0, 0.0, len(world.faces)), face))


def _roadside(world: World, rng: np.random.Generator, index: int, sign: int) -> None:
    edge = world.road.half + world.road.shoulders[index]
    bounds, kinds = world.bounds[index], world.kinds[index]
    for z0, z1, kind in zip(bounds, bounds[1:], kinds, strict=False):
        if kind == HOUSES:
            _house(world, rng, sign * edge, z0, z1)
        elif kind in (PARK, OPEN):
            if rng.random() < 0.75:
                _fence(world, rng, sign * (edge + 0.05), z0, z1)
            count = int(rng.integers(2, 5)) if kind == PARK else int(rng.integers(0, 2))
            for z in np.sort(rng.uniform(z0 + 1.0, z1 - 1.0, count))[::-1].tolist():
                if z > 3.0:
                    _tree(world, rng, sign * (edge + float(rng.uniform(1.5, 6.0))), z)
            if kind == PARK:
                _hedge(world, rng, sign * (edge + 7.5), z0, z1)


def _pieces(world: World, z0: float, z1: float) -> list[tuple[float, float]]:
    inner = [c for c in world.cuts if z0 < c < z1]
    return list(zip([z0, *inner], [*inner, z1], strict=True))


def _house(world: World, rng: np.random.Generator, s: float, z0: float, z1: float) -> None:
    road, colour = world.road, _tint(rng, _pick(rng, _FACADES), 0.05)
    floors = int(rng.integers(2, 5))
    pitch = float(rng.uniform(2.9, 3.4))
    tall, depth = floors * pitch + 0.4, math.copysign(9.0, s)
    texture = (float(rng.uniform(2.0, 3.4)), pitch, float(rng.integers(1000)))
    gable = rng.random() < 0.6
    slate = _tint(rng, (0.36, 0.30, 0.28), 0.08)
    for za, zb in _pieces(world, z0, z1):
        if zb < 0.4:
            continue
        place = (s, max(za, 0.0))
        foot = [road.at(s, za), road.at(s, zb)]
        wall = [*foot, road.at(s, zb, tall), road.at(s, za, tall)]
        behind = road.at(s + depth, za)
        world.add(wall, place, BUILDING, colour, FACADE, (*texture, za - z0), behind)
        if gable:
            eaves = [road.at(s, za, tall), road.at(s, zb, tall)]
            ridge = [road.at(s + depth / 2, zb, tall + 2.4), road.at(s + depth / 2, za, tall + 2.4)]
            under = road.at(s + depth / 2, (za + zb) / 2, 0.0)
            world.add([*eaves, *ridge], (s + depth / 4, place[1]), BUILDING, slate, ROOF,
                      away_from=under)  # fmt: skip
    if z0 > 0.4:
        end = [road.at(s, z0), road.at(s + depth, z0), road.at(s + depth, z0, tall)]
        if gable:
            end.append(road.at(s + depth / 2, z0, tall + 2.4))
        end.append(road.at(s, z0, tall))
        world.add(end, (s + depth / 8, z0), BUILDING, _scale(colour, 0.94), BRICK,
                  away_from=road.at(s, z0 + 1.0))  # fmt: skip
    _house_shadow(world, s, depth, z0, z1, tall)


def _house_shadow(world: World, s: float, depth: float, z0: float, z1: float, tall: float) -> None:
    road = world.road
    corners = [(s, z0), (s, z1), (s + depth, z1), (s + depth, z0)]
    for low, high in ((0.0, tall * 0.5), (tall * 0.5, tall)):
        for (sa, za), (sb, zb) in zip(corners, [*corners[1:], corners[0]], strict=True):
            wall = [road.at(sa, za, low), road.at(sb, zb, low),
                    road.at(sb, zb, high), road.at(sa, za, high)]  # fmt: skip
            world.casters.append(Caster(wall, low))
    world.casters.append(Caster([road.at(a, z, tall) for a, z in corners], tall))


def _fence(world: World, rng: np.random.Generator, s: float, z0: float, z1: float) -> None:
    tall = float(rng.uniform(0.9, 1.8))
    kind = RAILING if rng.random() < 0.5 else PLANKS
    base = (0.12, 0.14, 0.13) if kind == RAILING else (0.46, 0.34, 0.24)
    colour = _tint(rng, base, 0.06)
    road = world.road
    for za, zb in _pieces(world, z0, z1):
        if zb < 0.4:
            continue
        wall = [road.at(s, za), road.at(s, zb), road.at(s, zb, tall), road.at(s, za, tall)]
        world.add(wall, (s, max(za, 0.0)), FENCE, colour, kind, (0.0, tall, 0.0, 0.0))
        world.casters.append(Caster(wall, 0.0, leafy=kind == RAILING))


def _hedge(world: World, rng: np.random.Generator, s: float, z0: float, z1: float) -> None:
    road, colour, tall = world.road, _green(rng), float(rng.uniform(1.8, 4.5))
    for za, zb in _pieces(world, z0, z1):
        if zb > 0.4:
            tops = [(float(z), tall * float(rng.uniform(0.85, 1.15)))
                    for z in np.linspace(zb, za, 6)]  # fmt: skip
            points = [road.at(s, za), road.at(s, zb), *(road.at(s, z, y) for z, y in tops)]
            world.add(points, (s, max(za, 0.0)), TREE, colour, LEAVES, (0.0, tall, 0.0, 0.0))


def _tree(world: World, rng: np.random.Generator, s: float, z: float) -> None:
    trunk = float(rng.uniform(2.2, 3.2))
    radius = float(rng.uniform(1.5, 2.7))
    w, bark = float(rng.uniform(0.10, 0.2)), _tint(rng, (0.26, 0.21, 0.17), 0.04)
    place, leaf = (s, z), _green(rng)
    shape = [(-w * 1.3, 0.0), (w * 1.3, 0.0), (w, trunk + radius * 0.5), (-w, trunk + radius * 0.5)]
    world.cutout(place, shape, TREE, bark)
    for across, up, size, tone in ((0.0, 0.75, 1.0, 0.86), (-0.45, 0.6, 0.62, 0.95),
                                   (0.42, 0.9, 0.66, 1.0), (-0.05, 1.3, 0.6, 1.12)):  # fmt: skip
        shift = across + float(rng.uniform(-0.15, 0.15))
        blob = _blob(rng, shift * radius, trunk + up * radius, size * radius, size * radius)
        world.cutout(place, blob, TREE, _scale(leaf, tone), LEAVES, leafy=True)


def _furniture(world: World, rng: np.random.Generator, index: int, sign: int) -> None:
    s = sign * (world.road.half + 0.4)
    trees = rng.random() < 0.35
    z, lamps = float(rng.uniform(5.0, 14.0)), float(rng.uniform(22.0, 30.0))
    next_lamp = float(rng.uniform(7.0, 20.0))
    while z < 85.0:
        section = bisect_right(world.bounds[index], z) - 1
        if world.kinds[index][min(section, len(world.kinds[index]) - 1)] != JUNCTION:
            if z >= next_lamp:
                _lamp(world, rng, s, z, -sign)
                next_lamp = z + lamps
            elif trees and rng.random() < 0.6:
                _tree(world, rng, sign * (world.road.half + 0.8), z)
            elif rng.random() < 0.4:
                _sign(world, rng, s, z)
        z += float(rng.uniform(5.0, 9.0))


def _lamp(world: World, rng: np.random.Generator, s: float, z: float, inward: int) -> None:
    tall, grey = float(rng.uniform(5.5, 8.0)), _tint(rng, (0.36, 0.38, 0.38), 0.08)
    place = (s, z)
    post = [(-0.09, 0.0), (0.09, 0.0), (0.06, tall), (-0.06, tall)]
    world.cutout(place, post, POLE, grey)
    arm = [(0.0, tall - 0.1), (inward * 1.5, tall + 0.15), (inward * 1.5, tall + 0.25), (0.0, tall)]
    world.cutout(place, arm, POLE, grey)
    head = [(inward * 1.1, tall + 0.12), (inward * 1.8, tall + 0.2),
            (inward * 1.8, tall + 0.32), (inward * 1.1, tall + 0.3)]  # fmt: skip
    world.cutout(place, head, POLE, _scale(grey, 1.2), shadow=False)


def _sign(world: World, rng: np.random.Generator, s: float, z: float) -> None:
    place, top = (s, z), float(rng.uniform(2.3, 2.9))
    kind = int(rng.integers(4))
    post = [(-0.05, 0.0), (0.05, 0.0), (0.05, top + 0.2), (-0.05, top + 0.2)]
    world.cutout(place, post, POLE, (0.42, 0.43, 0.44))
    if kind == 0:  # a round one
        world.cutout(place, _disc(0.0, top, 0.36), SIGN, _RED)
        world.cutout(place, _disc(0.0, top, 0.27), SIGN, _WHITE, shadow=False)
        bar = [(-0.16, top - 0.05), (0.16, top - 0.05), (0.16, top + 0.05), (-0.16, top + 0.05)]
        world.cutout(place, bar, SIGN, _DARK, shadow=False)
    elif kind == 1:  # a triangle
        for size, colour in ((0.45, _RED), (0.29, _WHITE)):
            tri = [(-size, top - size * 0.55), (size, top - size * 0.55), (0.0, top + size * 1.1)]
            world.cutout(place, tri, SIGN, colour, shadow=size > 0.3)
    elif kind == 2:  # a blue plate
        plate = [(-0.34, top - 0.4), (0.34, top - 0.4), (0.34, top + 0.4), (-0.34, top + 0.4)]
        world.cutout(place, plate, SIGN, (0.10, 0.24, 0.58))
        arrow = [(-0.06, top - 0.3), (0.06, top - 0.3), (0.06, top + 0.05), (0.18, top + 0.05),
                 (0.0, top + 0.3), (-0.18, top + 0.05), (-0.06, top + 0.05)]  # fmt: skip
        world.cutout(place, arrow, SIGN, _WHITE, shadow=False)
    else:  # a traffic light
        box = [(-0.18, top - 0.5), (0.18, top - 0.5), (0.18, top + 0.5), (-0.18, top + 0.5)]
        world.cutout(place, box, SIGN, _DARK)
        lit = int(rng.integers(3))
        for i, colour in enumerate(((0.15, 0.75, 0.35), (0.9, 0.6, 0.1), (0.9, 0.12, 0.1))):
            lamp = _disc(0.0, top + (i - 1) * 0.32, 0.12)
            world.cutout(place, lamp, SIGN, colour if i == lit else _scale(colour, 0.25),
                         shadow=False)  # fmt: skip


def _pavement_people(world: World, rng: np.random.Generator, index: int, sign: int) -> None:
    room = world.road.shoulders[index]
    for _ in range(int(rng.poisson(1.6))):
        s = sign * (world.road.half + float(rng.uniform(0.9, room - 0.3)))
        _person(world, rng, s, float(rng.uniform(6.0, 40.0)))


def _person(world: World, rng: np.random.Generator, s: float, z: float) -> None:
    k = float(rng.uniform(0.92, 1.06))
    legs, coat = _pick(rng, _CLOTHES[:4]), _pick(rng, _CLOTHES)
    step = float(rng.uniform(0.03, 0.22))
    place = (s, z)

    def part(points: Sequence[tuple[float, float]], colour: Colour) -> None:
        world.cutout(place, [(w * k, y * k) for w, y in points], PEDESTRIAN, colour)

    part([(-0.13, 0.9), (0.02, 0.9), (-step + 0.06, 0.0), (-step - 0.1, 0.0)], legs)
    part([(-0.02, 0.9), (0.13, 0.9), (step + 0.12, 0.0), (step - 0.04, 0.0)], _scale(legs, 0.85))
    part([(-0.19, 0.85), (0.19, 0.85), (0.23, 1.42), (0.10, 1.50), (-0.10, 1.50), (-0.23, 1.42)],
         coat)  # fmt: skip
    for side in (-1, 1):
        part([(side * 0.2, 1.44), (side * 0.27, 1.40), (side * 0.29, 0.85), (side * 0.21, 0.85)],
             _scale(coat, 0.85))  # fmt: skip
    part(_disc(0.0, 1.63, 0.125), _SKIN)
    hair = [(w, y + 0.03) for w, y in _disc(0.0, 1.65, 0.125) if y >= 1.65]
    part(hair, _tint(rng, (0.2, 0.15, 0.12), 0.06))


def _cyclist(world: World, rng: np.random.Generator, s: float, z: float) -> None:
    coat, legs = _pick(rng, _CLOTHES), _pick(rng, _CLOTHES[:3])
    place = (s, z)

    def part(points: Sequence[tuple[float, float]], colour: Colour) -> None:
        world.cutout(place, points, BICYCLIST, colour)

    if rng.random() < 0.65:  # riding along the road, seen from behind
        part([(-0.04, 0.0), (0.04, 0.0), (0.04, 0.7), (-0.04, 0.7)], _DARK)
        for side, foot in ((-1, 0.15), (1, 0.38)):
            part([(side * 0.05, 0.98), (side * 0.19, 0.95), (side * 0.18, foot),
                  (side * 0.06, foot)], legs)  # fmt: skip
        lean, top, head = 0.0, 1.48, 1.60
        part([(-0.3, 1.02), (0.3, 1.02), (0.3, 1.06), (-0.3, 1.06)], _DARK)
    else:  # crossing, seen from the side
        for across in (-0.52, 0.52):
            ring = _disc(across, 0.34, 0.34, 18)
            inner = _disc(across, 0.34, 0.26, 18)
            part([*ring, ring[0], inner[0], *inner[::-1]], _DARK)
        part([(-0.52, 0.31), (-0.1, 0.30), (0.38, 0.8), (0.42, 0.86), (-0.12, 0.84), (-0.16, 0.78),
              (0.3, 0.77), (-0.08, 0.4), (-0.52, 0.37)], (0.5, 0.12, 0.12))  # fmt: skip
        part([(0.36, 0.95), (0.42, 0.95), (0.56, 0.34), (0.5, 0.34)], _DARK)
        part([(-0.22, 0.95), (-0.02, 1.0), (0.12, 0.62), (0.0, 0.2), (-0.1, 0.2), (-0.02, 0.6)],
             legs)  # fmt: skip
        lean, top, head = 0.24, 1.42, 1.58
        part([(lean, top - 0.06), (lean + 0.06, top - 0.14), (0.46, 1.0), (0.38, 1.0)], coat)
    part([(-0.2, 0.92), (0.2 - lean * 0.6, 0.92), (0.22 + lean, top), (-0.2 + lean * 1.3, top)],
         coat)  # fmt: skip
    part(_disc(lean * 1.4, head, 0.12), _SKIN)
    part([(w, y) for w, y in _disc(lean * 1.4, head + 0.04, 0.14) if y >= head + 0.03],
         _pick(rng, _CLOTHES))  # fmt: skip


def _car(world: World, rng: np.random.Generator, s: float, z: float, away: bool) -> None:
    road = world.road
    van = rng.random() < 0.15
    paint = _tint(rng, _WHITE if van and rng.random() < 0.6 else _pick(rng, _CARS), 0.03)
    long, wide = (4.9, 1.9) if van else (float(rng.uniform(3.8, 4.5)), 1.74)
    belt, roof = (1.15, 2.05) if van else (0.88, float(rng.uniform(1.40, 1.52)))
    x, _, _ = road.at(s, z)
    slope = road.yaw + road.curve * (z + long / 2)
    norm = math.hypot(1.0, slope)
    fx, fz = slope / norm, 1.0 / norm

    def at(along: float, across: float, y: float) -> Point:
        """Map a place in the car, `along` from its near end, to the world."""
        return (x + along * fx + across * fz, y, z + along * fz - across * fx)

    def ring(a0: float, a1: float, w: float, y: float) -> list[Point]:
        return [at(a0, -w, y), at(a1, -w, y), at(a1, w, y), at(a0, w, y)]

    place, half = (s, z), wide / 2
    world.feet.append((s, z, long, half))
    world.prism(ring(0.15, long - 0.15, half - 0.1, 0.08), ring(0.15, long - 0.15, half - 0.1, 0.4),
                place, CAR, _DARK)  # fmt: skip
    world.prism(ring(0.05, long - 0.05, half, 0.3), ring(0.12, long - 0.12, half - 0.04, belt),
                place, CAR, paint)  # fmt: skip
    # The bonnet is at the far end of a car that drives away, at the near end otherwise.
    tail, nose = (0.15, 0.95 if van else 1.25)
    a0, a1 = (tail, long - nose) if away else (nose, long - tail)
    lean0, lean1 = (0.3, 0.75) if away else (0.75, 0.3)
    if van:
        lean0, lean1 = (0.05, 0.6) if away else (0.6, 0.05)
    glass = (0.13, 0.16, 0.19)
    world.prism(ring(a0, a1, half - 0.06, belt), ring(a0 + lean0, a1 - lean1, half - 0.2, roof),
                place, CAR, paint, glass)  # fmt: skip
    _car_details(world, at, place, long, half, belt, away)


def _car_details(
    world: World,
    at: At,
    place: tuple[float, float],
    long: float,
    half: float,
    belt: float,
    away: bool,
) -> None:
    middle = at(long / 2, 0.0, 0.5)
    for across in (-half, half):
        for along in (0.78, long - 0.78):
            for radius, colour in ((0.33, _DARK), (0.18, (0.45, 0.46, 0.48))):
                wheel = [at(along + w, across * 1.005, y) for w, y in _disc(0.0, 0.33, radius)]
                world.add(wheel, place, CAR, colour, away_from=middle)

    def panel(w0: float, w1: float, y0: float, y1: float, colour: Colour) -> None:
        points = [at(0.03, w0, y0), at(0.03, w1, y0), at(0.06, w1, y1), at(0.06, w0, y1)]
        world.add(points, place, CAR, colour, away_from=middle)

    lamp = (0.62, 0.06, 0.06) if away else (0.92, 0.92, 0.84)
    panel(-half + 0.04, -half + 0.34, belt - 0.28, belt - 0.08, lamp)
    panel(half - 0.34, half - 0.04, belt - 0.28, belt - 0.08, lamp)
    panel(-half + 0.02, half - 0.02, 0.32, 0.42, (0.12, 0.12, 0.13))
    panel(-0.26, 0.26, 0.46, 0.57, (0.85, 0.80, 0.40) if away else (0.86, 0.86, 0.84))
    if not away:
        panel(-0.5, 0.5, belt - 0.27, belt - 0.14, (0.10, 0.10, 0.11))


def _parked(world: World, rng: np.random.Generator, sign: int) -> None:
    s, z = sign * (world.road.half - 1.0), float(rng.uniform(4.0, 12.0))
    index = 0 if sign < 0 else 1
    while z < 75.0:
        kinds, bounds = world.kinds[index], world.bounds[index]
        spots = {min(bisect_right(bounds, q) - 1, len(kinds) - 1) for q in (z, z + 5.0)}
        if all(kinds[i] != JUNCTION for i in spots) and rng.random() < 0.75:
            _car(world, rng, s, z, away=sign == world.road.side)
        z += float(rng.uniform(5.4, 8.0))


def _traffic(world: World, rng: np.random.Generator) -> None:
    road = world.road
    for sign in (-1, 1):
        away = sign == road.side
        z = float(rng.uniform(10.0, 28.0)) if away else float(rng.uniform(7.0, 22.0))
        while z < 80.0:
            if rng.random() < 0.25:
                _cyclist(world, rng, sign * float(rng.uniform(2.0, 2.4)), z)
                z += 3.0
            elif rng.random() < 0.6:
                _car(world, rng, sign * LANE, z, away)
            elif rng.random() < 0.2:
                _person(world, rng, sign * float(rng.uniform(0.5, 3.0)), z)
            z += float(rng.uniform(9.0, 24.0))


def _blob(
    rng: np.random.Generator, w: float, y: float, rw: float, ry: float
) -> list[tuple[float, float]]:
    n = 48
    rough = 0.05 * rng.standard_normal(n + 3)
    radii = 1.0 + rough[3:] + rough[2:-1] + rough[1:-2] + rough[:-3]
    angles = np.linspace(0.0, 2 * np.pi, n, endpoint=False)
    across, up = w + rw * radii * np.cos(angles), y + ry * radii * np.sin(angles)
    return list(zip(across.tolist(), up.tolist(), strict=True))


def _disc(w: float, y: float, r: float, n: int = 14) -> list[tuple[float, float]]:
    step = 2 * math.pi / n
    return [(w + r * math.cos(i * step), y + r * math.sin(i * step)) for i in range(n)]


def _inset(points: Sequence[Point], k: float) -> list[Point]:
    n = len(points)
    mx, my, mz = (sum(p[i] for p in points) / n for i in range(3))
    return [(mx + k * (x - mx), my + k * (y - my), mz + k * (z - mz)) for x, y, z in points]


def _green(rng: np.random.Generator) -> Colour:
    return _tint(rng, (0.24, 0.32, 0.15), 0.05)


def _tint(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    grey = float(rng.uniform(-spread, spread))
    r, g, b = (rng.uniform(-spread, spread, 3) * 0.4 + grey + np.array(colour)).clip(0.02, 1.0)
    return (float(r), float(g), float(b))


def _pick(rng: np.random.Generator, colours: Sequence[Colour]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def _scale(colour: Colour, k: float) -> Colour:
    return (colour[0] * k, colour[1] * k, colour[2] * k)


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
