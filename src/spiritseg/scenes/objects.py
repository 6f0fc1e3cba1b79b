"""What stands in a procedural road scene: houses, trees, fences, signs, cars and people."""

from __future__ import annotations

import math

import numpy as np

from spiritseg.scenes import world as sw
from spiritseg.scenes.world import Caster, Colour, Face, Point, Shape, Side, World

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
_SKIN, _RED, _WHITE, _DARK = (
    (0.72, 0.54, 0.44), (0.74, 0.10, 0.10), (0.88, 0.88, 0.86), (0.07, 0.07, 0.08),
)  # fmt: skip

_Parts = list[tuple[Shape, Colour]]


def build(rng: np.random.Generator, side: int, height: float) -> World:
    """Draw a world.

    Args:
        rng: generator of the layout.
        side: -1 for driving on the left, 1 on the right.
        height: of the camera in metres.
    """
    parking = {-1: rng.random() < 0.32, 1: rng.random() < 0.32}
    half = float(rng.uniform(4.7, 5.1) if any(parking.values()) else rng.uniform(3.2, 4.2))
    widths = [float(rng.uniform(2.0, 4.4)) for _ in parking]
    curve = float(np.clip(rng.normal(0.0, 0.0042), -0.008, 0.008))
    yaw = float(rng.normal(0.0, 0.012))
    sides = {s: Side(width, *_sections(rng)) for s, width in zip(parking, widths, strict=True)}
    world = World(half, curve, yaw, side, height, sides)
    _backdrop(world, rng)
    for sign in (-1, 1):
        _roadside(world, rng, sign)
        _furniture(world, rng, sign)
        for _ in range(int(rng.poisson(1.6))):
            s = sign * (half + float(rng.uniform(0.9, sides[sign].width - 0.3)))
            _person(world, rng, s, float(rng.uniform(6.0, 40.0)))
        if parking[sign]:
            _parked(world, rng, sign)
    for sign in (-1, 1):
        _moving(world, rng, sign)
    return world


def _sections(rng: np.random.Generator) -> tuple[list[float], list[int]]:
    bounds, kinds = [-6.0], [sw.PARK]
    while bounds[-1] < sw.FAR - 6:
        weights = (0.14, 0.58, 0.20, 0.08 if kinds[-1] != sw.JUNCTION else 0.0)
        kind = int(rng.choice(4, p=np.array(weights) / sum(weights)))
        if kind == sw.JUNCTION and bounds[-1] < 6:
            kind = sw.HOUSES  # a junction next to the camera leaves nothing to see there
        length = rng.uniform(6.0, 8.0) if kind == sw.JUNCTION else rng.uniform(8.0, 20.0)
        bounds.append(float(bounds[-1] + length))
        kinds.append(kind)
    return bounds, kinds[1:]


def _backdrop(world: World, rng: np.random.Generator) -> None:
    def stand(layer: int, shape: Shape, label: int, colour: Colour, kind: int,
              params: sw.Params) -> None:  # fmt: skip
        points = [(w, max(y, 0.0), sw.FAR) for w, y in shape]
        key = (layer, 0.0, 0.0, len(world.faces))
        world.faces.append((key, Face(points, label, colour, kind, params)))

    x = -170.0
    while x < 170.0:
        width, tall = float(rng.uniform(6.0, 18.0)), float(rng.uniform(5.0, 15.0))
        if rng.random() < 0.5:
            colour, shape = _pick(rng, _FACADES), _box(x, x + width, 0.0, tall)
            texture = (3.0, 3.0, float(rng.integers(1000)), 0.0)
            stand(-10_000, shape, sw.BUILDING, colour, sw.FACADE, texture)
        else:
            shape = _blob(rng, x + width / 2, tall * 0.4, width * 0.7, tall * 0.55)
            stand(-10_000, shape, sw.TREE, _green(rng), sw.LEAVES, (0.0, tall, 0.0, 0.0))
        x += width * float(rng.uniform(0.55, 0.95))
    hedge = _box(-200.0, 200.0, 0.0, 3.0)
    stand(-9_999, hedge, sw.TREE, _green(rng), sw.LEAVES, (0.0, 3.0, 0.0, 0.0))


def _roadside(world: World, rng: np.random.Generator, sign: int) -> None:
    edge = world.half + world.sides[sign].width
    for z0, z1, kind in world.sides[sign].sections():
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


