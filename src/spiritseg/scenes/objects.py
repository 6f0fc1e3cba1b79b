"""What stands in a procedural road scene: houses, fences, trees, lamps, signs, and traffic."""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np

from spiritseg.scenes import world as sw
from spiritseg.scenes.traffic import moving, parked, pavement_people
from spiritseg.scenes.world import (
    Caster,
    Colour,
    Face,
    Road,
    World,
    blob,
    box,
    disc,
    pick,
    scale,
    tint,
)

__all__ = ["build"]

_FACADES: tuple[Colour, ...] = (
    (0.62, 0.42, 0.34), (0.70, 0.62, 0.50), (0.58, 0.52, 0.46), (0.74, 0.70, 0.64),
    (0.50, 0.34, 0.28), (0.56, 0.57, 0.58), (0.78, 0.72, 0.58), (0.44, 0.44, 0.46),
)  # fmt: skip
_RED: Colour = (0.74, 0.10, 0.10)
_WHITE: Colour = (0.88, 0.88, 0.86)
_DARK: Colour = (0.07, 0.07, 0.08)


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
        pavement_people(world, rng, index, sign)
        if parking[index]:
            parked(world, rng, sign)
    moving(world, rng)
    return world


def _sections(rng: np.random.Generator) -> tuple[list[float], list[int]]:
    bounds: list[float] = [-6.0]
    kinds: list[int] = []
    while bounds[-1] < sw.FAR - 6:
        last = kinds[-1] if kinds else sw.PARK
        weights = (0.14, 0.58, 0.20, 0.08 if last != sw.JUNCTION else 0.0)
        kind = int(rng.choice(4, p=np.array(weights) / sum(weights)))
        if kind == sw.JUNCTION and bounds[-1] < 6:
            kind = sw.HOUSES  # a junction beside the camera leaves nothing to see there
        length = rng.uniform(6.0, 8.0) if kind == sw.JUNCTION else rng.uniform(8.0, 20.0)
        bounds.append(float(bounds[-1] + length))
        kinds.append(kind)
    return bounds, kinds


def _backdrop(world: World, rng: np.random.Generator) -> None:
    x = -170.0
    while x < 170.0:
        width = float(rng.uniform(6.0, 18.0))
        tall = float(rng.uniform(5.0, 15.0))
        if rng.random() < 0.5:
            shape = box(x, x + width, 0.0, tall)
            colour = pick(rng, _FACADES)
            label, kind, params = sw.BUILDING, sw.FACADE, (3.0, 3.0, float(rng.integers(1000)), 0.0)
        else:
            shape = blob(rng, x + width / 2, tall * 0.4, width * 0.7, tall * 0.55)
            colour, label, kind, params = _green(rng), sw.TREE, sw.LEAVES, (0.0, tall, 0.0, 0.0)
        points = [(w, max(y, 0.0), sw.FAR) for w, y in shape]
        face = Face.facing(points, label, colour, kind, params)
        world.faces.append(((-10_000, 0.0, 0.0, len(world.faces)), face))
        x += width * float(rng.uniform(0.55, 0.95))
    hedge = [(w, y, sw.FAR) for w, y in box(-200.0, 200.0, 0.0, 3.0)]
    face = Face.facing(hedge, sw.TREE, _green(rng), sw.LEAVES, (0.0, 3.0, 0.0, 0.0))
    world.faces.append(((-9_999, 0.0, 0.0, len(world.faces)), face))


def _roadside(world: World, rng: np.random.Generator, index: int, sign: int) -> None:
    edge = world.road.half + world.road.shoulders[index]
    bounds, kinds = world.bounds[index], world.kinds[index]
    for z0, z1, kind in zip(bounds, bounds[1:], kinds, strict=False):
        if kind == sw.HOUSES:
            _house(world, rng, sign * edge, z0, z1)
        elif kind in (sw.PARK, sw.OPEN):
            if rng.random() < 0.75:
                _fence(world, rng, sign * (edge + 0.05), z0, z1)
            count = int(rng.integers(2, 5)) if kind == sw.PARK else int(rng.integers(0, 2))
            for z in np.sort(rng.uniform(z0 + 1.0, z1 - 1.0, count))[::-1].tolist():
                if z > 3.0:
                    _tree(world, rng, sign * (edge + float(rng.uniform(1.5, 6.0))), z)
            if kind == sw.PARK:
                _hedge(world, rng, sign * (edge + 7.5), z0, z1)


