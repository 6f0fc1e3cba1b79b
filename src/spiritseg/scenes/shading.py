"""The colours of a procedural road scene: the sky, what stands on the ground, and haze."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from spiritseg.scenes import world as sw
from spiritseg.scenes.camera import Camera, Floats, Light

__all__ = ["Canvas", "blur", "hazy", "noise", "paint_faces", "paint_sky", "tiles", "vector"]


@dataclass(frozen=True, eq=False)
class Canvas:
    """What a scene is painted on, pixel by pixel.

    Args:
        image: (H, W, 3) colours, 1 is white.
        labels: (H, W) classes.
        place: (H, W, 3) the world point that a pixel shows.
        receives: (H, W) whether a shadow may lie there.
    """

    image: Floats
    labels: npt.NDArray[np.uint8]
    place: Floats
    receives: npt.NDArray[np.bool_]

    @classmethod
    def blank(cls, size: tuple[int, int]) -> Canvas:
        """Return a black canvas of (H, W) pixels, its places off the shadow map."""
        return cls(
            np.zeros((*size, 3), np.float32),
            np.zeros(size, dtype=np.uint8),
            np.full((*size, 3), np.float32(1e6)),
            np.zeros(size, dtype=bool),
        )


@lru_cache(maxsize=1)
def tiles() -> tuple[Floats, Floats]:
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


def noise(tile: Floats, a: Floats, b: Floats, scale: float) -> Floats:
    """Read a noise tile at (a, b) metres, `scale` cells a metre."""
    i = (a * np.float32(scale)).astype(np.int32) & 255
    j = (b * np.float32(scale)).astype(np.int32) & 255
    return np.asarray(tile[i, j], np.float32)


def vector(colour: sw.Colour) -> Floats:
    """Return a colour or a point as float32."""
    return np.array(colour, np.float32)


def hazy(rgb: Floats, distance: Floats, light: Light) -> Floats:
    """Fade colours into the low sky with the distance in metres."""
    clear = np.exp(np.minimum(distance, 150.0) * np.float32(-light.haze))
    far = vector(light.sky_low)
    return np.asarray(far + (rgb - far) * clear, np.float32)


def blur(picture: Floats) -> Floats:
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


def paint_sky(
    canvas: Canvas, camera: Camera, light: Light, rng: np.random.Generator, rows: int
) -> None:
    """Fill the rows above the horizon: a gradient with clouds."""
    if rows == 0:
        return
    cols = camera.size[1]
    slope = np.clip(camera.up[:rows] / 0.45, 0.0, 1.0)[:, None, None] ** np.float32(0.7)
    low, top = vector(light.sky_low), vector(light.sky_top)
    cloud = np.zeros((rows, cols), np.float32)
    for grid, weight in (((5, 4), 0.5), ((11, 9), 0.3), ((24, 20), 0.2)):
        coarse = Image.fromarray(rng.random(grid, dtype=np.float32))
        wide = coarse.resize((cols, rows), Image.Resampling.BICUBIC)
        cloud += np.float32(weight) * np.asarray(wide, np.float32)
    cover = np.clip((cloud - 0.48) * 5.0, 0.0, 1.0)[..., None] * np.float32(light.clouds)
    gradient = low + (top - low) * slope
    white = np.float32(0.5) * low + np.float32(0.5)
    canvas.image[:rows] = gradient + (white - gradient) * cover


@dataclass(frozen=True, eq=False)
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


def _table(faces: list[sw.Face]) -> _Table:
    rows = [
        (*f.points[0], *f.normal, *f.axis, *f.params, *f.colour, f.kind, f.label, f.flat)
        for f in faces
    ]
    origin, normal, axis, params, colour, rest = np.split(
        np.array(rows, np.float32), (3, 6, 9, 13, 16), axis=1
    )
    kind, label, flat = rest.T.astype(np.int32)
    geometry = (origin, normal, axis, params, colour)
    return _Table(*geometry, kind, label.astype(np.uint8), flat.astype(bool))


def paint_faces(
    canvas: Canvas,
    faces: list[sw.Face],
    ids: npt.NDArray[np.int32],
    camera: Camera,
    light: Light,
    sun: Floats,
) -> None:
    """Shade what stands on the ground, each pixel at its point of its face's plane.

    Args:
        canvas: is painted on.
        faces: in the order in which `ids` counts them.
        ids: (H, W), 1 + the index of the face that a pixel shows, 0 for none.
        camera: the camera.
        light: of the scene.
        sun: direction to the sun.
    """
    rows, cols = np.nonzero(ids)
    if rows.size == 0:
        return
    which = ids[rows, cols] - 1
    table = _table(faces)
    offset = (table.normal * (table.origin - vector((0.0, camera.height, 0.0)))).sum(1)
    facing = table.normal @ sun
    facing = np.where(offset > 0, -facing, facing)  # a fence is lit on the side one sees
    n = table.normal[which]
    a, b, c = camera.across[cols], camera.up[rows], camera.forward[rows]
    slant = n[:, 0] * a + n[:, 1] * b + n[:, 2] * c
    slant = np.where(np.abs(slant) < 1e-4, np.float32(1e-4), slant)
    reach = np.clip(offset[which] / slant, 0.1, 400.0).astype(np.float32)
    spot = np.stack([a * reach, camera.height + b * reach, c * reach], 1)
    rgb = _lit(table, facing, light, sun)[which]
    _texture(table, which, spot, reach, np.abs(slant), camera, light, rgb)
    canvas.image[rows, cols] = hazy(rgb, reach[:, None], light)
    canvas.labels[rows, cols] = table.label[which]
    canvas.place[rows, cols] = spot
    canvas.receives[rows, cols] = (table.flat | (facing > 0.02))[which]


def _lit(table: _Table, facing: Floats, light: Light, sun: Floats) -> Floats:
    """Return the faces' colours in this light."""
    turned = np.clip(facing / max(float(sun[1]), 0.45), 0.0, 1.15)
    lit = np.where(table.flat, 0.6, turned)
    bright = light.level * (light.ambient + (1 - light.ambient) * lit)
    colour = table.colour * bright[:, None] * vector(light.tint)
    return colour.astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Spots:
    """Pixels of one kind of surface, a row each.

    Args:
        rgb: their colours before the texture.
        point: the world points that they show.
        along: metres from the face's first point along its axis.
        params: of their faces.
        far: metres along the ray.
        slant: how squarely the ray meets the face, up to 1.
        sharp: how much of a detail of 5 cm can be seen, 0 to 1.
        focal: of the camera.
        light: of the scene.
    """

    rgb: Floats
    point: Floats
    along: Floats
    params: Floats
    far: Floats
    slant: Floats
    sharp: Floats
    focal: float
    light: Light