def _house(world: World, rng: np.random.Generator, s: float, z0: float, z1: float) -> None:
    at, colour = world.at, _tint(rng, _pick(rng, _FACADES), 0.05)
    floors = int(rng.integers(2, 5))
    pitch = float(rng.uniform(2.9, 3.4))
    tall, depth = floors * pitch + 0.4, math.copysign(9.0, s)
    texture = (float(rng.uniform(2.0, 3.4)), pitch, float(rng.integers(1000)))
    gable = rng.random() < 0.6
    slate = _tint(rng, (0.36, 0.30, 0.28), 0.08)
    back, ridge, top = s + depth, s + depth / 2, tall + 2.4
    for za, zb in world.pieces(z0, z1):
        near = max(za, 0.0)
        world.add(world.wall(s, za, zb, tall), (s, near), sw.BUILDING, colour, sw.FACADE,
                  (*texture, za - z0), at(back, za))  # fmt: skip
        if gable:
            roof = [at(s, za, tall), at(s, zb, tall), at(ridge, zb, top), at(ridge, za, top)]
            world.add(roof, (s + depth / 4, near), sw.BUILDING, slate, sw.ROOF,
                      away_from=at(ridge, (za + zb) / 2))  # fmt: skip
    if z0 > 0.4:
        peak = [at(ridge, z0, top)] if gable else []
        end = [at(s, z0), at(back, z0), at(back, z0, tall), *peak, at(s, z0, tall)]
        world.add(end, (s + depth / 8, z0), sw.BUILDING, _scale(colour, 0.94), sw.BRICK,
                  away_from=at(s, z0 + 1.0))  # fmt: skip
    corners = [(s, z0), (s, z1), (back, z1), (back, z0)]
    for low, high in ((0.0, tall * 0.5), (tall * 0.5, tall)):
        for a, b in zip(corners, [*corners[1:], corners[0]], strict=True):
            wall = [at(*a, low), at(*b, low), at(*b, high), at(*a, high)]
            world.casters.append(Caster(wall, low))
    world.casters.append(Caster([at(*corner, tall) for corner in corners], tall))


def _fence(world: World, rng: np.random.Generator, s: float, z0: float, z1: float) -> None:
    tall = float(rng.uniform(0.9, 1.8))
    railing = rng.random() < 0.5
    colour = _tint(rng, (0.12, 0.14, 0.13) if railing else (0.46, 0.34, 0.24), 0.06)
    kind = sw.RAILING if railing else sw.PLANKS
    for za, zb in world.pieces(z0, z1):
        wall = world.wall(s, za, zb, tall)
        world.add(wall, (s, max(za, 0.0)), sw.FENCE, colour, kind, (0.0, tall, 0.0, 0.0))
        world.casters.append(Caster(wall, 0.0, leafy=railing))


def _hedge(world: World, rng: np.random.Generator, s: float, z0: float, z1: float) -> None:
    at, colour, tall = world.at, _green(rng), float(rng.uniform(1.8, 4.5))
    for za, zb in world.pieces(z0, z1):
        tops = [at(s, z, tall * float(rng.uniform(0.85, 1.15)))
                for z in np.linspace(zb, za, 6).tolist()]  # fmt: skip
        points = [at(s, za), at(s, zb), *tops]
        world.add(points, (s, max(za, 0.0)), sw.TREE, colour, sw.LEAVES, (0.0, tall, 0.0, 0.0))


def _tree(world: World, rng: np.random.Generator, s: float, z: float) -> None:
    trunk, radius = float(rng.uniform(2.2, 3.2)), float(rng.uniform(1.5, 2.7))
    w, bark = float(rng.uniform(0.10, 0.2)), _tint(rng, (0.26, 0.21, 0.17), 0.04)
    leaf, top = _green(rng), trunk + radius * 0.5
    shape = [(-w * 1.3, 0.0), (w * 1.3, 0.0), (w, top), (-w, top)]
    world.cutout((s, z), shape, sw.TREE, bark)
    for across, up, size, tone in ((0.0, 0.75, 1.0, 0.86), (-0.45, 0.6, 0.62, 0.95),
                                   (0.42, 0.9, 0.66, 1.0), (-0.05, 1.3, 0.6, 1.12)):  # fmt: skip
        shift = across + float(rng.uniform(-0.15, 0.15))
        crown = _blob(rng, shift * radius, trunk + up * radius, size * radius, size * radius)
        world.cutout((s, z), crown, sw.TREE, _scale(leaf, tone), sw.LEAVES, leafy=True)


