"""Automatic mask generation: a grid of points over one image, SAM on each, filters, NMS.

Pure functions on arrays; the semantics are those of `SamAutomaticMaskGenerator` without crops
(Segment Anything, Kirillov et al., ICCV 2023, arXiv:2304.02643), the order of work is not: masks
are filtered by predicted IoU before they are drawn at full size, and counted as packed bits.

Shape legend: K points, M masks of a point (3), N masks, H and W rows and columns of the image,
h and w of the decoder's logits, P packed bytes of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional as F

from pipeline.errors import SemiresError
from pipeline.sam.decoder import decode_tokens, draw_masks
from pipeline.sam.options import REFERENCE, GeneratorOptions
from pipeline.sam.packed import boxes_of, count_pixels, greedy_nms, pack_above

__all__ = ["REFERENCE", "GeneratorOptions", "Masks", "encode_image", "generate_masks", "point_grid"]

BoolArray = npt.NDArray[np.bool_]
_CHUNK = 32  # masks at full size at once; more outgrow the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """The masks of one image, best predicted IoU first; columns of equal length N >= 0."""

    masks: BoolArray
    """Shape (N, H, W)."""
    predicted_iou: npt.NDArray[np.float32]
    """SAM's own estimate, shape (N,), about [0, 1]."""
    stability_score: npt.NDArray[np.float32]
    """IoU of the mask under two logit cut-offs, shape (N,), in [0, 1]."""
    box: npt.NDArray[np.int32]
    """XYXY, half-open, pixels, shape (N, 4)."""
    area: npt.NDArray[np.int32]
    """Pixels of the mask, shape (N,)."""
    point: npt.NDArray[np.float32]
    """The prompt, (x, y) in pixels, shape (N, 2)."""
    num_dropped: int = 0
    """Masks beyond `max_candidates`, which are not in the columns."""

    def __post_init__(self) -> None:
        lengths = {f.name: len(getattr(self, f.name)) for f in fields(self)[:6]}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of different lengths: {lengths}")


@dataclass(frozen=True, slots=True)
class _Rows:
    """Masks on their way to `Masks`, packed: shape (N, H, P) bits and their columns."""

    bits: npt.NDArray[np.uint8]
    predicted_iou: npt.NDArray[np.float32]
    stability_score: npt.NDArray[np.float32]
    point: npt.NDArray[np.float64]

    def select(self, rows: npt.NDArray[Any]) -> "_Rows":
        """Give the rows of a mask or an index array."""
        return _Rows(
            self.bits[rows], self.predicted_iou[rows], self.stability_score[rows], self.point[rows]
        )


def point_grid(points_per_side: int, height: int, width: int) -> npt.NDArray[np.float64]:
    """Spread points evenly over an image.

    Args:
        points_per_side: Points along each side.
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        (x, y) in pixels, x fastest, shape (points_per_side ** 2, 2), float64.
    """
    half = 1 / (2 * points_per_side)
    along = np.linspace(half, 1 - half, points_per_side)
    grid = np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2)
    return grid * np.asarray([width, height], np.float64)


def scaled_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Give (H, W) after scaling the longer side to `longest`, rounded half up as SAM does."""
    scale = longest * 1.0 / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


@torch.inference_mode()
def encode_image(sam: Any, image: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Scale, normalise, pad and encode one image.

    Args:
        sam: A `segment_anything` Sam.
        image: Shape (H, W, 3), RGB.

    Returns:
        The embedding, shape (1, C, h, w), float32, on the model's device.

    Raises:
        SemiresError: If the embedding is not finite.
    """
    height, width = scaled_size(image.shape[0], image.shape[1], sam.image_encoder.img_size)
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture)).to(sam.device).permute(2, 0, 1).contiguous()
    embedding: torch.Tensor = sam.image_encoder(sam.preprocess(pixels[None]))
    if not bool(torch.isfinite(embedding).all()):
        raise SemiresError("SAM's image embedding is not finite, the checkpoint is damaged")
    return embedding


def _decode_reference(
    sam: Any, embedding: torch.Tensor, sparse: torch.Tensor, thresh: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decode with segment-anything's own code, then keep what passes the predicted IoU."""
    dense = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    logits, iou = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense.expand(len(sparse), -1, *embedding.shape[2:]),
        multimask_output=True,
    )
    wanted = torch.nonzero(_passes(iou, thresh))
    return logits[wanted[:, 0], wanted[:, 1]], iou, wanted


