"""The ground of a procedural road scene: asphalt, markings, kerbs, pavements, verges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spiritseg.scenes import world as sw
from spiritseg.scenes.camera import Camera, Floats, Light
from spiritseg.scenes.shading import Canvas, hazy, noise, tiles, vector

__all__ = ["paint_ground"]


@dataclass(frozen=True)
class _Look:
    """What is drawn of the ground, each in [0, 1)."""

    grey: float
    patch_across: float
    patch_along: float
    patch_long: float
    paving: float
    dash_phase: float
    dash_share: float
    double_line: float
    edge_lines: tuple[float, float]
    crossing: float
    crossing_along: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Look:
        v = rng.random(16).tolist()
        edges = (v[8], v[9])
        return cls(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], edges, v[10], v[11])


@dataclass(frozen=True, eq=False)
class _Ground:
    """The pixels of the ground, (rows, W), or (rows, 1) for what only the depth decides.

    Args:
        x: metres right of the camera.
        z: depth in metres.
        s: metres right of the road's centre line.
        pixel: metres that a pixel covers across.
        deep: metres that it covers along.
        grain: fine noise, weaker where it cannot be resolved.
        blotch: coarse noise.
        is_road: where the road is.
        verge: where grass grows.
    """

    x: Floats
    z: Floats
    s: Floats
    pixel: Floats
    deep: Floats
    grain: Floats
    blotch: Floats
    is_road: npt.NDArray[np.bool_]
    verge: npt.NDArray[np.bool_]

    @property
    def gap(self) -> Floats:
        """Metres from the centre line."""
        return np.abs(self.s)


def paint_ground(
    canvas: Canvas,
    world: sw.World,
    camera: Camera,
    light: Light,
    rng: np.random.Generator,
    first: int,
) -> None:
    """Fill the rows below the horizon.

    Args:
        canvas: is painted on.
        world: its road and the feet of its cars are read.
        camera: the camera.
        light: of the scene.
        rng: the generator of the layout.
        first: the first row of the ground.
    """
    look = _Look.draw(rng)
    ground = _survey(world, camera, first)
    road, verge = ground.is_road, ground.verge
    rgb = np.where(road[..., None], _road(ground, world, look), _pavement(ground, world.road, look))
    rgb = np.where(verge[..., None], _grass(ground), rgb)
    _darken_under_cars(rgb, ground, world)
    rgb = rgb * (vector(light.tint) * np.float32(light.level))
    x, z = ground.x, ground.z
    canvas.image[first:] = hazy(rgb, z[..., None], light)
    canvas.labels[first:] = np.where(road, sw.ROAD, np.where(verge, sw.TREE, sw.PAVEMENT))
    canvas.place[first:] = np.stack([x, np.zeros_like(x), np.broadcast_to(z, x.shape)], -1)
    canvas.receives[first:] = True


def _survey(world: sw.World, camera: Camera, first: int) -> _Ground:
    """Find what each pixel from row `first` on shows."""
    road = world.road
    reach = (camera.height / -camera.up[first:])[:, None]
    z = np.minimum(reach * camera.forward[first:, None], np.float32(4000.0))
    x = reach * camera.across[None, :]
    bend = np.minimum(z, sw.FAR)
    s = x - np.float32(road.centre(0.0)) - road.yaw * bend - 0.5 * road.curve * bend**2
    s = np.asarray(s, np.float32)
    kind = _sections(world, z, s > 0)
    width = np.where(s > 0, *(np.float32(road.shoulders[i]) for i in (1, 0)))
    is_road = (np.abs(s) < road.half) | (kind == sw.JUNCTION)
    verge = ~is_road & (np.abs(s) > road.half + width) & (kind != sw.HOUSES)
    white, smooth = tiles()
    pixel = reach / np.float32(camera.focal)
    deep = z * z / np.float32(camera.height * camera.focal)
    grain = noise(white, x + 64, z, 26.0) * np.clip(0.06 / pixel, 0.15, 1.0)
    blotch = noise(smooth, x + 64, z, 5.0)
    return _Ground(x, z, s, pixel, deep, grain, blotch, is_road, verge)


def _sections(world: sw.World, z: Floats, right: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the kind of roadside that each pixel is beside."""
    kinds = []
    for bounds, names in zip(world.bounds, world.kinds, strict=True):
        row = np.clip(np.searchsorted(bounds, z[:, 0]) - 1, 0, len(names) - 1)
        kinds.append(np.array(names)[row][:, None])
    return np.where(right, kinds[1], kinds[0])


def _grey(look: _Look) -> float:
    return 0.36 + 0.06 * look.grey


def _road(ground: _Ground, world: sw.World, look: _Look) -> Floats:
    """Return asphalt with wheel tracks, a mended patch and worn markings."""
    s, z = ground.s, ground.z
    tone = _grey(look) + 0.022 * ground.grain + 0.014 * ground.blotch
    tone = tone - 0.03 * np.exp(-(((np.abs(ground.gap - sw.LANE) - 0.75) / 0.32) ** 2))  # tracks
    patch = (np.abs(s - (look.patch_across - 0.5) * 5) < 0.9) & (
        np.abs(z - 6 - 14 * look.patch_along) < 2 + 3 * look.patch_long
    )
    tone = np.where(patch, tone - 0.05, tone)
    rgb = tone[..., None] * np.array((1.0, 1.0, 1.02), np.float32)
    white, yellow = _markings(ground, world, look)
    worn = np.clip(0.86 + 0.12 * ground.blotch, 0.5, 1.0)
    for cover, colour in ((white, (0.84, 0.84, 0.82)), (yellow, (0.78, 0.62, 0.20))):
        amount = (cover * worn * ground.is_road)[..., None]
        rgb = rgb + (vector(colour) - rgb) * amount
    return np.asarray(rgb)