def _furniture(world: World, rng: np.random.Generator, sign: int) -> None:
    s = sign * (world.half + 0.4)
    trees = rng.random() < 0.35
    z, lamps = float(rng.uniform(5.0, 14.0)), float(rng.uniform(22.0, 30.0))
    next_lamp = float(rng.uniform(7.0, 20.0))
    while z < 85.0:
        if world.sides[sign].kind_at(z) != sw.JUNCTION:
            if z >= next_lamp:
                _lamp(world, rng, s, z, -sign)
                next_lamp = z + lamps
            elif trees and rng.random() < 0.6:
                _tree(world, rng, sign * (world.half + 0.8), z)
            elif rng.random() < 0.4:
                _sign(world, rng, s, z)
        z += float(rng.uniform(5.0, 9.0))


def _lamp(world: World, rng: np.random.Generator, s: float, z: float, inward: int) -> None:
    tall, grey = float(rng.uniform(5.5, 8.0)), _tint(rng, (0.36, 0.38, 0.38), 0.08)
    post = [(-0.09, 0.0), (0.09, 0.0), (0.06, tall), (-0.06, tall)]
    arm = [(0.0, tall - 0.1), (inward * 1.5, tall + 0.15), (inward * 1.5, tall + 0.25), (0.0, tall)]
    head = [(inward * 1.1, tall + 0.12), (inward * 1.8, tall + 0.2),
            (inward * 1.8, tall + 0.32), (inward * 1.1, tall + 0.3)]  # fmt: skip
    world.cutout((s, z), post, sw.POLE, grey)
    world.cutout((s, z), arm, sw.POLE, grey)
    world.cutout((s, z), head, sw.POLE, _scale(grey, 1.2), shadow=False)


def _sign(world: World, rng: np.random.Generator, s: float, z: float) -> None:
    place, top = (s, z), float(rng.uniform(2.3, 2.9))
    kind = int(rng.integers(4))
    world.cutout(place, _box(-0.05, 0.05, 0.0, top + 0.2), sw.POLE, (0.42, 0.43, 0.44))
    for i, (shape, colour) in enumerate(_SIGNS[kind]):
        raised = [(w, y + top) for w, y in shape]
        world.cutout(place, raised, sw.SIGN, colour, shadow=i == 0)
    if kind == 3:
        lit = int(rng.integers(3))
        for i, colour in enumerate(((0.15, 0.75, 0.35), (0.9, 0.6, 0.1), (0.9, 0.12, 0.1))):
            lamp = _disc(0.0, top + (i - 1) * 0.32, 0.12)
            colour = colour if i == lit else _scale(colour, 0.25)
            world.cutout(place, lamp, sw.SIGN, colour, shadow=False)


def _person(world: World, rng: np.random.Generator, s: float, z: float) -> None:
    k = float(rng.uniform(0.92, 1.06))
    legs, coat = _pick(rng, _CLOTHES[:4]), _pick(rng, _CLOTHES)
    step = float(rng.uniform(0.03, 0.22))
    arms = [[(e * 0.2, 1.44), (e * 0.27, 1.40), (e * 0.29, 0.85), (e * 0.21, 0.85)]
            for e in (-1, 1)]  # fmt: skip
    parts: _Parts = [
        ([(-0.13, 0.9), (0.02, 0.9), (-step + 0.06, 0.0), (-step - 0.1, 0.0)], legs),
        ([(-0.02, 0.9), (0.13, 0.9), (step + 0.12, 0.0), (step - 0.04, 0.0)], _scale(legs, 0.85)),
        ([(-0.19, 0.85), (0.19, 0.85), (0.23, 1.42), (0.10, 1.50), (-0.10, 1.50), (-0.23, 1.42)],
         coat),
        *((arm, _scale(coat, 0.85)) for arm in arms),
        (_disc(0.0, 1.63, 0.125), _SKIN),
        ([(w, y + 0.03) for w, y in _disc(0.0, 1.65, 0.125) if y >= 1.65],
         _tint(rng, (0.2, 0.15, 0.12), 0.06)),
    ]  # fmt: skip
    for shape, colour in parts:
        world.cutout((s, z), [(w * k, y * k) for w, y in shape], sw.PEDESTRIAN, colour)


