"""What the small SAM is trained on: prompts and targets out of generated pictures.

Shape legend: B pictures, K prompts per picture, L = 3 levels (part, object, group), H and W rows
and columns.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from pipeline.sam.blobs import SCENE_SIZE, blob_scene
from pipeline.scenes.scene import Scene, make_scene

LEVELS = ("part", "object", "group")
"""From fine to coarse, one output of the model each: a part of an object, the object, and the
objects that touch it with it."""
HELD_OUT_SEED = 10_000_019
"""Names the series of pictures that training never draws from."""
PADDING = 255
"""Segment of what lies outside the picture, at every level."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A square picture and the segment of each pixel at each level."""

    image: npt.NDArray[np.uint8]
    """Shape (H, W, 3), RGB; the padding is grey, near the mean that SAM takes off."""
    segments: npt.NDArray[np.uint8]
    """Shape (L, H, W); ids of their own at each level."""
    is_background: npt.NDArray[np.bool_]
    """Ids of the finest level that belong to no object, shape (256,)."""


@dataclass(slots=True)
class Batch:
    """Prompts and targets of one step."""

    image: torch.Tensor
    """Shape (B, 3, H, W), float32 in [0, 255]."""
    point: torch.Tensor
    """Shape (B, K, 2), (x, y) in pixels, float32."""
    target: torch.Tensor
    """Share of each cell that the segment covers, shape (B, K, L, H / 2, W / 2), in [0, 1]."""
    segment: torch.Tensor
    """Id of the segment in the middle of 4 x 4 pixels, shape (B, L, H / 4, W / 4), int64."""


def scene_picture(scene: Scene) -> Picture:
    """Turn a scene of the embedded data set's kind into a picture with levels.

    Objects that touch form a group. Background that hangs together is one segment at every level.
    """
    height, width = scene.image.shape[:2]
    segments = np.full((3, SCENE_SIZE, SCENE_SIZE), PADDING, np.uint8)
    part, whole, group = (level[:height, :width] for level in segments)
    covered = np.zeros((height, width), np.bool_)
    for thing in scene.objects:
        covered |= thing.mask
    ground, count = ndimage.label(~covered)
    whole[...] = part[...] = np.minimum(ground, 40)
    touching = _groups(covered, scene)
    group[...] = np.where(covered, np.minimum(touching + 40, 250), part)
    number = min(count, 40) + 1
    for place, thing in enumerate(scene.objects, 41):
        whole[thing.mask] = min(place, 250)
        for mask in thing.parts.values():
            part[mask] = min(number, 250)
            number += 1
    image = np.full((SCENE_SIZE, SCENE_SIZE, 3), 116, np.uint8)
    image[:height, :width] = scene.image
    is_background = np.arange(256) <= min(count, 40)
    is_background[PADDING] = True
    return Picture(image, segments, is_background)


def _groups(covered: npt.NDArray[np.bool_], scene: Scene) -> npt.NDArray[np.int32]:
    """Number the groups of touching objects, (H, W) int32, 0 where nothing is.

    An object that something in front of it cuts in two holds its pieces' groups together.
    """
    piece, _ = ndimage.label(covered, np.ones((3, 3)))
    for _ in scene.objects:  # as many times as a chain of objects can be long
        before = piece.copy()
        for thing in scene.objects:
            names = np.unique(piece[thing.mask])
            if len(names) > 1:
                piece[np.isin(piece, names)] = names[0]
        if np.array_equal(piece, before):
            break
    return np.asarray(piece, np.int32)


def blob_picture(seed: int, index: int) -> Picture:
    """Paint blobs, which look like no thing: surface, part with its decorations, object."""
    scene = blob_scene(seed, index)
    is_background = np.ones(256, np.bool_)
    is_background[: len(scene.is_background)] = scene.is_background
    levels = [scene.region_map, scene.level_map("part"), scene.level_map("object")]
    return Picture(scene.image, np.stack(levels), is_background)


