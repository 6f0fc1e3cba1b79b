"""The colours of a procedural road scene: light, noise, haze, sky, and the faces' textures."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from spiritseg.scenes import world as sw
from spiritseg.scenes.world import Bools, Camera, Colour, Face, Floats, rasterise

Ints = npt.NDArray[np.int32]

# Ambient share, tint, level, sky at the top and at the horizon, clouds, haze, colour of
# shadows, and elevation of the sun in degrees; varied is a mixture of the others.
PALETTES: dict[str, tuple[float | Colour, ...]] = {
    "overcast": (0.85, (0.97, 0.99, 1.02), 1.0, (0.72, 0.76, 0.80), (0.88, 0.89, 0.90),
                 0.05, 0.006, (0.46, 0.48, 0.52), 50.0),
    "day": (0.52, (1.04, 1.01, 0.95), 1.22, (0.30, 0.50, 0.82), (0.76, 0.86, 0.95),
            0.55, 0.003, (0.34, 0.38, 0.45), 42.0),
    "dusk": (0.66, (1.12, 0.97, 0.80), 0.80, (0.46, 0.50, 0.62), (0.93, 0.76, 0.58),
             0.25, 0.005, (0.40, 0.44, 0.54), 22.0),
    "varied": (),
}  # fmt: skip


class Light(NamedTuple):
    """The light of a scene; colours are factors, `sun` is the unit vector towards the sun."""

    ambient: float
    tint: Floats
    level: float
    sky_top: Floats
    sky_low: Floats
    clouds: float
    haze: float
    shade: Floats
    sun: Floats


def draw_light(palette: str, rng: np.random.Generator) -> Light:
    """Draw the light of one of `PALETTES`."""
    plain = [p for p in PALETTES.values() if p]
    weights = rng.dirichlet((0.5,) * len(plain)).tolist()
    wobble, azimuth = rng.uniform(-1.0, 1.0, 8), float(rng.uniform(20.0, 75.0))
    azimuth *= 1 if rng.random() < 0.5 else -1  # ahead and aside: shadows cut the road
    spread = 1.0
    if PALETTES[palette]:
        plain, weights, spread = [PALETTES[palette]], [1.0], 0.25
    ambient, tint, level, sky_top, sky_low, clouds, haze, shade, elevation = (
        np.asarray(
            sum(w * np.array(v, np.float32) for w, v in zip(weights, values, strict=True)),
            np.float32,
        )
        for values in zip(*plain, strict=True)
    )
    gains = (spread * wobble).tolist()
    balance = (1 + spread * 0.06 * wobble[:3]).astype(np.float32)
    a, e = math.radians(azimuth), math.radians(max(float(elevation) + 9.0 * gains[3], 14.0))
    sun = (math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e))
    return Light(
        ambient=float(ambient),
        tint=tint * balance,
        level=float(level) * (1 + 0.14 * gains[4]),
        sky_top=sky_top * balance,
        sky_low=sky_low * balance,
        clouds=float(clouds),
        haze=float(haze) * (1 + 0.8 * gains[5]),
        shade=shade * np.float32(1 + 0.15 * gains[6]),
        sun=np.array(sun, np.float32),
    )


class Canvas:
    """What a scene of (H, W) pixels is painted on."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.image: Floats = np.zeros((*size, 3), np.float32)  # colours, 1 is white
        self.labels = np.zeros(size, np.uint8)
        # The world points that the pixels show, at first off the shadow map.
        self.place: Floats = np.full((*size, 3), 1e6, np.float32)
        self.receives = np.zeros(size, bool)  # where a shadow may fall


@lru_cache(maxsize=1)
def tiles() -> tuple[Floats, Floats]:
    """Return white and smooth noise that repeats every 256 cells; mean 0, deviation 1."""
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
    """Read a noise tile at (a, b) metres, `scale` cells per metre."""
    i, j = ((v * np.float32(scale)).astype(np.int32) & 255 for v in (a, b))
    return np.asarray(tile[i, j], np.float32)