def _pieces(world: World, z0: float, z1: float) -> list[tuple[float, float]]:
    inner = [c for c in world.cuts if z0 < c < z1]
    return list(zip([z0, *inner], [*inner, z1], strict=True))


def _house(world: World, rng: np.random.Generator, s: float, z0: float, z1: float) -> None:
    road, colour = world.road, tint(rng, pick(rng, _FACADES), 0.05)
    floors = int(rng.integers(2, 5))
    pitch = float(rng.uniform(2.9, 3.4))
    tall, depth = floors * pitch + 0.4, math.copysign(9.0, s)
    texture = (float(rng.uniform(2.0, 3.4)), pitch, float(rng.integers(1000)))
    gable = rng.random() < 0.6
    slate = tint(rng, (0.36, 0.30, 0.28), 0.08)
    for za, zb in _pieces(world, z0, z1):
        if zb < 0.4:
            continue
        place = (s, max(za, 0.0))
        behind = road.at(s + depth, za)
        world.add(
            road.wall(s, za, zb, tall),
            place,
            sw.BUILDING,
            colour,
            sw.FACADE,
            (*texture, za - z0),
            behind,
        )
        if gable:
            eaves = [road.at(s, za, tall), road.at(s, zb, tall)]
            ridge = [road.at(s + depth / 2, zb, tall + 2.4), road.at(s + depth / 2, za, tall + 2.4)]
            under = road.at(s + depth / 2, (za + zb) / 2, 0.0)
            world.add([*eaves, *ridge], (s + depth / 4, place[1]), sw.BUILDING, slate, sw.ROOF,
                      away_from=under)  # fmt: skip
    if z0 > 0.4:
        end = [road.at(s, z0), road.at(s + depth, z0), road.at(s + depth, z0, tall)]
        if gable:
            end.append(road.at(s + depth / 2, z0, tall + 2.4))
        end.append(road.at(s, z0, tall))
        world.add(end, (s + depth / 8, z0), sw.BUILDING, scale(colour, 0.94), sw.BRICK,
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
    kind = sw.RAILING if rng.random() < 0.5 else sw.PLANKS
    base = (0.12, 0.14, 0.13) if kind == sw.RAILING else (0.46, 0.34, 0.24)
    colour = tint(rng, base, 0.06)
    road = world.road
    for za, zb in _pieces(world, z0, z1):
        if zb < 0.4:
            continue
        wall = road.wall(s, za, zb, tall)
        world.add(wall, (s, max(za, 0.0)), sw.FENCE, colour, kind, (0.0, tall, 0.0, 0.0))
        world.casters.append(Caster(wall, 0.0, leafy=kind == sw.RAILING))


def _hedge(world: World, rng: np.random.Generator, s: float, z0: float, z1: float) -> None:
    road, colour, tall = world.road, _green(rng), float(rng.uniform(1.8, 4.5))
    for za, zb in _pieces(world, z0, z1):
        if zb > 0.4:
            tops = [(float(z), tall * float(rng.uniform(0.85, 1.15)))
                    for z in np.linspace(zb, za, 6)]  # fmt: skip
            points = [road.at(s, za), road.at(s, zb), *(road.at(s, z, y) for z, y in tops)]
            world.add(points, (s, max(za, 0.0)), sw.TREE, colour, sw.LEAVES, (0.0, tall, 0.0, 0.0))


def _tree(world: World, rng: np.random.Generator, s: float, z: float) -> None:
    trunk = float(rng.uniform(2.2, 3.2))
    radius = float(rng.uniform(1.5, 2.7))
    w, bark = float(rng.uniform(0.10, 0.2)), tint(rng, (0.26, 0.21, 0.17), 0.04)
    place, leaf = (s, z), _green(rng)
    shape = [(-w * 1.3, 0.0), (w * 1.3, 0.0), (w, trunk + radius * 0.5), (-w, trunk + radius * 0.5)]
    world.cutout(place, shape, sw.TREE, bark)
    for across, up, size, tone in ((0.0, 0.75, 1.0, 0.86), (-0.45, 0.6, 0.62, 0.95),
                                   (0.42, 0.9, 0.66, 1.0), (-0.05, 1.3, 0.6, 1.12)):  # fmt: skip
        shift = across + float(rng.uniform(-0.15, 0.15))
        crown = blob(rng, shift * radius, trunk + up * radius, size * radius, size * radius)
        world.cutout(place, crown, sw.TREE, scale(leaf, tone), sw.LEAVES, leafy=True)


def _furniture(world: World, rng: np.random.Generator, index: int, sign: int) -> None:
    s = sign * (world.road.half + 0.4)
    trees = rng.random() < 0.35
    z, lamps = float(rng.uniform(5.0, 14.0)), float(rng.uniform(22.0, 30.0))
    next_lamp = float(rng.uniform(7.0, 20.0))
    while z < 85.0:
        section = bisect_right(world.bounds[index], z) - 1
        if world.kinds[index][min(section, len(world.kinds[index]) - 1)] != sw.JUNCTION:
            if z >= next_lamp:
                _lamp(world, rng, s, z, -sign)
                next_lamp = z + lamps
            elif trees and rng.random() < 0.6:
                _tree(world, rng, sign * (world.road.half + 0.8), z)
            elif rng.random() < 0.4:
                _sign(world, rng, s, z)
        z += float(rng.uniform(5.0, 9.0))


def _lamp(world: World, rng: np.random.Generator, s: float, z: float, inward: int) -> None:
    tall, grey = float(rng.uniform(5.5, 8.0)), tint(rng, (0.36, 0.38, 0.38), 0.08)
    place = (s, z)
    post = [(-0.09, 0.0), (0.09, 0.0), (0.06, tall), (-0.06, tall)]
    world.cutout(place, post, sw.POLE, grey)
    arm = [(0.0, tall - 0.1), (inward * 1.5, tall + 0.15), (inward * 1.5, tall + 0.25), (0.0, tall)]
    world.cutout(place, arm, sw.POLE, grey)
    head = [(inward * 1.1, tall + 0.12), (inward * 1.8, tall + 0.2),
            (inward * 1.8, tall + 0.32), (inward * 1.1, tall + 0.3)]  # fmt: skip
    world.cutout(place, head, sw.POLE, scale(grey, 1.2), shadow=False)


def _sign(world: World, rng: np.random.Generator, s: float, z: float) -> None:
    place, top = (s, z), float(rng.uniform(2.3, 2.9))
    kind = int(rng.integers(4))
    world.cutout(place, box(-0.05, 0.05, 0.0, top + 0.2), sw.POLE, (0.42, 0.43, 0.44))
    if kind == 0:  # a round one
        world.cutout(place, disc(0.0, top, 0.36), sw.SIGN, _RED)
        world.cutout(place, disc(0.0, top, 0.27), sw.SIGN, _WHITE, shadow=False)
        world.cutout(place, box(-0.16, 0.16, top - 0.05, top + 0.05), sw.SIGN, _DARK, shadow=False)
    elif kind == 1:  # a triangle
        for size, colour in ((0.45, _RED), (0.29, _WHITE)):
            tri = [(-size, top - size * 0.55), (size, top - size * 0.55), (0.0, top + size * 1.1)]
            world.cutout(place, tri, sw.SIGN, colour, shadow=size > 0.3)
    elif kind == 2:  # a blue plate
        world.cutout(place, box(-0.34, 0.34, top - 0.4, top + 0.4), sw.SIGN, (0.10, 0.24, 0.58))
        arrow = [(-0.06, top - 0.3), (0.06, top - 0.3), (0.06, top + 0.05), (0.18, top + 0.05),
                 (0.0, top + 0.3), (-0.18, top + 0.05), (-0.06, top + 0.05)]  # fmt: skip
        world.cutout(place, arrow, sw.SIGN, _WHITE, shadow=False)
    else:  # a traffic light
        world.cutout(place, box(-0.18, 0.18, top - 0.5, top + 0.5), sw.SIGN, _DARK)
        lit = int(rng.integers(3))
        for i, colour in enumerate(((0.15, 0.75, 0.35), (0.9, 0.6, 0.1), (0.9, 0.12, 0.1))):
            lamp = disc(0.0, top + (i - 1) * 0.32, 0.12)
            world.cutout(place, lamp, sw.SIGN, colour if i == lit else scale(colour, 0.25),
                         shadow=False)  # fmt: skip


def _green(rng: np.random.Generator) -> Colour:
    return tint(rng, (0.24, 0.32, 0.15), 0.05)