def training_picture(seed: int, index: int, blobs_of_four: int = 1) -> Picture:
    """Make number `index` of a series: of every four pictures, `blobs_of_four` are of blobs."""
    if index % 4 < blobs_of_four:
        return blob_picture(seed, index)
    return scene_picture(make_scene(HELD_OUT_SEED + 1 + seed, "train", index))


@dataclass(slots=True)
class PicturePool:
    """A growing store of pictures, later a ring of the newest."""

    seed: int
    size: int
    blobs_of_four: int = 1
    pictures: list[Picture] = field(default_factory=list)
    drawn: int = 0

    def refill(self, count: int) -> None:
        """Make `count` further pictures of the series."""
        for _ in range(count):
            picture = training_picture(self.seed, self.drawn, self.blobs_of_four)
            if len(self.pictures) < self.size:
                self.pictures.append(picture)
            else:
                self.pictures[self.drawn % self.size] = picture
            self.drawn += 1


def draw_prompts(rng: np.random.Generator, picture: Picture, count: int) -> npt.NDArray[np.int64]:
    """Draw pixels to prompt with: half in a part, the rest in an object, some anywhere.

    Parts and objects are drawn by the square root of their area, between a grid, which hits the
    large ones, and equal shares, which would spend most prompts on specks.

    Args:
        rng: Source of randomness.
        picture: The picture; parts of fewer than 24 visible pixels are passed over.
        count: Points wanted.

    Returns:
        Shape (count, 2), (x, y), int64.
    """
    parts, objects = picture.segments[0].ravel(), picture.segments[1].ravel()
    area = np.bincount(parts, minlength=256)
    visible = (area >= 24) & ~picture.is_background
    inside = visible[parts]
    anywhere = np.flatnonzero(parts != PADDING)
    share = np.zeros((2, len(parts)))
    for row, ids in enumerate((parts, objects)):
        size = np.bincount(ids[inside], minlength=256)
        share[row, inside] = size[ids[inside]] ** -0.5  # of a pixel; the segment has the root
    if not inside.any():
        chosen = rng.choice(anywhere, count)
    else:
        share /= share.sum(1, keepdims=True)
        mixed = 0.5 * share[0] + 0.38 * share[1]
        mixed[anywhere] += 0.12 / len(anywhere)
        chosen = rng.choice(len(parts), count, p=mixed / mixed.sum())
    width = picture.segments.shape[2]
    return np.stack([chosen % width, chosen // width], 1)


def make_batch(
    rng: np.random.Generator, pictures: list[Picture], prompts: int, augment: bool
) -> Batch:
    """Turn pictures into prompts and targets, mirrored, turned and recoloured at random."""
    images, points, targets, segments = [], [], [], []
    for picture in pictures:
        point = draw_prompts(rng, picture, prompts)
        image, maps = picture.image.astype(np.float32), picture.segments
        ids = maps[:, point[:, 1], point[:, 0]].T  # (K, L)
        inside = (maps[None] == ids[:, :, None, None]).view(np.uint8)
        pairs = inside[:, :, ::2] + inside[:, :, 1::2]
        target = (pairs[..., ::2] + pairs[..., 1::2]) * np.float32(0.25)  # (K, L, H / 2, W / 2)
        where, segment = point.astype(np.float32) + 0.5, maps[:, 2::4, 2::4]
        if augment:
            if rng.random() < 0.5:
                image, target, segment = image[:, ::-1], target[..., ::-1], segment[..., ::-1]
                where[:, 0] = image.shape[1] - where[:, 0]
            if rng.random() < 0.1:
                image, target = image.transpose(1, 0, 2), target.swapaxes(2, 3)
                segment = segment.swapaxes(1, 2)
                where = where[:, ::-1]
            if rng.random() < 0.3:
                image = image[:, :, rng.permutation(3)]
            image = np.clip((image - 116) * rng.uniform(0.7, 1.2) + 116 + rng.normal(0, 8), 0, 255)
        images.append(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)))
        points.append(torch.from_numpy(np.ascontiguousarray(where)))
        targets.append(torch.from_numpy(np.ascontiguousarray(target)))
        segments.append(torch.from_numpy(segment.astype(np.int64)))
    return Batch(*(torch.stack(rows) for rows in (images, points, targets, segments)))