def hazy(rgb: Floats, distance: Floats, light: Light) -> Floats:
    """Fade colours into the sky at the horizon with the distance in metres."""
    clear = np.exp(np.minimum(distance, 150.0) * np.float32(-light.haze))
    return np.asarray(light.sky_low + (rgb - light.sky_low) * clear, np.float32)


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
    cloud = np.zeros((rows, cols), np.float32)
    for grid, weight in (((5, 4), 0.5), ((11, 9), 0.3), ((24, 20), 0.2)):
        coarse = Image.fromarray(rng.random(grid, dtype=np.float32))
        wide = coarse.resize((cols, rows), Image.Resampling.BICUBIC)
        cloud += np.float32(weight) * np.asarray(wide, np.float32)
    cover = np.clip((cloud - 0.48) * 5.0, 0.0, 1.0)[..., None] * np.float32(light.clouds)
    gradient = light.sky_low + (light.sky_top - light.sky_low) * slope
    white = np.float32(0.5) * light.sky_low + np.float32(0.5)
    canvas.image[:rows] = gradient + (white - gradient) * cover


def paint_faces(canvas: Canvas, faces: list[Face], camera: Camera, light: Light) -> None:
    """Shade what stands on the ground, each pixel at its point of its face's plane."""
    ids = rasterise(faces, camera)
    rows, cols = np.nonzero(ids)
    if rows.size == 0:
        return
    which = ids[rows, cols] - 1
    table = np.array(
        [(*f.points[0], *f.normal, *f.axis, *f.params, *f.colour, f.kind, f.label, f.flat)
         for f in faces], np.float32)  # fmt: skip
    origin, normal, axis, params, colour, rest = np.split(table, (3, 6, 9, 13, 16), axis=1)
    kind, label, flat = rest.T.astype(np.int32)
    offset = (normal * (origin - np.array((0.0, camera.height, 0.0), np.float32))).sum(1)
    facing = normal @ light.sun
    facing = np.where(offset > 0, -facing, facing)  # a fence is lit on the side one sees

    n = normal[which]
    a, b, c = camera.across[cols], camera.up[rows], camera.forward[rows]
    slant = n[:, 0] * a + n[:, 1] * b + n[:, 2] * c
    slant = np.where(np.abs(slant) < 1e-4, np.float32(1e-4), slant)
    reach = np.clip(offset[which] / slant, 0.1, 400.0).astype(np.float32)
    spot = np.stack([a * reach, camera.height + b * reach, c * reach], 1)

    turned = np.clip(facing / max(float(light.sun[1]), 0.45), 0.0, 1.15)
    bright = light.level * (light.ambient + (1 - light.ambient) * np.where(flat, 0.6, turned))
    rgb = (colour * bright[:, None] * light.tint).astype(np.float32)[which]
    for number, texture in _TEXTURES.items():
        at = np.flatnonzero(kind[which] == number)
        if at.size:
            who, p, far = which[at], spot[at], reach[at]
            along = np.einsum("ij,ij->i", p - origin[who], axis[who])
            sharp = np.clip(camera.focal * 0.05 / far, 0.0, 1.0)
            x, y, z = p.T
            steep, focal = np.abs(slant[at]), camera.focal
            spots = _Spots(rgb[at], x, y, z, along, params[who], sharp, focal, steep, far, light)
            rgb[at] = texture(spots)

    canvas.image[rows, cols] = hazy(rgb, reach[:, None], light)
    canvas.labels[rows, cols] = label[which]
    canvas.place[rows, cols] = spot
    canvas.receives[rows, cols] = ((flat > 0) | (facing > 0.02))[which]


class _Spots(NamedTuple):
    """Pixels of one kind of surface, (N,) and (N, C) arrays."""

    rgb: Floats  # before the texture
    x: Floats  # world coordinates
    y: Floats
    z: Floats
    along: Floats  # metres along the face's axis from its first point
    params: Floats
    sharp: Floats  # how much of a detail of 5 cm is resolved, 0 to 1
    focal: float
    slant: Floats  # how perpendicular the ray is to the face, up to 1
    far: Floats  # metres along the ray
    light: Light


def _leaves(s: _Spots) -> Any:
    white, smooth = tiles()
    low, high = s.params[:, 0], s.params[:, 1]
    tuft = noise(smooth, s.x + s.z + 512, s.y + 8, 22.0)
    speck = noise(white, s.x + s.z + 512, s.y + 8, 28.0)
    rise = np.clip((s.y - low) / np.maximum(high - low, 0.1), 0, 1)
    tone = 0.72 + 0.42 * rise + 0.17 * tuft + 0.12 * speck * s.sharp
    return s.rgb * tone[:, None]