def _texture(
    table: _Table,
    which: npt.NDArray[np.int32],
    spot: Floats,
    reach: Floats,
    slant: Floats,
    camera: Camera,
    light: Light,
    rgb: Floats,
) -> None:
    kind = table.kind[which]
    for number in np.flatnonzero(np.bincount(kind)).tolist():
        if number not in _TEXTURES:
            continue
        at = np.flatnonzero(kind == number)
        who, p, far = which[at], spot[at], reach[at]
        along = np.einsum("ij,ij->i", p - table.origin[who], table.axis[who])
        sharp = np.clip(camera.focal * 0.05 / far, 0.0, 1.0)
        spots = _Spots(
            rgb[at], p, along, table.params[who], far, slant[at], sharp, camera.focal, light
        )
        rgb[at] = _TEXTURES[number](spots)


def _leaves(s: _Spots) -> Floats:
    white, smooth = tiles()
    y, low, high = s.point[:, 1], s.params[:, 0], s.params[:, 1]
    tuft = noise(smooth, s.point[:, 0] + s.point[:, 2] + 512, y + 8, 22.0)
    speck = noise(white, s.point[:, 0] + s.point[:, 2] + 512, y + 8, 28.0)
    rise = np.clip((y - low) / np.maximum(high - low, 0.1), 0, 1)
    tone = 0.72 + 0.42 * rise + 0.17 * tuft + 0.12 * speck * s.sharp
    return np.asarray(s.rgb * tone[:, None])


def _railing(s: _Spots) -> Floats:
    y = s.point[:, 1]
    bar = (s.along * 5.5 % 1.0 < 0.3) | (y > s.params[:, 1] - 0.1) | (y < 0.14)
    gap = np.array((0.27, 0.29, 0.22), np.float32) * np.float32(s.light.level)
    fine = np.clip(s.focal * s.slant / s.far / 25.0, 0.0, 1.0)
    between = (0.8 * (0.7 + (~bar - np.float32(0.7)) * fine))[:, None]
    return np.asarray(s.rgb + (gap - s.rgb) * between)


def _planks(s: _Spots) -> Floats:
    seam = (s.along * 4.0 % 1.0 < 0.12) * s.sharp
    board = tiles()[0][(s.along * 4.0).astype(np.int32) & 255, 7]
    tone = 1 + 0.07 * board - 0.35 * seam
    return np.asarray(s.rgb * tone[:, None])