def _pavement(ground: _Ground, road: sw.Road, look: _Look) -> Floats:
    """Return slabs behind a kerb."""
    kerb, grey = ground.gap - road.half, _grey(look)
    slab = np.minimum(kerb % 0.75, ground.z % 0.9)
    joint = np.clip((0.03 - slab) / 0.03, 0, 1) * np.clip(0.06 / ground.pixel, 0, 1)
    noisy = (grey + 0.05 + 0.08 * look.paving) + 0.02 * ground.grain + 0.02 * ground.blotch
    flag = noisy - 0.10 * joint
    flag = np.where(kerb < 0.16, grey + 0.16, flag)
    flag = np.where(kerb < 0.05, grey - 0.12, flag)
    return np.asarray(flag[..., None] * np.array((1.02, 1.0, 0.97), np.float32))


def _grass(ground: _Ground) -> Floats:
    tone = 0.85 + 0.16 * ground.grain + 0.12 * ground.blotch
    return np.asarray(tone[..., None] * vector((0.30, 0.36, 0.17)))


def _darken_under_cars(rgb: Floats, ground: _Ground, world: sw.World) -> None:
    """Take the daylight from under the cars."""
    s, z = ground.s, ground.z
    for foot_s, foot_z, long, half in world.feet:
        near = np.flatnonzero((z[:, 0] > foot_z - 0.5) & (z[:, 0] < foot_z + long + 0.5))
        if near.size:
            beside = np.abs(s[near] - foot_s) - half
            ends = np.abs(z[near] - foot_z - long / 2) - long / 2
            rgb[near] *= 1 - 0.7 * np.clip(0.5 - np.maximum(beside, ends) / 0.5, 0, 1)[..., None]


def _line(ground: _Ground, at: float, width: float) -> Floats:
    """Return how much of each pixel a line along the road covers, 0 to 1."""
    edge = (width / 2 - np.abs(ground.s - at)) / ground.pixel + 0.5
    return np.asarray(np.clip(edge, 0, 1) * np.minimum(1, width / ground.pixel), np.float32)


def _band(ground: _Ground, start: float, end: float) -> Floats:
    """Return how much of each pixel lies between two depths, 0 to 1."""
    inner = np.minimum(ground.z - start, end - ground.z)
    return np.asarray(np.clip(inner / ground.deep + 0.5, 0, 1), np.float32)


def _markings(ground: _Ground, world: sw.World, look: _Look) -> tuple[Floats, Floats]:
    """Return how much of each pixel white and yellow lines cover."""
    white = _centre_line(ground, look)
    yellow = np.zeros_like(white)
    for index, sign in enumerate((-1, 1)):
        choice = look.edge_lines[index]
        edge = sign * world.road.half
        if choice < 0.35:
            yellow = np.maximum(yellow, _line(ground, edge - sign * 0.28, 0.09))
            yellow = np.maximum(yellow, _line(ground, edge - sign * 0.50, 0.09))
        elif choice < 0.7:
            white = np.maximum(white, _line(ground, edge - sign * 0.3, 0.12))
        white, yellow = _give_way(ground, world, index, sign, white, yellow)
    if look.crossing < 0.3:
        white = _zebra(ground, world.road, look, white)
    return np.asarray(white, np.float32), np.asarray(yellow, np.float32)


def _centre_line(ground: _Ground, look: _Look) -> Floats:
    """Return a dashed line, or a double one."""
    if look.double_line < 0.25:
        return np.maximum(_line(ground, -0.14, 0.1), _line(ground, 0.14, 0.1))
    on, deep = 0.33 + 0.27 * look.dash_share, ground.deep
    middle = np.abs((ground.z / 6.0 + look.dash_phase) % 1.0 - 0.5)
    beat = np.clip((on / 2 - middle) * 6.0 / deep + 0.5, 0, 1)
    return _line(ground, 0.0, 0.13) * np.where(deep > 4.0, on, beat)


def _give_way(
    ground: _Ground, world: sw.World, index: int, sign: int, white: Floats, yellow: Floats
) -> tuple[Floats, Floats]:
    """Break the edge lines at the mouths of side roads, and dash them."""
    half = world.road.half
    bounds, kinds = world.bounds[index], world.kinds[index]
    for start, end, kind in zip(bounds, bounds[1:], kinds, strict=False):
        if kind == sw.JUNCTION:
            mouth = _band(ground, start, end) * (ground.s * sign > half - 0.7)
            dash = np.abs((ground.z / 0.9) % 1.0 - 0.5) < 0.3
            line = _line(ground, sign * half + sign * 0.1, 0.25)
            white = white * (1 - mouth) + mouth * dash * line
            yellow = yellow * (1 - mouth)
    return white, yellow


def _zebra(ground: _Ground, road: sw.Road, look: _Look, white: Floats) -> Floats:
    """Lay a crossing with its stop line over the other markings."""
    start = 9.0 + 16.0 * look.crossing_along
    stripes = np.clip((0.25 - np.abs(ground.s % 1.0 - 0.5)) / ground.pixel + 0.5, 0, 1)
    white = white * (1 - _band(ground, start - 1.5, start + 4.1))
    white = np.maximum(white, _band(ground, start, start + 2.6) * stripes)
    stop = _band(ground, start - 1.2, start - 0.9) * (ground.s * road.side > 0.1)
    return np.maximum(white, stop)
