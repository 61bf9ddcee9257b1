"""The SAMs that can be chosen: a plain dict of how to build each and what suits it."""

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ConfigError
from pipeline.sam import region_merging
from pipeline.sam.generator import Masks, generate_masks
from pipeline.sam.options import GeneratorOptions
from pipeline.sam.tiny import WEIGHTS, load_vit_tiny_demo
from pipeline.torchvision_ops import ensure_importable

ensure_importable()

from segment_anything import (  # noqa: E402 - imports torchvision
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamModel:
    """One SAM, or what stands in for it, that can be chosen by name."""

    build: Callable[[Path | None], Any]
    """Checkpoint path -> `segment_anything` Sam in evaluation mode on the CPU; None if the entry
    has no network."""
    image_size: int
    """Side of the square that the model reads, pixels; longer sides are scaled down to it."""
    options: GeneratorOptions
    """Thresholds that suit the model."""
    needs_checkpoint: bool
    """Whether a file must be given; if not, the weights ship with the project or there are none."""
    generate: Callable[[Any, npt.NDArray[np.uint8], GeneratorOptions], Masks] = generate_masks
    """What `build` gave, an image (H, W, 3) uint8 RGB and options -> its masks."""
    version: str | None = None
    """Names the algorithm of an entry without weights; its options but `max_candidates` are
    unused."""


def _build_shipped(checkpoint: Path | None) -> Any:
    """Load the small SAM, from another file where one is given."""
    return load_vit_tiny_demo(WEIGHTS if checkpoint is None else checkpoint)


def _build_nothing(checkpoint: Path | None) -> None:
    """Load nothing, and refuse a checkpoint."""
    if checkpoint is not None:
        raise ConfigError(f"SAM model region_merging has no weights, got checkpoint {checkpoint}")


def _merge_regions(
    _network: None, image: npt.NDArray[np.uint8], options: GeneratorOptions
) -> Masks:
    """Find masks without a network."""
    return region_merging.region_masks(image, options)


def _builder(name: str, build: Callable[[], Any], embed_dim: int) -> Callable[[Path | None], Any]:
    """Give a function that builds one of Meta's SAMs and loads its `.pth` strictly."""

    def load(checkpoint: Path | None) -> Any:
        if checkpoint is None:
            raise ConfigError(f"SAM model {name} needs a checkpoint file, got none")
        state = _read_checkpoint(checkpoint)
        found = _name_of(state)
        if found != name:
            hint = f"use model {found}" if found else f"expected {embed_dim} channels of {name}"
            raise ConfigError(f"{checkpoint} is not a checkpoint of SAM model {name}: {hint}")
        sam = build()
        try:
            sam.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise ConfigError(
                f"{checkpoint} lacks or adds parameters of SAM model {name}; download it again"
            ) from error
        return sam.eval()

    return load


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict without running any code that the file may hold."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"cannot read SAM checkpoint {path}: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ConfigError(f"SAM checkpoint {path} is not a state dict of tensors")
    return state


_EMBED_DIM = {"vit_tiny_demo": 128, "vit_b": 768, "vit_l": 1024, "vit_h": 1280}


def _name_of(state: dict[str, torch.Tensor]) -> str | None:
    """Tell from the encoder's width which entry a state dict belongs to, or None."""
    position = state.get("image_encoder.pos_embed")
    width = None if position is None else position.shape[-1]
    return next((name for name, dim in _EMBED_DIM.items() if dim == width), None)


def _published(name: str, build: Callable[[], Any]) -> SamModel:
    """Give the entry of one of Meta's SAMs, at the defaults of its own mask generator."""
    return SamModel(
        build=_builder(name, build, _EMBED_DIM[name]),
        image_size=1024,
        options=GeneratorOptions(
            points_per_side=32,
            points_per_batch=64,
            pred_iou_thresh=0.88,
            stability_score_thresh=0.95,
            box_nms_thresh=0.7,
            profile="reference",
        ),
        needs_checkpoint=True,
    )


SAM_MODELS: dict[str, SamModel] = {
    "vit_tiny_demo": SamModel(
        build=_build_shipped,
        image_size=256,
        options=GeneratorOptions(
            points_per_side=16,
            points_per_batch=16,  # what the decoder touches stays in the cache
            # Nearly off, because large background regions get the highest predicted IoU, and thin
            # parts are never stable: NMS alone leaves about 130 candidates.
            pred_iou_thresh=0.1,
            stability_score_thresh=0.0,
            box_nms_thresh=0.9,
            profile="fast",
        ),
        needs_checkpoint=False,
    ),
    "region_merging": SamModel(
        build=_build_nothing,
        image_size=region_merging.LONGEST_SIDE,
        options=GeneratorOptions(),
        needs_checkpoint=False,
        generate=_merge_regions,
        version=region_merging.VERSION,
    ),
    "vit_b": _published("vit_b", build_sam_vit_b),
    "vit_l": _published("vit_l", build_sam_vit_l),
    "vit_h": _published("vit_h", build_sam_vit_h),
}


def checkpoint_sha256(name: str, path: Path | None) -> str:
    """Name the weights of a model by their content, for fingerprints.

    Args:
        name: A key of `SAM_MODELS`.
        path: The checkpoint, or None for the shipped one.

    Returns:
        The SHA-256 of the file, or of the algorithm's version where an entry has no weights; 64
        hexadecimal digits.

    Raises:
        ConfigError: If the name is unknown, the file is missing, or one is given for an entry
            without weights.
    """
    if name not in SAM_MODELS:
        raise ConfigError(f"unknown SAM model {name!r}, choose from {', '.join(SAM_MODELS)}")
    if path is None and SAM_MODELS[name].needs_checkpoint:
        raise ConfigError(f"SAM model {name} needs a checkpoint file, got none")
    version = SAM_MODELS[name].version
    if version is not None:
        SAM_MODELS[name].build(path)  # refuses a file
        return hashlib.sha256(version.encode()).hexdigest()
    try:
        with (WEIGHTS if path is None else path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read SAM checkpoint {path}: {error.strerror}") from error