def _decode_fast(
    sam: Any, embedding: torch.Tensor, sparse: torch.Tensor, thresh: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decode with our decoder, drawing only points of which some mask passes."""
    iou, rows, pixels = decode_tokens(sam, embedding, sparse)
    passes = _passes(iou, thresh)
    points = torch.nonzero(passes.any(1))[:, 0]
    logits = draw_masks(sam, embedding, rows[points], pixels[points])
    return logits[passes[points]], iou, torch.nonzero(passes)


def _passes(iou: torch.Tensor, thresh: float) -> torch.Tensor:
    """Tell which predicted IoUs are kept; like the original, 0 switches the filter off."""
    if not bool(torch.isfinite(iou).all()):
        raise SemiresError("SAM's predicted IoU is not finite, the checkpoint is damaged")
    return iou > thresh if thresh > 0 else torch.ones_like(iou, dtype=torch.bool)


def _draw_full(
    sam: Any, logits: torch.Tensor, input_size: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    """Scale logits (N, h, w) to the image, (N, H, W), as `Sam.postprocess_masks` does."""
    side = sam.image_encoder.img_size
    full = F.interpolate(logits[:, None], (side, side), mode="bilinear", align_corners=False)
    full = full[..., : input_size[0], : input_size[1]]
    if full.shape[2:] != size:  # to the same size it is the identity
        full = F.interpolate(full, size, mode="bilinear", align_corners=False)
    return full[:, 0]


def _stable(
    sam: Any,
    logits: torch.Tensor,
    input_size: tuple[int, int],
    size: tuple[int, int],
    options: GeneratorOptions,
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.bool_]]]:
    """Draw masks at full size a few at a time; give bits, stability, and which are kept."""
    offset, thresh = options.stability_score_offset, options.stability_score_thresh
    assert offset is not None
    assert thresh is not None
    for start in range(0, len(logits), _CHUNK):
        full = _draw_full(sam, logits[start : start + _CHUNK], input_size, size)
        inner = count_pixels(pack_above(full, sam.mask_threshold + offset))
        outer = count_pixels(pack_above(full, sam.mask_threshold - offset))
        bits = pack_above(full, sam.mask_threshold)
        with np.errstate(invalid="ignore"):
            score = np.divide(inner, outer, dtype=np.float64).astype(np.float32)
        kept = (score >= thresh) & (count_pixels(bits) > 0)  # NaN, an empty mask, is not kept
        yield bits[kept], score[kept], kept


def _prompt(sam: Any, points: npt.NDArray[np.float64], scale: tuple[float, float]) -> torch.Tensor:
    """Embed one positive point per prompt, in double precision as the original does."""
    scaled = torch.as_tensor(points * np.asarray(scale), device=sam.device)[:, None]
    labels = torch.ones(len(points), 1, dtype=torch.int, device=sam.device)
    sparse: torch.Tensor = sam.prompt_encoder((scaled, labels), boxes=None, masks=None)[0]
    return sparse


def _decode_grid(
    sam: Any,
    embedding: torch.Tensor,
    points: npt.NDArray[np.float64],
    size: tuple[int, int],
    options: GeneratorOptions,
) -> _Rows:
    """Run every point and keep the masks that pass predicted IoU and stability."""
    thresh, step = options.pred_iou_thresh, options.points_per_batch
    assert thresh is not None
    assert step is not None
    decode = _decode_fast if options.profile == "fast" else _decode_reference
    input_size = scaled_size(*size, sam.image_encoder.img_size)
    scale = (input_size[1] / size[1], input_size[0] / size[0])
    parts = [_no_rows(size)]
    for start in range(0, len(points), step):
        batch = points[start : start + step]
        logits, iou, wanted = decode(sam, embedding, _prompt(sam, batch, scale), thresh)
        if not bool(torch.isfinite(logits).all()):
            raise SemiresError("SAM's mask logits are not finite, the checkpoint is damaged")
        if not len(logits):
            continue
        drawn = list(_stable(sam, logits, input_size, size, options))
        kept = np.concatenate([keep for _, _, keep in drawn])
        rows = wanted.cpu().numpy()[kept]
        predicted = iou.cpu().numpy()[rows[:, 0], rows[:, 1]]
        bits = np.concatenate([bits for bits, _, _ in drawn])
        parts.append(
            _Rows(bits, predicted, np.concatenate([s for _, s, _ in drawn]), batch[rows[:, 0]])
        )
    columns = zip(
        *((p.bits, p.predicted_iou, p.stability_score, p.point) for p in parts), strict=True
    )
    return _Rows(*(np.concatenate(column) for column in columns))


def _no_rows(size: tuple[int, int]) -> _Rows:
    """Give zero masks of an image of (H, W)."""
    none = np.zeros(0, np.float32)
    return _Rows(
        np.zeros((0, size[0], -(-size[1] // 8)), np.uint8), none, none, np.zeros((0, 2), np.float64)
    )


def _check_image(image: npt.NDArray[np.uint8]) -> None:
    """Refuse what is not an RGB image."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"expected an image (H, W, 3) of uint8, got {image.shape} {image.dtype}")


@torch.inference_mode()
def generate_masks(
    sam: Any, image: npt.NDArray[np.uint8], options: GeneratorOptions = REFERENCE
) -> Masks:
    """Find every mask of one image.

    Departs from `SamAutomaticMaskGenerator` where an image has masks without a pixel: they are
    dropped also when the stability filter is off. Boxes are half-open here.

    Args:
        sam: A `segment_anything` Sam in evaluation mode.
        image: Shape (H, W, 3), RGB, of any size from 1 x 1.
        options: What is None takes the value of `REFERENCE`; fill in the model entry's own
            defaults with `options.filled(SAM_MODELS[name].options)` first.

    Returns:
        The masks, best predicted IoU first; there may be none.

    Raises:
        SemiresError: If the model's outputs are not finite.
        ValueError: If the image has another shape or dtype.
    """
    _check_image(image)
    options = options.filled(REFERENCE)
    assert options.points_per_side is not None
    assert options.box_nms_thresh is not None
    size = (image.shape[0], image.shape[1])
    points = point_grid(options.points_per_side, *size)
    rows = _decode_grid(sam, encode_image(sam, image), points, size, options)
    # The original compares inclusive boxes, one pixel narrower and lower.
    inclusive = (boxes_of(rows.bits, size[1]) - [0, 0, 1, 1]).astype(np.float32)
    kept = greedy_nms(inclusive, rows.predicted_iou, options.box_nms_thresh)
    best = rows.select(kept[: options.max_candidates])
    return Masks(
        masks=np.unpackbits(best.bits, axis=2, count=size[1]).view(np.bool_),
        predicted_iou=best.predicted_iou,
        stability_score=best.stability_score,
        box=boxes_of(best.bits, size[1]),
        area=count_pixels(best.bits).astype(np.int32),
        point=best.point.astype(np.float32),
        num_dropped=len(kept) - len(best.bits),
    )
