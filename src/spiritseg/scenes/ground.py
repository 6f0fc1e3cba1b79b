"""The ground of a procedural road scene, and cast shadows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from spiritseg.scenes import world as sw
from spiritseg.scenes.shading import Canvas, Light, blur, hazy, noise, tiles
from spiritseg.scenes.world import Bools, Camera, Caster, Floats, World

_CELL = 0.08  # metres of ground that a cell of the shadow map covers
_MAP = (1100, 600)  # its cells along Z and X
_MAP_ORIGIN = (-6.0, -24.0)  # its first Z and X


def paint_ground(
    canvas: Canvas,
    world: World,
    camera: Camera,
    light: Light,
    rng: np.random.Generator,
    first: int,
) -> None:
    """Fill the rows below the horizon, from row `first` on."""
    ground = _Ground(world, camera, first, _Look(*rng.random(16).tolist()[:12]))
    road, verge = ground.is_road, ground.verge
    rgb = np.where(road[..., None], ground.road(), ground.pavement())
    rgb = np.where(verge[..., None], ground.grass(), rgb)
    ground.darken_under_cars(rgb)
    rgb = rgb * (light.tint * np.float32(light.level))
    x, z = ground.x, ground.z
    canvas.image[first:] = hazy(rgb, z[..., None], light)
    canvas.labels[first:] = np.where(road, sw.ROAD, np.where(verge, sw.TREE, sw.PAVEMENT))
    canvas.place[first:] = np.stack([x, np.zeros_like(x), np.broadcast_to(z, x.shape)], -1)
    canvas.receives[first:] = True


class _Look(NamedTuple):
    """The random draws of the ground, each in [0, 1)."""

    grey: float
    patch_across: float
    patch_along: float
    patch_long: float
    paving: float
    dash_phase: float
    dash_share: float
    double_line: float
    left_edge: float
    right_edge: float
    crossing: float
    crossing_along: float


class _Ground:
    """The pixels of the ground, as (rows, W) or, where only the depth matters, (rows, 1) arrays.

    `x` and `z` are world coordinates and `s` is metres right of the centre line; `pixel` and
    `deep` are a pixel's width and depth on the ground in metres; `grain` and `blotch` are fine
    and coarse noise.
    """

    def __init__(self, world: World, camera: Camera, first: int, look: _Look) -> None:
        self.world, self.look, self.grey = world, look, 0.36 + 0.06 * look.grey
        reach = (camera.height / -camera.up[first:])[:, None]
        self.z: Floats = np.minimum(reach * camera.forward[first:, None], np.float32(4000.0))
        self.x: Floats = reach * camera.across[None, :]
        bend = np.minimum(self.z, sw.FAR)
        s = self.x - np.float32(world.centre(0.0)) - world.yaw * bend - 0.5 * world.curve * bend**2
        self.s: Floats = np.asarray(s, np.float32)
        self.gap: Floats = np.abs(self.s)
        self.pixel: Floats = reach / np.float32(camera.focal)
        self.deep: Floats = self.z * self.z / np.float32(camera.height * camera.focal)
        white, smooth = tiles()
        sharp = np.clip(0.06 / self.pixel, 0.15, 1.0)
        self.grain: Floats = noise(white, self.x + 64, self.z, 26.0) * sharp
        self.blotch: Floats = noise(smooth, self.x + 64, self.z, 5.0)
        kind = np.where(self.s > 0, self._kinds(1), self._kinds(-1))
        width = np.where(self.s > 0, *(np.float32(world.sides[i].width) for i in (1, -1)))
        self.is_road: Bools = (self.gap < world.half) | (kind == sw.JUNCTION)
        self.verge: Bools = ~self.is_road & (self.gap > world.half + width) & (kind != sw.HOUSES)

    def _kinds(self, sign: int) -> npt.NDArray[np.int64]:
        """Return the kind of section at the depth of each row on one side of the road."""
        bounds, kinds = self.world.sides[sign].bounds, self.world.sides[sign].kinds
        row = np.clip(np.searchsorted(bounds, self.z[:, 0]) - 1, 0, len(kinds) - 1)
        return np.array(kinds)[row][:, None]

    def road(self) -> Any:
        """Return asphalt with wheel tracks, a mended patch and worn markings."""
        look = self.look
        tone = self.grey + 0.022 * self.grain + 0.014 * self.blotch
        tone = tone - 0.03 * np.exp(-(((np.abs(self.gap - sw.LANE) - 0.75) / 0.32) ** 2))  # tracks
        patch = (np.abs(self.s - (look.patch_across - 0.5) * 5) < 0.9) & (
            np.abs(self.z - 6 - 14 * look.patch_along) < 2 + 3 * look.patch_long
        )
        tone = np.where(patch, tone - 0.05, tone)
        rgb = tone[..., None] * np.array((1.0, 1.0, 1.02), np.float32)
        white, yellow = self._markings()
        worn = np.clip(0.86 + 0.12 * self.blotch, 0.5, 1.0)
        for cover, colour in ((white, (0.84, 0.84, 0.82)), (yellow, (0.78, 0.62, 0.20))):
            amount = (cover * worn * self.is_road)[..., None]
            rgb = rgb + (np.array(colour, np.float32) - rgb) * amount
        return rgb

    def pavement(self) -> Any:
        """Return slabs behind a kerb."""
        kerb = self.gap - self.world.half
        slab = np.minimum(kerb % 0.75, self.z % 0.9)
        joint = np.clip((0.03 - slab) / 0.03, 0, 1) * np.clip(0.06 / self.pixel, 0, 1)
        tone = (self.grey + 0.05 + 0.08 * self.look.paving) + 0.02 * self.grain
        tone = tone + 0.02 * self.blotch - 0.10 * joint
        tone = np.where(kerb < 0.16, self.grey + 0.16, tone)
        tone = np.where(kerb < 0.05, self.grey - 0.12, tone)
        return tone[..., None] * np.array((1.02, 1.0, 0.97), np.float32)

    def grass(self) -> Any:
        tone = 0.85 + 0.16 * self.grain + 0.12 * self.blotch
        return tone[..., None] * np.array((0.30, 0.36, 0.17), np.float32)

    def darken_under_cars(self, rgb: Floats) -> None:
        for foot_s, foot_z, long, half in self.world.feet:
            z = self.z[:, 0]
            near = np.flatnonzero((z > foot_z - 0.5) & (z < foot_z + long + 0.5))
            if near.size:
                beside = np.abs(self.s[near] - foot_s) - half
                ends = np.abs(self.z[near] - foot_z - long / 2) - long / 2
                dark = np.clip(0.5 - np.maximum(beside, ends) / 0.5, 0, 1)
                rgb[near] *= 1 - 0.7 * dark[..., None]

    def _line(self, at: float, width: float) -> Floats:
        """Return how much of each pixel a line along the road covers, 0 to 1."""
        edge = (width / 2 - np.abs(self.s - at)) / self.pixel + 0.5
        return np.asarray(np.clip(edge, 0, 1) * np.minimum(1, width / self.pixel), np.float32)

    def _band(self, start: float, end: float) -> Floats:
        """Return how much of each pixel lies between two depths, 0 to 1."""
        inner = np.minimum(self.z - start, end - self.z)
        return np.asarray(np.clip(inner / self.deep + 0.5, 0, 1), np.float32)

    def _markings(self) -> tuple[Floats, Floats]:
        """Return how much of each pixel white and yellow lines cover."""
        white, half = self._centre_line(), self.world.half
        yellow = np.zeros_like(white)
        for sign, choice in ((-1, self.look.left_edge), (1, self.look.right_edge)):
            edge = sign * half
            if choice < 0.35:
                for inset in (0.28, 0.50):
                    yellow = np.maximum(yellow, self._line(edge - sign * inset, 0.09))
            elif choice < 0.7:
                white = np.maximum(white, self._line(edge - sign * 0.3, 0.12))
            for start, end, kind in self.world.sides[sign].sections():
                if kind == sw.JUNCTION:  # the edge lines end, and a dashed one crosses the mouth
                    mouth = self._band(start, end) * (self.s * sign > half - 0.7)
                    dash = np.abs((self.z / 0.9) % 1.0 - 0.5) < 0.3
                    line = self._line(edge + sign * 0.1, 0.25)
                    white = white * (1 - mouth) + mouth * dash * line
                    yellow = yellow * (1 - mouth)
        if self.look.crossing < 0.3:
            white = self._zebra(white)
        return np.asarray(white, np.float32), np.asarray(yellow, np.float32)

    def _centre_line(self) -> Any:
        """Return a dashed or a double line."""
        if self.look.double_line < 0.25:
            return np.maximum(self._line(-0.14, 0.1), self._line(0.14, 0.1))
        on = 0.33 + 0.27 * self.look.dash_share
        middle = np.abs((self.z / 6.0 + self.look.dash_phase) % 1.0 - 0.5)
        beat = np.clip((on / 2 - middle) * 6.0 / self.deep + 0.5, 0, 1)
        return self._line(0.0, 0.13) * np.where(self.deep > 4.0, on, beat)

    def _zebra(self, white: Floats) -> Any:
        """Lay a crossing with its stop line over the other markings."""
        start = 9.0 + 16.0 * self.look.crossing_along
        stripes = np.clip((0.25 - np.abs(self.s % 1.0 - 0.5)) / self.pixel + 0.5, 0, 1)
        white = white * (1 - self._band(start - 1.5, start + 4.1))
        white = np.maximum(white, self._band(start, start + 2.6) * stripes)
        stop = self._band(start - 1.2, start - 0.9) * (self.s * self.world.side > 0.1)
        return np.maximum(white, stop)


def cast_shadows(casters: list[Caster], sun: Floats, place: Floats, receives: Bools) -> Floats:
    """Return how deep each pixel lies in a cast shadow.

    Casters are projected along the sun onto the ground. A cell keeps the greatest of the
    casters' lowest heights: points above that height are lit, those below are not.

    Args:
        casters: polygons that cast shadows.
        sun: (3,) unit vector towards the sun.
        place: (H, W, 3) world points of the pixels.
        receives: (H, W) whether a shadow may fall there.

    Returns:
        (H, W) from 0, in the light, to 1.
    """
    slope = sun[[0, 2]] / sun[1]
    solid, leafy = _shadow_maps(casters, sun, slope)
    spot = np.flatnonzero(receives)
    x, y, z = place.reshape(-1, 3)[spot].T
    gx, gz = x - y * slope[0], z - y * slope[1]
    # A jitter of about a cell turns the aliasing of the map into grain.
    jitter = np.float32(0.3) * np.resize(tiles()[0], gx.shape)
    i = (gz - np.float32(_MAP_ORIGIN[0])) / np.float32(_CELL) + jitter
    j = (gx - np.float32(_MAP_ORIGIN[1])) / np.float32(_CELL) - jitter[::-1]
    inside = (i >= 0) & (i < _MAP[0]) & (j >= 0) & (j < _MAP[1])
    spot, y, gx, gz = spot[inside], y[inside], gx[inside], gz[inside]
    cell = i[inside].astype(np.int32) * _MAP[1] + j[inside].astype(np.int32)
    # Any caster shades the ground; a raised point needs a caster clearly above it.
    need = np.where(y > 0.02, 2.6 + y * 8, np.float32(1.0))
    hole = noise(tiles()[1], gx + 512, gz + 512, 34.0) > 0.75
    dark = np.zeros(receives.shape, np.float32)
    dark.ravel()[spot] = (solid.ravel()[cell] >= need) | ((leafy.ravel()[cell] >= need) & ~hole)
    soft = blur(dark[..., None])[..., 0] * receives
    return np.where(soft > 0.12, soft, np.float32(0.0))


def _shadow_maps(casters: list[Caster], sun: Floats, slope: Floats) -> list[npt.NDArray[np.uint8]]:
    """Draw solid and leafy casters on the ground; values are 1 + 8 times the lowest height."""
    counts = [len(c.points) for c in casters]
    starts = np.concatenate([[0], np.cumsum(counts)])
    points = np.array([p for c in casters for p in c.points], np.float32)
    anchors = np.array([c.anchor or (np.nan,) * 3 for c in casters], np.float32)
    anchor = np.repeat(anchors[:, 0], counts)
    turned, off = ~np.isnan(anchor), points[:, 0] - anchor
    level = math.hypot(float(sun[0]), float(sun[2]))
    x = np.where(turned, anchor + off * sun[2] / level, points[:, 0])
    z = np.where(turned, points[:, 2] - off * sun[0] / level, points[:, 2])
    cols = (x - points[:, 1] * slope[0] - _MAP_ORIGIN[1]) / _CELL
    rows = (z - points[:, 1] * slope[1] - _MAP_ORIGIN[0]) / _CELL
    cells = np.stack([cols, rows], 1)
    lo, hi = (f.reduceat(cells, starts[:-1]) for f in (np.minimum, np.maximum))
    maps = [Image.new("L", _MAP[::-1], 0) for _ in range(2)]
    draws = [ImageDraw.Draw(picture) for picture in maps]
    for i in sorted(range(len(casters)), key=lambda i: casters[i].low):
        if (hi[i] >= 0).all() and (lo[i] < _MAP[::-1]).all():
            value = min(1 + int(casters[i].low * 8), 255)
            xy = cells[starts[i] : starts[i + 1]]
            draws[casters[i].leafy].polygon(xy.ravel().tolist(), fill=value)
    return [np.asarray(picture) for picture in maps]
