"""Vehicles and people of a procedural road scene."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np

from spiritseg.scenes import world as sw
from spiritseg.scenes.world import Colour, Point, World, box, disc, pick, scale, tint

__all__ = ["moving", "parked", "pavement_people"]

At = Callable[[float, float, float], Point]

_CARS: tuple[Colour, ...] = (
    (0.10, 0.10, 0.11), (0.20, 0.21, 0.23), (0.55, 0.57, 0.60), (0.78, 0.79, 0.80),
    (0.46, 0.10, 0.10), (0.12, 0.18, 0.36), (0.30, 0.31, 0.33), (0.16, 0.26, 0.20),
)  # fmt: skip
_CLOTHES: tuple[Colour, ...] = (
    (0.15, 0.16, 0.20), (0.45, 0.12, 0.12), (0.20, 0.28, 0.45), (0.60, 0.58, 0.52),
    (0.30, 0.34, 0.26), (0.72, 0.62, 0.20), (0.38, 0.30, 0.26),
)  # fmt: skip
_SKIN: Colour = (0.72, 0.54, 0.44)
_WHITE: Colour = (0.88, 0.88, 0.86)
_DARK: Colour = (0.07, 0.07, 0.08)


def pavement_people(world: World, rng: np.random.Generator, index: int, sign: int) -> None:
    """Put people on the pavement of one side (0 left, 1 right), sign -1 or 1."""
    room = world.road.shoulders[index]
    for _ in range(int(rng.poisson(1.6))):
        s = sign * (world.road.half + float(rng.uniform(0.9, room - 0.3)))
        _person(world, rng, s, float(rng.uniform(6.0, 40.0)))


def _person(world: World, rng: np.random.Generator, s: float, z: float) -> None:
    k = float(rng.uniform(0.92, 1.06))
    legs, coat = pick(rng, _CLOTHES[:4]), pick(rng, _CLOTHES)
    step = float(rng.uniform(0.03, 0.22))
    place = (s, z)

    def part(points: Sequence[tuple[float, float]], colour: Colour) -> None:
        world.cutout(place, [(w * k, y * k) for w, y in points], sw.PEDESTRIAN, colour)

    part([(-0.13, 0.9), (0.02, 0.9), (-step + 0.06, 0.0), (-step - 0.1, 0.0)], legs)
    part([(-0.02, 0.9), (0.13, 0.9), (step + 0.12, 0.0), (step - 0.04, 0.0)], scale(legs, 0.85))
    part([(-0.19, 0.85), (0.19, 0.85), (0.23, 1.42), (0.10, 1.50), (-0.10, 1.50), (-0.23, 1.42)],
         coat)  # fmt: skip
    for side in (-1, 1):
        part([(side * 0.2, 1.44), (side * 0.27, 1.40), (side * 0.29, 0.85), (side * 0.21, 0.85)],
             scale(coat, 0.85))  # fmt: skip
    part(disc(0.0, 1.63, 0.125), _SKIN)
    hair = [(w, y + 0.03) for w, y in disc(0.0, 1.65, 0.125) if y >= 1.65]
    part(hair, tint(rng, (0.2, 0.15, 0.12), 0.06))


def _cyclist(world: World, rng: np.random.Generator, s: float, z: float) -> None:
    coat, legs = pick(rng, _CLOTHES), pick(rng, _CLOTHES[:3])
    place = (s, z)

    def part(points: Sequence[tuple[float, float]], colour: Colour) -> None:
        world.cutout(place, points, sw.BICYCLIST, colour)

    if rng.random() < 0.65:  # riding along the road, seen from behind
        part(box(-0.04, 0.04, 0.0, 0.7), _DARK)
        for side, foot in ((-1, 0.15), (1, 0.38)):
            part([(side * 0.05, 0.98), (side * 0.19, 0.95), (side * 0.18, foot),
                  (side * 0.06, foot)], legs)  # fmt: skip
        lean, top, head = 0.0, 1.48, 1.60
        part(box(-0.3, 0.3, 1.02, 1.06), _DARK)
    else:  # crossing, seen from the side
        for across in (-0.52, 0.52):
            ring = disc(across, 0.34, 0.34, 18)
            inner = disc(across, 0.34, 0.26, 18)
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
    part(disc(lean * 1.4, head, 0.12), _SKIN)
    part([(w, y) for w, y in disc(lean * 1.4, head + 0.04, 0.14) if y >= head + 0.03],
         pick(rng, _CLOTHES))  # fmt: skip


def _car(world: World, rng: np.random.Generator, s: float, z: float, away: bool) -> None:
    road = world.road
    van = rng.random() < 0.15
    paint = tint(rng, _WHITE if van and rng.random() < 0.6 else pick(rng, _CARS), 0.03)
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
                place, sw.CAR, _DARK)  # fmt: skip
    world.prism(ring(0.05, long - 0.05, half, 0.3), ring(0.12, long - 0.12, half - 0.04, belt),
                place, sw.CAR, paint)  # fmt: skip
    # The bonnet is at the far end of a car that drives away, at the near end otherwise.
    tail, nose = (0.15, 0.95 if van else 1.25)
    a0, a1 = (tail, long - nose) if away else (nose, long - tail)
    lean0, lean1 = (0.3, 0.75) if away else (0.75, 0.3)
    if van:
        lean0, lean1 = (0.05, 0.6) if away else (0.6, 0.05)
    glass = (0.13, 0.16, 0.19)
    world.prism(ring(a0, a1, half - 0.06, belt), ring(a0 + lean0, a1 - lean1, half - 0.2, roof),
                place, sw.CAR, paint, glass)  # fmt: skip
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
                wheel = [at(along + w, across * 1.005, y) for w, y in disc(0.0, 0.33, radius)]
                world.add(wheel, place, sw.CAR, colour, away_from=middle)

    def panel(w0: float, w1: float, y0: float, y1: float, colour: Colour) -> None:
        points = [at(0.03, w0, y0), at(0.03, w1, y0), at(0.06, w1, y1), at(0.06, w0, y1)]
        world.add(points, place, sw.CAR, colour, away_from=middle)

    lamp = (0.62, 0.06, 0.06) if away else (0.92, 0.92, 0.84)
    panel(-half + 0.04, -half + 0.34, belt - 0.28, belt - 0.08, lamp)
    panel(half - 0.34, half - 0.04, belt - 0.28, belt - 0.08, lamp)
    panel(-half + 0.02, half - 0.02, 0.32, 0.42, (0.12, 0.12, 0.13))
    panel(-0.26, 0.26, 0.46, 0.57, (0.85, 0.80, 0.40) if away else (0.86, 0.86, 0.84))
    if not away:
        panel(-0.5, 0.5, belt - 0.27, belt - 0.14, (0.10, 0.10, 0.11))


def parked(world: World, rng: np.random.Generator, sign: int) -> None:
    """Park cars along one side of the road, sign -1 or 1."""
    s, z = sign * (world.road.half - 1.0), float(rng.uniform(4.0, 12.0))
    index = 0 if sign < 0 else 1
    while z < 75.0:
        kinds, bounds = world.kinds[index], world.bounds[index]
        spots = {min(bisect_right(bounds, q) - 1, len(kinds) - 1) for q in (z, z + 5.0)}
        if all(kinds[i] != sw.JUNCTION for i in spots) and rng.random() < 0.75:
            _car(world, rng, s, z, away=sign == world.road.side)
        z += float(rng.uniform(5.4, 8.0))


def moving(world: World, rng: np.random.Generator) -> None:
    """Put cars, cyclists and people on the road."""
    road = world.road
    for sign in (-1, 1):
        away = sign == road.side
        z = float(rng.uniform(10.0, 28.0)) if away else float(rng.uniform(7.0, 22.0))
        while z < 80.0:
            if rng.random() < 0.25:
                _cyclist(world, rng, sign * float(rng.uniform(2.0, 2.4)), z)
                z += 3.0
            elif rng.random() < 0.6:
                _car(world, rng, sign * sw.LANE, z, away)
            elif rng.random() < 0.2:
                _person(world, rng, sign * float(rng.uniform(0.5, 3.0)), z)
            z += float(rng.uniform(9.0, 24.0))