def _cyclist(world: World, rng: np.random.Generator, s: float, z: float) -> None:
    coat, legs = _pick(rng, _CLOTHES), _pick(rng, _CLOTHES[:3])
    parts: _Parts
    if rng.random() < 0.65:  # riding along the road, seen from behind
        lean, top, head = 0.0, 1.48, 1.60
        parts = [
            (_box(-0.04, 0.04, 0.0, 0.7), _DARK),
            ([(-0.05, 0.98), (-0.19, 0.95), (-0.18, 0.15), (-0.06, 0.15)], legs),
            ([(0.05, 0.98), (0.19, 0.95), (0.18, 0.38), (0.06, 0.38)], legs),
            (_box(-0.3, 0.3, 1.02, 1.06), _DARK),
        ]
    else:  # crossing, seen from the side
        lean, top, head = 0.24, 1.42, 1.58
        rings = [(_disc(w, 0.34, 0.34, 18), _disc(w, 0.34, 0.26, 18)) for w in (-0.52, 0.52)]
        parts = [
            *(([*ring, ring[0], inner[0], *inner[::-1]], _DARK) for ring, inner in rings),
            ([(-0.52, 0.31), (-0.1, 0.30), (0.38, 0.8), (0.42, 0.86), (-0.12, 0.84), (-0.16, 0.78),
              (0.3, 0.77), (-0.08, 0.4), (-0.52, 0.37)], (0.5, 0.12, 0.12)),
            ([(0.36, 0.95), (0.42, 0.95), (0.56, 0.34), (0.5, 0.34)], _DARK),
            ([(-0.22, 0.95), (-0.02, 1.0), (0.12, 0.62), (0.0, 0.2), (-0.1, 0.2), (-0.02, 0.6)],
             legs),
            ([(lean, top - 0.06), (lean + 0.06, top - 0.14), (0.46, 1.0), (0.38, 1.0)], coat),
        ]  # fmt: skip
    helmet = [(w, y) for w, y in _disc(lean * 1.4, head + 0.04, 0.14) if y >= head + 0.03]
    parts += [
        ([(-0.2, 0.92), (0.2 - lean * 0.6, 0.92), (0.22 + lean, top), (-0.2 + lean * 1.3, top)],
         coat),
        (_disc(lean * 1.4, head, 0.12), _SKIN),
        (helmet, _pick(rng, _CLOTHES)),
    ]  # fmt: skip
    for shape, colour in parts:
        world.cutout((s, z), shape, sw.BICYCLIST, colour)


def _car(world: World, rng: np.random.Generator, s: float, z: float, away: bool) -> None:
    van = rng.random() < 0.15
    paint = _tint(rng, _WHITE if van and rng.random() < 0.6 else _pick(rng, _CARS), 0.03)
    long, wide = (4.9, 1.9) if van else (float(rng.uniform(3.8, 4.5)), 1.74)
    belt, roof = (1.15, 2.05) if van else (0.88, float(rng.uniform(1.40, 1.52)))
    x = world.at(s, z)[0]
    slope = world.yaw + world.curve * (z + long / 2)
    norm = math.hypot(1.0, slope)
    fx, fz = slope / norm, 1.0 / norm
    place, half = (s, z), wide / 2
    world.feet.append((s, z, long, half))

    def at(along: float, across: float, y: float) -> Point:
        """Map a place in the car, `along` from its near end, to the world."""
        return (x + along * fx + across * fz, y, z + along * fz - across * fx)

    def ring(a0: float, a1: float, w: float, y: float) -> list[Point]:
        return [at(a0, -w, y), at(a1, -w, y), at(a1, w, y), at(a0, w, y)]

    world.prism(ring(0.15, long - 0.15, half - 0.1, 0.08), ring(0.15, long - 0.15, half - 0.1, 0.4),
                place, sw.CAR, _DARK)  # fmt: skip
    world.prism(ring(0.05, long - 0.05, half, 0.3), ring(0.12, long - 0.12, half - 0.04, belt),
                place, sw.CAR, paint)  # fmt: skip
    # The bonnet is at the far end of a car that drives away, at the near end otherwise.
    ends, leans = ((0.15, 0.95), (0.05, 0.6)) if van else ((0.15, 1.25), (0.3, 0.75))
    (a0, a1), (lean0, lean1) = (ends, leans) if away else (ends[::-1], leans[::-1])
    a1 = long - a1
    world.prism(ring(a0, a1, half - 0.06, belt), ring(a0 + lean0, a1 - lean1, half - 0.2, roof),
                place, sw.CAR, paint, (0.13, 0.16, 0.19))  # fmt: skip

    middle = at(long / 2, 0.0, 0.5)
    for across in (-half, half):
        for along in (0.78, long - 0.78):
            for radius, colour in ((0.33, _DARK), (0.18, (0.45, 0.46, 0.48))):
                disc = _disc(0.0, 0.33, radius)
                wheel = [at(along + w, across * 1.005, y) for w, y in disc]
                world.add(wheel, place, sw.CAR, colour, away_from=middle)
    lamp = (0.62, 0.06, 0.06) if away else (0.92, 0.92, 0.84)
    panels: list[tuple[float, float, float, float, Colour]] = [
        (-half + 0.04, -half + 0.34, belt - 0.28, belt - 0.08, lamp),
        (half - 0.34, half - 0.04, belt - 0.28, belt - 0.08, lamp),
        (-half + 0.02, half - 0.02, 0.32, 0.42, (0.12, 0.12, 0.13)),
        (-0.26, 0.26, 0.46, 0.57, (0.85, 0.80, 0.40) if away else (0.86, 0.86, 0.84)),
        (-0.5, 0.5, belt - 0.27, belt - 0.14, (0.10, 0.10, 0.11)),
    ]
    for w0, w1, y0, y1, colour in panels[: 4 if away else 5]:
        panel = [at(0.03, w0, y0), at(0.03, w1, y0), at(0.06, w1, y1), at(0.06, w0, y1)]
        world.add(panel, place, sw.CAR, colour, away_from=middle)


