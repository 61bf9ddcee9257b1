"""Core: pictures of masks: overlays, outlines, heat, and sheets of captioned panels."""

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.cells import BoolArray

Picture = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""

CAPTION_PX = 34
MARGIN_PX = 6
INK = (30, 30, 34)
PAPER = (250, 250, 248)
LABEL_COLOUR = (255, 64, 48)
TRUTH_COLOUR = (40, 190, 90)


def overlay(picture: Picture, mask_HW: BoolArray, colour: tuple[int, int, int]) -> Picture:
    """Tint the mask's pixels half way to a colour and draw its outline."""
    out = picture.astype(np.float32)
    out[mask_HW] = 0.5 * out[mask_HW] + 0.5 * np.asarray(colour, np.float32)
    out[~mask_HW] *= 0.75
    drawn = out.astype(np.uint8)
    drawn[outline(mask_HW)] = colour
    return drawn


def outline(mask_HW: BoolArray) -> BoolArray:
    """Give the mask's pixels that have a 4-neighbour outside it (the frame counts as inside)."""
    padded = np.pad(mask_HW, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask_HW & ~inner, np.bool_)


def heat(picture: Picture, prob_HW: npt.NDArray[np.float32]) -> Picture:
    """Show a probability in [0, 1] over a greyed image: dark blue, through orange, to yellow."""
    stops = np.array([[20, 20, 90], [190, 40, 90], [250, 140, 30], [255, 245, 120]], np.float32)
    position = np.clip(prob_HW, 0, 1) * (len(stops) - 1)
    low = np.minimum(position.astype(np.int64), len(stops) - 2)
    share = (position - low)[..., None]
    colour = stops[low] * (1 - share) + stops[low + 1] * share
    grey = picture.mean(axis=2, keepdims=True)
    return np.asarray(0.35 * grey + 0.65 * colour, np.uint8)


def cell_colours(picture: Picture, cells_HW: npt.NDArray[np.uint16]) -> Picture:
    """Give every cell a colour of its own and draw the borders between cells.

    Cell 0, which no candidate covers, stays grey.
    """
    count = int(cells_HW.max()) + 1
    palette = np.zeros((count, 3), np.float32)
    for number in range(1, count):
        hue = (number * 0.61803398875) % 1.0  # the golden ratio spreads neighbours apart
        palette[number] = np.multiply(colorsys.hsv_to_rgb(hue, 0.75, 1.0), 255)
    grey = picture.mean(axis=2, keepdims=True)
    covered = (cells_HW > 0)[..., None]
    out = np.where(covered, 0.45 * grey + 0.55 * palette[cells_HW], 0.6 * grey)
    border = np.zeros(cells_HW.shape, np.bool_)
    border[:, 1:] |= cells_HW[:, 1:] != cells_HW[:, :-1]
    border[1:] |= cells_HW[1:] != cells_HW[:-1]
    out[border] = 255
    return np.asarray(np.broadcast_to(out, picture.shape), np.uint8)


def sheet(rows: Sequence[Sequence[tuple[Picture, str]]], panel_px: int = 224) -> Picture:
    """Lay captioned pictures out in rows.

    Args:
        rows: Panels of (picture, caption); all rows of one length. A caption may hold one line
            break.
        panel_px: Side of the square that each picture is fitted into.

    Returns:
        The sheet, (H, W, 3) uint8.
    """
    fitted = [[(_fit(picture, panel_px), caption) for picture, caption in row] for row in rows]
    heights = [max((image.height for image, _ in row), default=0) for row in fitted]
    num_columns = max((len(row) for row in rows), default=1)
    height = sum(heights) + len(rows) * (CAPTION_PX + MARGIN_PX) + MARGIN_PX
    canvas = Image.new("RGB", (num_columns * (panel_px + MARGIN_PX) + MARGIN_PX, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    bottom = MARGIN_PX
    for row, row_height in zip(fitted, heights, strict=True):
        bottom += row_height
        for column, (image, caption) in enumerate(row):
            left = MARGIN_PX + column * (panel_px + MARGIN_PX)
            canvas.paste(image, (left, bottom - image.height))
            text = "\n".join(_shorten(line, font, panel_px) for line in caption.split("\n")[:2])
            draw.multiline_text((left, bottom + 2), text, INK, font=font, spacing=1)
        bottom += CAPTION_PX + MARGIN_PX
    return np.asarray(canvas, np.uint8)


def _fit(picture: Picture, side: int) -> Image.Image:
    image = Image.fromarray(picture)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "…") > width_px:
        text = text[:-1]
    return text + "…"
