"""Cast shadows of a procedural road scene."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from spiritseg.scenes.camera import Floats
from spiritseg.scenes.shading import blur, noise, tiles
from spiritseg.scenes.world import Caster

__all__ = ["cast"]

_CELL = 0.08  # metres of ground a cell of the shadow map covers
_MAP = (1100, 600)  # its cells along Z and X
_MAP_ORIGIN = (-6.0, -24.0)  # its first Z and X

Cells = npt.NDArray[np.uint8]


def cast(
    casters: list[Caster], sun: Floats, place: Floats, receives: npt.NDArray[np.bool_]
) -> Floats:
    """Return how deep each pixel lies in a cast shadow.

    Casters are projected along the sun onto the ground. A cell keeps the greatest of the
    casters' lowest heights: what is above the caster there is lit, what is below is not.

    Args:
        casters: what throws shadows.
        sun: direction to the sun.
        place: (H, W, 3) the world point that a pixel shows.
        receives: (H, W) whether a shadow may lie there.

    Returns:
        (H, W) from 0, in the light, to 1.
    """
    slope = sun[[0, 2]] / sun[1]
    solid, leafy = _shadow_maps(casters, sun, slope)
    spot = np.flatnonzero(receives)
    x, y, z = place.reshape(-1, 3)[spot].T
    gx, gz = x - y * slope[0], z - y * slope[1]
    # Reading a cell or so beside the true one breaks the map's staircase into grain.
    jitter = np.float32(0.3) * np.resize(tiles()[0], gx.shape)
    i = (gz - np.float32(_MAP_ORIGIN[0])) / np.float32(_CELL) + jitter
    j = (gx - np.float32(_MAP_ORIGIN[1])) / np.float32(_CELL) - jitter[::-1]
    inside = (i >= 0) & (i < _MAP[0]) & (j >= 0) & (j < _MAP[1])
    spot, y, gx, gz = spot[inside], y[inside], gx[inside], gz[inside]
    cell = i[inside].astype(np.int32) * _MAP[1] + j[inside].astype(np.int32)
    # A point on the ground needs any caster, a raised one a caster that is clearly above it.
    need = np.where(y > 0.02, 2.6 + y * 8, np.float32(1.0))
    hole = noise(tiles()[1], gx + 512, gz + 512, 34.0) > 0.75
    dark = np.zeros(receives.shape, np.float32)
    dark.ravel()[spot] = (solid.ravel()[cell] >= need) | ((leafy.ravel()[cell] >= need) & ~hole)
    soft = blur(dark[..., None])[..., 0] * receives
    return np.where(soft > 0.12, soft, np.float32(0.0))


def _shadow_maps(casters: list[Caster], sun: Floats, slope: Floats) -> tuple[Cells, Cells]:
    """Draw what is solid and what is leafy on the ground, 1 + 8 times the lowest height."""
    counts = np.array([len(c.points) for c in casters])
    starts = np.concatenate([[0], np.cumsum(counts)])
    cells = _on_the_map(casters, counts, sun, slope)
    lo, hi = (f.reduceat(cells, starts[:-1]) for f in (np.minimum, np.maximum))
    maps = {leafy: Image.new("L", _MAP[::-1], 0) for leafy in (False, True)}
    draws = {leafy: ImageDraw.Draw(picture) for leafy, picture in maps.items()}
    lows = np.array([c.low for c in casters])
    for i in np.argsort(lows, kind="stable").tolist():
        if (hi[i] >= 0).all() and (lo[i] < _MAP[::-1]).all():
            value = min(1 + int(lows[i] * 8), 255)
            xy = cells[starts[i] : starts[i + 1]]
            draws[casters[i].leafy].polygon(xy.ravel().tolist(), fill=value)
    return np.asarray(maps[False]), np.asarray(maps[True])


def _on_the_map(
    casters: list[Caster], counts: npt.NDArray[np.int64], sun: Floats, slope: Floats
) -> Floats:
    """Project all points along the sun, those of cut-outs after a turn towards it."""
    points = np.array([p for c in casters for p in c.points], np.float32)
    anchors = np.repeat(
        np.array([c.anchor or (np.nan,) * 3 for c in casters], np.float32), counts, axis=0
    )
    turned = ~np.isnan(anchors[:, 0])
    level = math.hypot(float(sun[0]), float(sun[2]))
    off = points[:, 0] - anchors[:, 0]
    x = np.where(turned, anchors[:, 0] + off * sun[2] / level, points[:, 0])
    z = np.where(turned, points[:, 2] - off * sun[0] / level, points[:, 2])
    cols = (x - points[:, 1] * slope[0] - _MAP_ORIGIN[1]) / _CELL
    rows = (z - points[:, 1] * slope[1] - _MAP_ORIGIN[0]) / _CELL
    return np.stack([cols, rows], 1)