def _railing(s: _Spots) -> Any:
    bar = (s.along * 5.5 % 1.0 < 0.3) | (s.y > s.params[:, 1] - 0.1) | (s.y < 0.14)
    gap = np.array((0.27, 0.29, 0.22), np.float32) * np.float32(s.light.level)
    fine = np.clip(s.focal * s.slant / s.far / 25.0, 0.0, 1.0)
    between = 0.8 * (0.7 + (~bar - np.float32(0.7)) * fine)
    return s.rgb + (gap - s.rgb) * between[:, None]


def _planks(s: _Spots) -> Any:
    seam = (s.along * 4.0 % 1.0 < 0.12) * s.sharp
    board = tiles()[0][(s.along * 4.0).astype(np.int32) & 255, 7]
    return s.rgb * (1 + 0.07 * board - 0.35 * seam)[:, None]


def _roof(s: _Spots) -> Any:
    row = (s.y * 4.0 % 1.0 < 0.25) * s.sharp
    tone = 1 + 0.05 * noise(tiles()[0], s.along + 512, s.y, 4.0) - 0.15 * row
    return s.rgb * tone[:, None]


def _glass(s: _Spots) -> Any:
    share = 0.10 + 0.25 * np.clip((s.y - 1.0) / 0.6, 0, 1)
    return s.rgb + (s.light.sky_low - s.rgb) * share[:, None]


def _brick(s: _Spots) -> Any:
    white, smooth = tiles()
    course = noise(white, s.x + s.z + 512, s.y, 7.0) * s.sharp
    tone = 1 + 0.05 * course + 0.04 * noise(smooth, s.x + 512, s.y, 6.0)
    return s.rgb * tone[:, None]


def _facade(s: _Spots) -> Any:
    """Paint storeys of windows, doors, and now and then a shop on the ground floor."""
    white, smooth = tiles()
    wide, tall, number, start = s.params.T
    u, v = (s.along + start) / wide, s.y / tall
    bay, storey = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    fu, fv = u - bay.astype(np.float32), v - storey.astype(np.float32)
    key = number.astype(np.int32)
    mark = white[(bay * 7 + key) & 255, (storey * 13 + key) & 255]
    wall = s.rgb * (1 + 0.04 * noise(smooth, s.along + start + 512, s.y, 8.0))[:, None]
    wall = wall * np.where((fv < 0.04) & (storey > 0), 0.88, 1.0)[:, None]
    shop, ground = key % 4 == 0, storey == 0
    door, window = ground & ~shop & (bay % 3 == 0), ground & shop
    frame, pane = _openings(fu, fv, key, door, window)
    bright = s.light.level * s.light.tint
    glass = (_GLASS + (0.05 * mark)[:, None]) * bright
    leaf = _DOOR * (0.7 + 0.5 * np.abs(mark))[:, None] * bright
    rim = np.where((key % 2 == 0)[:, None], wall * 1.16, wall * 0.8)
    out = np.where(frame[:, None], rim, wall)
    out = np.where(pane[:, None], np.where(door[:, None], leaf, glass), out)
    board = (window & (fv > 0.8) & (fv < 0.97))[:, None]
    out = np.where(board, _BOARDS[key // 4 % 3] * bright, out)
    # Windows narrower than a few pixels fade into their mean tone rather than flicker.
    resolved = np.clip(s.focal * wide * s.slant / s.far / 5.0, 0.0, 1.0)
    return wall * 0.86 + (out - wall * 0.86) * resolved[:, None]


def _openings(fu: Floats, fv: Floats, key: Ints, door: Bools, window: Bools) -> tuple[Bools, Bools]:
    """Return where frames and panes are, by the position (fu, fv) within a bay of a storey."""
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


_GLASS = np.array((0.17, 0.20, 0.24), np.float32)
_DOOR = np.array((0.30, 0.14, 0.12), np.float32)
_BOARDS = np.array(((0.15, 0.3, 0.24), (0.42, 0.14, 0.12), (0.16, 0.2, 0.4)), np.float32)  # shops

_TEXTURES: dict[int, Callable[[_Spots], Any]] = {
    sw.FACADE: _facade,
    sw.BRICK: _brick,
    sw.LEAVES: _leaves,
    sw.RAILING: _railing,
    sw.PLANKS: _planks,
    sw.ROOF: _roof,
    sw.GLASS: _glass,
}
