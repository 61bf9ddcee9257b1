"""The backgrounds: a function each, from a camera to a picture without objects, (H, W, 3)."""

import numpy as np

from pipeline.scenes.chance import IntArray, between, chance, fractal_noise, pick, smooth_noise
from pipeline.scenes.ground import View, blend, gradient, ground, ridge, sky, under_ridge
from pipeline.scenes.palette import RGB, shade, vary

_GRASS: tuple[tuple[RGB, RGB], ...] = (
    ((128, 148, 84), (78, 112, 42)),
    ((150, 152, 92), (104, 116, 48)),
    ((104, 140, 88), (58, 100, 44)),
)


def _hills(rng: np.random.Generator, view: View, picture: IntArray, foot: int) -> IntArray:
    """Lay two hazy ridges and a line of bushes behind the ground."""
    red, green, blue = (int(value) for value in picture[max(foot - 1, 0), view.width // 2])
    for cell, tall, share in ((64, view.height // 7, 90), (28, view.height // 11, 140)):
        colour = vary(rng, (74, 104, 92), 12)
        heights = ridge(rng, view.width, cell, tall) + 2
        layer = blend(picture, colour, share)
        texture = fractal_noise(rng, view.height, view.width, 8)[..., None] // 8
        inside = under_ridge(view, foot, heights)[..., None]
        picture = np.where(inside, layer + texture, picture)
    if chance(rng, 0.6):
        heights = ridge(rng, view.width, 8, view.height // 24) + 3
        texture = fractal_noise(rng, view.height, view.width, 6)[..., None] // 3
        bush = blend(
            np.full_like(picture, 0) + np.array((58, 84, 50)) + texture, (red, green, blue), 60
        )
        picture = np.where(under_ridge(view, foot, heights)[..., None], bush, picture)
    return np.asarray(np.clip(picture, 0, 255), np.int32)


def park(rng: np.random.Generator, view: View) -> IntArray:
    """Paint a meadow under hills, at times with a path across it."""
    picture = _hills(rng, view, sky(rng, view), view.horizon)
    colours = pick(rng, _GRASS)
    picture[view.horizon :] = ground(rng, view, "grass", colours)
    if chance(rng, 0.5):
        path = ground(rng, view, "sand", ((184, 170, 140), (166, 146, 112)))
        depth = between(rng, 0.3, 0.7)
        middle, half = view.row(depth), max(int(depth * view.near * 0.5), 4)
        bend = ridge(rng, view.width, 90, half * 2)[None, :]
        rows = np.arange(view.horizon, view.height, dtype=np.int32)[:, None]
        rough = ridge(rng, view.width, 4, 3)[None, :]
        share = np.clip((half - np.abs(rows - middle - bend + half) + rough) * 80, 0, 235)
        picture[view.horizon :] = blend(picture[view.horizon :], path, share)
    return picture


def _skyline(rng: np.random.Generator, view: View, picture: IntArray, foot: int) -> IntArray:
    """Set a row of facades with windows on the row `foot`."""
    haze = picture[max(view.horizon - 1, 0), 0]
    left = -int(rng.integers(24))  # narrower than any facade
    while left < view.width:
        wide, tall = (
            int(rng.integers(26, 64)),
            int(rng.integers(foot // 2, max(foot, foot // 2 + 2))),
        )
        right, top = min(left + wide, view.width), max(foot - tall, 0)
        x0 = max(left, 0)
        base = vary(
            rng, pick(rng, ((150, 132, 116), (134, 128, 130), (168, 152, 132), (120, 104, 98)))
        )
        rows, columns = np.mgrid[top:foot, x0:right].astype(np.int32)
        step = int(rng.integers(9, 14))
        pane = ((columns - left) % step > step // 2) & ((rows - top) % (step + 2) > step // 2 + 1)
        pane &= (rows < foot - 5) & (columns < right - 2)
        glass = np.where((columns // step * 7 + rows // (step + 2) * 5) % 6 == 0, 40, -58)
        tone = np.where(pane, glass, 0)[..., None] + np.array(base, np.int32)
        tone = tone + (columns - left)[..., None] * view.light * 24 // wide
        picture[top:foot, x0:right] = blend(np.asarray(tone, np.int32), haze, 96)
        left += wide + (int(rng.integers(16)) if chance(rng, 0.3) else 0)
    return picture


def street(rng: np.random.Generator, view: View) -> IntArray:
    """Paint a street seen from its side: facades, pavement, road with a dashed line, pavement."""
    foot = view.row(0.17)
    picture = _skyline(rng, view, sky(rng, view), foot)
    grey = vary(rng, (152, 148, 142), 12)
    paving = ground(rng, view, "tiles", (shade(grey, 92), grey))
    road = ground(rng, view, "asphalt", ((112, 112, 116), (84, 84, 90)))
    rows = np.arange(view.horizon, view.height, dtype=np.int32)
    on_road = (rows >= view.row(0.36)) & (rows < view.row(0.78))
    area = np.where(on_road[:, None, None], road, paving)
    kerb = (np.abs(rows - view.row(0.36)) < 1) | (np.abs(rows - view.row(0.78)) < 2)
    area = np.where(kerb[:, None, None], area * 5 // 4, area)
    dash, start = max(view.near // 2, 12), int(rng.integers(40))
    columns = (np.arange(view.width, dtype=np.int32) + start) % (dash * 2) < dash
    line = (np.abs(rows - view.row(0.55)) < 2)[:, None] & columns[None, :]
    area = np.where(line[..., None], blend(area, (226, 222, 206), 190), area)
    picture[foot:] = area[foot - view.horizon :]
    return np.asarray(np.clip(picture, 0, 255), np.int32)


def _shore(rng: np.random.Generator, view: View, depth: float) -> IntArray:
    """Give how far every pixel below the horizon is above (< 0) or below a wavy shore, (R, W)."""
    rows = np.arange(view.horizon, view.height, dtype=np.int32)[:, None]
    wave = ridge(rng, view.width, 40, 9) + ridge(rng, view.width, 14, 3)
    return np.asarray(rows - view.row(depth) - wave[None, :] + 6, np.int32)


def beach(rng: np.random.Generator, view: View) -> IntArray:
    """Paint sea with foam and wet sand, then dry sand."""
    picture = sky(rng, view)
    sea = pick(rng, (((70, 118, 150), (92, 160, 170)), ((58, 98, 140), (70, 132, 160))))
    water = ground(rng, view, "water", sea)
    tone = vary(rng, (206, 182, 140), 14)
    sand = ground(rng, view, "sand", (shade(tone, 96), tone))
    below = _shore(rng, view, 0.3)
    area = np.where((below > 0)[..., None], sand, water)
    wet = np.clip(140 - below * 16, 0, 140) * (below > 0)
    area = blend(area, (128, 112, 92), np.asarray(wet, np.int32))
    foam = np.clip(230 - np.abs(below) * 90, 0, 230)
    area = blend(area, (240, 242, 240), np.asarray(foam, np.int32))
    picture[view.horizon :] = area
    return picture


def lake(rng: np.random.Generator, view: View) -> IntArray:
    """Paint a lake that mirrors its far shore, with a grass bank in front."""
    picture = _hills(rng, view, sky(rng, view), view.horizon)
    rows = view.height - view.horizon
    deep = pick(rng, (((104, 138, 160), (46, 84, 112)), ((116, 144, 148), (52, 92, 96))))
    water = ground(rng, view, "water", deep)
    mirror = picture[view.horizon - 1 - np.arange(rows) % view.horizon]
    fade = np.clip(120 - np.arange(rows, dtype=np.int32) * 2, 20, 120)[:, None]
    water = blend(water, mirror, np.broadcast_to(fade, (rows, view.width)))
    bank = ground(rng, view, "grass", pick(rng, _GRASS))
    below = _shore(rng, view, 0.84)
    area = np.where((below > 0)[..., None], bank, water)
    edge = np.clip(150 - np.abs(below) * 60, 0, 150)
    picture[view.horizon :] = blend(area, (92, 84, 62), np.asarray(edge, np.int32))
    return picture


_WALLS: tuple[RGB, ...] = (
    (206, 196, 178), (176, 190, 190), (196, 178, 170), (184, 190, 168), (214, 206, 190),
    (150, 160, 176),
)  # fmt: skip
_FLOORS: tuple[RGB, ...] = ((156, 112, 74), (122, 86, 60), (182, 148, 108), (140, 128, 116))


def _frame(rng: np.random.Generator, picture: IntArray, foot: int, outside: IntArray) -> None:
    """Hang a window or a picture on the wall that ends at row `foot`."""
    width = picture.shape[1]
    tall, wide = int(foot * between(rng, 0.36, 0.55)), int(width * between(rng, 0.16, 0.28))
    x0, y0 = int(rng.integers(width - wide)), int(foot * between(rng, 0.1, 0.28))
    edge = vary(rng, pick(rng, ((226, 222, 214), (112, 82, 56), (70, 66, 64))))
    picture[y0 : y0 + tall, x0 : x0 + wide] = edge
    inner = outside[y0 + 3 : y0 + tall - 3, x0 + 3 : x0 + wide - 3]
    picture[y0 + 3 : y0 + tall - 3, x0 + 3 : x0 + wide - 3] = inner
    if chance(rng, 0.5):
        picture[y0 : y0 + tall, x0 + wide // 2 - 1 : x0 + wide // 2 + 1] = edge


def room(rng: np.random.Generator, view: View) -> IntArray:
    """Paint a room: papered wall, a window or picture, skirting, wooden floor, at times a rug."""
    foot = view.row(0.26)
    tone = vary(rng, pick(rng, _WALLS), 10)
    picture = gradient(view.height, view.width, shade(tone, 92), tone)
    columns = np.arange(view.width, dtype=np.int32)
    if chance(rng, 0.5):
        stripe = columns // int(rng.integers(5, 12)) % 2 * 12 - 6
        picture = picture + stripe[None, :, None]
    picture = picture + fractal_noise(rng, view.height, view.width, 40)[..., None] // 14
    glow = (columns * 2 - view.width) * view.light * 34 // view.width
    picture = picture + glow[None, :, None]
    for _ in range(int(rng.integers(1, 3))):
        _frame(rng, picture, foot, sky(rng, view))
    floor = vary(rng, pick(rng, _FLOORS), 10)
    planks = ground(rng, view, pick(rng, ("planks", "planks", "tiles")), (shade(floor, 92), floor))
    if chance(rng, 0.5):
        rug = ground(
            rng, view, "cloth", (vary(rng, (132, 84, 84), 30), vary(rng, (150, 96, 90), 30))
        )
        rows = np.arange(view.horizon, view.height, dtype=np.int32)[:, None]
        x = np.abs(columns - int(view.width * between(rng, 0.35, 0.65)))[None, :]
        spread = (rows - view.horizon) * 3 // 4
        inside = (rows > view.row(0.42)) & (rows < view.row(0.86)) & (x < spread)
        planks = np.where(inside[..., None], rug, planks)
    picture[foot:] = planks[foot - view.horizon :]
    board = max(view.height // 40, 3)
    picture[foot - board : foot] = np.array(shade(tone, 116), np.int32)
    picture[foot : foot + 2] = picture[foot : foot + 2] * 3 // 5
    return np.asarray(np.clip(picture, 0, 255), np.int32)


def tabletop(rng: np.random.Generator, view: View) -> IntArray:
    """Paint the top of a table before a wall that is out of focus."""
    tone = vary(rng, pick(rng, _WALLS), 12)
    picture = gradient(view.height, view.width, shade(tone, 78), shade(tone, 96))
    for _ in range(4):  # blurred furniture
        colour = vary(rng, pick(rng, (*_WALLS, *_FLOORS)), 20)
        x = np.arange(view.width, dtype=np.int32) - int(rng.integers(view.width))
        share = np.clip(150 - np.abs(x) * 150 // int(rng.integers(16, 50)), 0, 110)
        picture = blend(picture, colour, np.broadcast_to(share, picture.shape[:2]))
    foot = view.row(0.12)
    top = vary(rng, pick(rng, (*_FLOORS, (190, 186, 178), (104, 110, 118))), 10)
    surface = pick(rng, ("planks", "cloth", "asphalt"))
    picture[foot:] = ground(rng, view, surface, (shade(top, 96), top))[foot - view.horizon :]
    picture[foot : foot + 2] = picture[foot : foot + 2] * 5 // 4
    return np.asarray(np.clip(picture, 0, 255), np.int32)


def reef(rng: np.random.Generator, view: View) -> IntArray:
    """Paint the sea floor: rays of light, rocks in the distance, rippled sand."""
    top, low = pick(rng, (((62, 160, 190), (18, 84, 124)), ((70, 170, 170), (22, 96, 108))))
    picture = gradient(view.height, view.width, vary(rng, top), vary(rng, low))
    rows = np.arange(view.height, dtype=np.int32)[:, None]
    slant = (np.arange(view.width, dtype=np.int32)[None, :] + view.light * rows // 2) % view.width
    rays = smooth_noise(rng, 1, view.width, 22)[0][slant]
    beam = np.clip(rays - 130, 0, 120) * (view.height - rows) // view.height // 3
    picture = picture + beam[..., None]
    for cell, tall, share in ((36, view.height // 4, 70), (18, view.height // 7, 130)):
        colour = vary(rng, pick(rng, ((40, 70, 86), (70, 74, 92), (60, 92, 84))), 14)
        texture = fractal_noise(rng, view.height, view.width, 8)[..., None] // 5
        inside = under_ridge(view, view.horizon + 8, ridge(rng, view.width, cell, tall))
        picture = np.where(inside[..., None], blend(picture, colour, share) + texture, picture)
    sand = ground(rng, view, "sand", ((78, 130, 134), (150, 164, 140)))
    picture[view.horizon :] = sand
    return np.asarray(np.clip(picture, 0, 255), np.int32)