def _roof(s: _Spots) -> Floats:
    y = s.point[:, 1]
    row = (y * 4.0 % 1.0 < 0.25) * s.sharp
    tone = 1 + 0.05 * noise(tiles()[0], s.along + 512, y, 4.0) - 0.15 * row
    return np.asarray(s.rgb * tone[:, None])


def _glass(s: _Spots) -> Floats:
    share = (0.10 + 0.25 * np.clip((s.point[:, 1] - 1.0) / 0.6, 0, 1))[:, None]
    return np.asarray(s.rgb + (vector(s.light.sky_low) - s.rgb) * share)


def _brick(s: _Spots) -> Floats:
    white, smooth = tiles()
    x, y, z = s.point.T
    course = noise(white, x + z + 512, y, 7.0) * s.sharp
    tone = 1 + 0.05 * course + 0.04 * noise(smooth, x + 512, y, 6.0)
    return np.asarray(s.rgb * tone[:, None])


def _facade(s: _Spots) -> Floats:
    """Give walls storeys of windows, doors, and now and then a shop below."""
    white, smooth = tiles()
    u, y, q = s.along + s.params[:, 3], s.point[:, 1], s.params
    iu, iv = np.floor(u / q[:, 0]), np.floor(y / q[:, 1])
    fu, fv = u / q[:, 0] - iu, y / q[:, 1] - iv
    key = q[:, 2].astype(np.int32)
    mark = white[(iu.astype(np.int32) * 7 + key) & 255, (iv.astype(np.int32) * 13 + key) & 255]
    wall = s.rgb * (1 + 0.04 * noise(smooth, u + 512, y, 8.0))[:, None]
    wall = wall * np.where((fv < 0.04) & (iv > 0), 0.88, 1.0)[:, None]
    shop, ground = key % 4 == 0, iv == 0
    door, window = ground & ~shop & (iu.astype(np.int32) % 3 == 0), ground & shop
    frame, pane = _openings(fu, fv, key, door, window)
    bright = s.light.level * vector(s.light.tint)
    rim = np.where((key % 2 == 0)[:, None], wall * 1.16, wall * 0.8)
    out = np.where(frame[:, None], rim, wall)
    out = np.where(pane[:, None], _panes(mark, door, bright), out)
    board = (window & (fv > 0.8) & (fv < 0.97))[:, None]
    out = np.where(board, _BOARDS[key // 4 % 3] * bright, out)
    # Windows narrower than a few pixels fade into their mean tone rather than flicker.
    resolved = np.clip(s.focal * q[:, 0] * s.slant / s.far / 5.0, 0.0, 1.0)
    return np.asarray(wall * 0.86 + (out - wall * 0.86) * resolved[:, None], np.float32)


def _openings(
    fu: Floats,
    fv: Floats,
    key: npt.NDArray[np.int32],
    door: npt.NDArray[np.bool_],
    window: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return where frames and panes are, by the place (fu, fv) within a bay of a storey."""
    wide = 0.16 + 0.08 * (key % 3).astype(np.float32)
    off = np.abs(fu - 0.5)
    frame = (off < wide + 0.05) & (np.abs(fv - 0.55) < 0.31)
    pane = (off < wide) & (np.abs(fv - 0.55) < 0.26)
    pane &= (off > 0.015) & (np.abs(fv - 0.6) > 0.012)
    frame = np.where(door, (off < 0.22) & (fv < 0.76), frame)
    frame = np.where(window, fv < 0.78, frame)
    pane = np.where(door, (off < 0.17) & (fv < 0.68), pane)
    pane = np.where(window, (off < 0.44) & (fv > 0.14) & (fv < 0.70), pane)
    return frame, pane


def _panes(mark: Floats, door: npt.NDArray[np.bool_], bright: Floats) -> Floats:
    glass = (vector((0.17, 0.20, 0.24)) + (0.05 * mark)[:, None]) * bright
    leaf = vector((0.30, 0.14, 0.12)) * (0.7 + 0.5 * np.abs(mark))[:, None] * bright
    return np.where(door[:, None], leaf, glass)


# The boards above shops.
_BOARDS = np.array(((0.15, 0.3, 0.24), (0.42, 0.14, 0.12), (0.16, 0.2, 0.4)), np.float32)

_TEXTURES: dict[int, Callable[[_Spots], Floats]] = {
    sw.FACADE: _facade,
    sw.BRICK: _brick,
    sw.LEAVES: _leaves,
    sw.RAILING: _railing,
    sw.PLANKS: _planks,
    sw.ROOF: _roof,
    sw.GLASS: _glass,
}
