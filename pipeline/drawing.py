"""Core: pictures of masks: overlays, outlines, heat, and sheets of captioned panels."""

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.cells import BoolArray, Cells

Picture = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""

LINE_PX = 15
"""Height of a line of a caption."""
MARGIN_PX = 6
CAPTION_CHARACTERS = 400
"""Of a longer line of a caption only beginning and end are looked at."""
MAX_BORDER_SHARE = 0.25
"""Where borders between cells would cover more of the image than this, they are not drawn."""
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


def outlined(picture: Picture, mask_HW: BoolArray) -> Picture:
    """Draw a mask's outline in white."""
    drawn = picture.copy()
    drawn[outline(mask_HW)] = 255
    return drawn


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

    Cell 0, which no candidate covers, stays grey. Thousands of cells would leave nothing but
    borders: they are left out where they cover more than `MAX_BORDER_SHARE` of the pixels.
    """
    count = int(cells_HW.max()) + 1
    palette = np.zeros((count, 3), np.float32)
    for number in range(1, count):
        hue = (number * 0.61803398875) % 1.0  # the golden ratio spreads neighbours apart
        palette[number] = np.multiply(colorsys.hsv_to_rgb(hue, 0.75, 1.0), 255)
    grey = picture.mean(axis=2, keepdims=True)
    covered = (cells_HW > 0)[..., None]
    out = np.where(covered, 0.45 * grey + 0.55 * palette[cells_HW], 0.6 * grey)
    border = borders(cells_HW)
    if border.mean() <= MAX_BORDER_SHARE:
        out[border] = 255
    return np.asarray(np.broadcast_to(out, picture.shape), np.uint8)


def borders(cells_HW: npt.NDArray[np.uint16]) -> BoolArray:
    """Give the pixels whose left or upper neighbour lies in another cell."""
    border = np.zeros(cells_HW.shape, np.bool_)
    border[:, 1:] |= cells_HW[:, 1:] != cells_HW[:, :-1]
    border[1:] |= cells_HW[1:] != cells_HW[:-1]
    return border


def smallest_over(cells: Cells) -> npt.NDArray[np.uint16]:
    """Give for every pixel the smallest candidate over it, (H, W), from 1; 0 where there is none.

    Of equally small ones the first.
    """
    size_C = np.bincount(cells.cells.ravel(), minlength=cells.num_cells)
    area_N = cells.membership @ size_C
    owner_C = np.zeros(cells.num_cells, np.uint16)
    for number in np.argsort(area_N, kind="stable")[::-1]:
        owner_C[cells.membership[number]] = number + 1
    return np.asarray(owner_C[cells.cells], np.uint16)


def sheet(rows: Sequence[Sequence[tuple[Picture, str]]], panel_px: int = 224) -> Picture:
    """Lay captioned pictures out in rows.

    Args:
        rows: Panels of (picture, caption), of each row as many as it has. A caption may hold line
            breaks; each of its lines is wrapped once, and shortened in the middle if it is longer.
        panel_px: Side of the square that each picture is fitted into.

    Returns:
        The sheet, (H, W, 3) uint8.
    """
    font = ImageFont.load_default(size=13)
    fitted = [
        [(_fit(picture, panel_px), _wrap(caption, font, panel_px)) for picture, caption in row]
        for row in rows
    ]
    heights = [max((image.height for image, _ in row), default=0) for row in fitted]
    below = [max((len(lines) for _, lines in row), default=0) * LINE_PX + 4 for row in fitted]
    num_columns = max((len(row) for row in rows), default=1)
    height = sum(heights) + sum(below) + (len(rows) + 1) * MARGIN_PX
    canvas = Image.new("RGB", (num_columns * (panel_px + MARGIN_PX) + MARGIN_PX, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    bottom = MARGIN_PX
    for row, row_height, caption_height in zip(fitted, heights, below, strict=True):
        bottom += row_height
        for column, (image, lines) in enumerate(row):
            left = MARGIN_PX + column * (panel_px + MARGIN_PX)
            canvas.paste(image, (left, bottom - image.height))
            for number, line in enumerate(lines):
                draw.text((left, bottom + 2 + number * LINE_PX), line, INK, font=font)
        bottom += caption_height + MARGIN_PX
    return np.asarray(canvas, np.uint8)


def _fit(picture: Picture, side: int) -> Image.Image:
    image = Image.fromarray(picture)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST)


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _wrap(caption: str, font: Font, width_px: int) -> list[str]:
    """Part a caption into lines that fit; what is empty takes no room."""
    return [part for line in caption.split("\n") for part in _wrap_once(line, font, width_px)]


def _wrap_once(line: str, font: Font, width_px: int) -> list[str]:
    """Put as many words as fit on a first line, and the others on a second."""
    text = " ".join(line.split())
    if len(text) > CAPTION_CHARACTERS:
        half = CAPTION_CHARACTERS // 2
        text = f"{text[:half]}…{text[-half:]}"
    if not text or font.getlength(text) <= width_px:
        return [text] if text else []
    words = text.split(" ")
    fit = [n for n in range(1, len(words)) if font.getlength(" ".join(words[:n])) <= width_px]
    if not fit:
        return [_shorten(text, font, width_px)]
    return [" ".join(words[: fit[-1]]), _shorten(" ".join(words[fit[-1] :]), font, width_px)]


def _shorten(text: str, font: Font, width_px: int) -> str:
    """Leave the middle out of a line that does not fit: names of files differ at their end."""
    short, keep = text, len(text) // 2
    while keep > 0 and font.getlength(short) > width_px:
        keep -= 1
        short = f"{text[:keep]}…{text[len(text) - keep :]}"
    return short
