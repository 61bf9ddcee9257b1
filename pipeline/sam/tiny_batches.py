"""What the small SAM is trained on: prompts and targets out of generated blobs.

Shape legend: B scenes, K prompts per scene, L = 3 levels (region, part, object), H and W rows and
columns.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from pipeline.sam.blobs import BlobScene, blob_scene
from pipeline.sam.plain_blobs import plain_scene

HELD_OUT_SEED = 10_000_019
"""Names the series of scenes that training never draws from."""


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
    """Id of the segment at the middle of each 8 x 8 pixels, shape (B, L, H / 8, W / 8), int64."""


@dataclass(slots=True)
class ScenePool:
    """A growing store of scenes, later a ring of the newest."""

    seed: int
    size: int
    plain_of_three: int = 0
    """How many of every three scenes are plain ones."""
    scenes: list[BlobScene] = field(default_factory=list)
    drawn: int = 0

    def refill(self, count: int) -> None:
        """Paint `count` further scenes of the series."""
        for _ in range(count):
            is_plain = self.drawn % 3 < self.plain_of_three
            scene = (plain_scene if is_plain else blob_scene)(self.seed, self.drawn)
            if len(self.scenes) < self.size:
                self.scenes.append(scene)
            else:
                self.scenes[self.drawn % self.size] = scene
            self.drawn += 1


def draw_prompts(rng: np.random.Generator, scene: BlobScene, count: int) -> npt.NDArray[np.int64]:
    """Draw pixels to prompt with: half in a surface, the rest in an object, some anywhere.

    Surfaces are drawn by the square root of their area, between a grid, which hits the large ones,
    and equal shares, which would spend most prompts on specks.

    Args:
        rng: Source of randomness.
        scene: The scene; surfaces of fewer than 48 visible pixels are passed over.
        count: Points wanted.

    Returns:
        Shape (count, 2), (x, y), int64.
    """
    height, width = scene.region_map.shape
    area = np.bincount(scene.region_map.ravel(), minlength=len(scene.part_of))
    visible = np.flatnonzero((area >= 48) & ~scene.is_background)
    share = area[visible] ** 0.5 / max((area[visible] ** 0.5).sum(), 1)
    order = np.argsort(scene.region_map.ravel(), kind="stable")
    start = np.cumsum(area) - area
    points = np.zeros((count, 2), np.int64)
    for row, kind in enumerate(rng.random(count)):
        if kind < 0.12 or not len(visible):
            pixel = int(rng.integers(height * width))
        else:
            surface = int(rng.choice(visible, p=share))
            if kind > 0.55:  # an object first, then a pixel of it, so that large parts lead
                family = visible[scene.object_of[visible] == scene.object_of[surface]]
                surface = int(rng.choice(family, p=area[family] / area[family].sum()))
            pixel = int(order[start[surface] + rng.integers(area[surface])])
        points[row] = pixel % width, pixel // width
    return points


def make_batch(
    rng: np.random.Generator, scenes: list[BlobScene], prompts: int, augment: bool
) -> Batch:
    """Turn scenes into prompts and targets, mirrored, turned and recoloured at random."""
    images, points, targets, segments = [], [], [], []
    for scene in scenes:
        point = draw_prompts(rng, scene, prompts)
        image = scene.image.astype(np.float32)
        maps = np.stack([scene.region_map, scene.level_map("part"), scene.level_map("object")])
        ids = maps[:, point[:, 1], point[:, 0]].T  # (K, L)
        inside = (maps[None] == ids[:, :, None, None]).view(np.uint8)
        rows = inside[:, :, ::2] + inside[:, :, 1::2]
        target = (rows[..., ::2] + rows[..., 1::2]) * np.float32(0.25)  # (K, L, H / 2, W / 2)
        where, segment = point.astype(np.float32) + 0.5, maps[:, 4::8, 4::8]
        if augment:
            if rng.random() < 0.5:
                image, target, segment = image[:, ::-1], target[..., ::-1], segment[..., ::-1]
                where[:, 0] = image.shape[1] - where[:, 0]
            if rng.random() < 0.15:
                image, target = image.transpose(1, 0, 2), target.swapaxes(2, 3)
                segment = segment.swapaxes(1, 2)
                where = where[:, ::-1]
            image = image[:, :, rng.permutation(3)]
            image = np.clip((image - 128) * rng.uniform(0.6, 1.1) + 128 + rng.normal(0, 12), 0, 255)
        images.append(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)))
        points.append(torch.from_numpy(np.ascontiguousarray(where)))
        targets.append(torch.from_numpy(np.ascontiguousarray(target)))
        segments.append(torch.from_numpy(segment.astype(np.int64)))
    return Batch(*(torch.stack(rows) for rows in (images, points, targets, segments)))