def _parked(world: World, rng: np.random.Generator, sign: int) -> None:
    s, z = sign * (world.half - 1.0), float(rng.uniform(4.0, 12.0))
    while z < 75.0:
        kinds = [world.sides[sign].kind_at(end) for end in (z, z + 5.0)]
        if sw.JUNCTION not in kinds and rng.random() < 0.75:
            _car(world, rng, s, z, away=sign == world.side)
        z += float(rng.uniform(5.4, 8.0))


def _moving(world: World, rng: np.random.Generator, sign: int) -> None:
    """Put cars, cyclists and people on one side of the road."""
    away = sign == world.side
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


def _blob(rng: np.random.Generator, w: float, y: float, rw: float, ry: float) -> Shape:
    """Outline a crown or a bush around (w, y) with radii of about rw and ry."""
    n = 48
    rough = 0.05 * rng.standard_normal(n + 3)
    radii = 1.0 + rough[3:] + rough[2:-1] + rough[1:-2] + rough[:-3]
    angles = np.linspace(0.0, 2 * np.pi, n, endpoint=False)
    across, up = w + rw * radii * np.cos(angles), y + ry * radii * np.sin(angles)
    return list(zip(across.tolist(), up.tolist(), strict=True))


def _box(x0: float, x1: float, y0: float, y1: float) -> Shape:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _disc(w: float, y: float, r: float, n: int = 14) -> Shape:
    step = 2 * math.pi / n
    return [(w + r * math.cos(i * step), y + r * math.sin(i * step)) for i in range(n)]


def _triangle(size: float) -> Shape:
    return [(-size, -size * 0.55), (size, -size * 0.55), (0.0, size * 1.1)]


def _tint(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    """Draw a colour near another one."""
    grey = float(rng.uniform(-spread, spread))
    near = rng.uniform(-spread, spread, 3) * 0.4 + grey + np.array(colour)
    r, g, b = near.clip(0.02, 1.0).tolist()
    return (r, g, b)


def _green(rng: np.random.Generator) -> Colour:
    return _tint(rng, (0.24, 0.32, 0.15), 0.05)


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def _scale(colour: Colour, k: float) -> Colour:
    return (colour[0] * k, colour[1] * k, colour[2] * k)


# Road signs around their centres: a disc, a triangle, an arrow, and the box of a traffic light.
_SIGNS: tuple[_Parts, ...] = (
    [(_disc(0.0, 0.0, 0.36), _RED), (_disc(0.0, 0.0, 0.27), _WHITE),
     (_box(-0.16, 0.16, -0.05, 0.05), _DARK)],
    [(_triangle(0.45), _RED), (_triangle(0.29), _WHITE)],
    [(_box(-0.34, 0.34, -0.4, 0.4), (0.10, 0.24, 0.58)),
     ([(-0.06, -0.3), (0.06, -0.3), (0.06, 0.05), (0.18, 0.05), (0.0, 0.3), (-0.18, 0.05),
       (-0.06, 0.05)], _WHITE)],
    [(_box(-0.18, 0.18, -0.5, 0.5), _DARK)],
)  # fmt: skip
