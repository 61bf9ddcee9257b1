"""The SAMs that can be chosen: a plain dict of how to build each and what suits it."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ConfigError
from pipeline.sam import region_merging, tiny_regions
from pipeline.sam.entries import SAM_ENTRIES, SamEntry
from pipeline.sam.generator import masks_of_views, prepare_views
from pipeline.sam.hub_files import hub_sha256, resolve_hub
from pipeline.sam.hub_sam import load_hub_sam
from pipeline.sam.hub_sam2 import load_hub_sam2
from pipeline.sam.hub_sam_hq import load_hub_sam_hq
from pipeline.sam.masks import Masks
from pipeline.sam.networks import SegmentAnything
from pipeline.sam.options import GeneratorOptions
from pipeline.sam.tiny import WEIGHTS, load_vit_tiny_demo
from pipeline.torchvision_ops import ensure_importable

ensure_importable()

from segment_anything import (  # noqa: E402 - imports torchvision
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
)

Image = npt.NDArray[np.uint8]


def _runs_in_half(network: Any, options: GeneratorOptions) -> bool:
    """Tell whether the network is to run in bfloat16: the fast profile, on a GPU."""
    return options.profile == "fast" and torch.device(network.device).type == "cuda"


def _as_network(sam: Any, options: GeneratorOptions) -> SegmentAnything:
    """Let the generator drive a `segment_anything` Sam."""
    fast = options.profile == "fast"
    return SegmentAnything(
        sam,
        "fast" if fast else "reference",
        half=_runs_in_half(sam, options),
        compile_encoder=fast and bool(options.compile_encoder),
    )


def _in_precision(network: Any, options: GeneratorOptions) -> Any:
    """Choose the precision of a network of `transformers`."""
    half = _runs_in_half(network, options)
    return type(network)(network.model, network.pixels, half=half)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamModel(SamEntry):
    """One SAM, or what stands in for it, that can be chosen by name: how it is built and run."""

    build: Callable[[Path | None], Any]
    """Checkpoint -> a torch module in evaluation mode on the CPU; None if the entry has no
    network."""
    sha256: Callable[[Path | None], str]
    """Checkpoint -> what names the weights by their content, for fingerprints."""
    wrap: Callable[[Any, GeneratorOptions], Any] = _as_network
    """What `build` gave, on its device -> the `Network` that the generator drives."""
    prepare: Callable[[Any, Image, GeneratorOptions], Any] = prepare_views
    """Network, image (H, W, 3) uint8 RGB, options -> what `generate` takes; safe in a thread."""
    generate: Callable[[Any, Sequence[Any], GeneratorOptions], list[Masks]] = masks_of_views
    """Network, prepared images, options -> the masks of each."""

    def load(self, checkpoint: Path | None, device: str, options: GeneratorOptions) -> Any:
        """Build the network on a device; None if the entry has none.

        Raises:
            ConfigError: If the checkpoint cannot be used.
        """
        module = self.build(checkpoint)
        return None if module is None else self.wrap(module.to(device).eval(), options)

    def masks_of(self, network: Any, image: Image, options: GeneratorOptions) -> Masks:
        """Find the masks of one image (H, W, 3) uint8 RGB."""
        return self.generate(network, [self.prepare(network, image, options)], options)[0]


def _model(name: str, **how: Any) -> SamModel:
    """Join what a config knows of an entry with how it is built and run."""
    known = SAM_ENTRIES[name]
    facts = {field.name: getattr(known, field.name) for field in fields(known)}
    return SamModel(**facts, **how)


def _build_shipped(checkpoint: Path | None) -> Any:
    """Load the small SAM, from another file where one is given."""
    if checkpoint is not None and checkpoint.suffix in (".pth", ".pt"):
        raise ConfigError(
            f"{checkpoint}: the small SAM takes a .safetensors file; Meta's checkpoints are for "
            "models vit_b, vit_l and vit_h"
        )
    return load_vit_tiny_demo(WEIGHTS if checkpoint is None else checkpoint)


def _build_nothing(checkpoint: Path | None) -> None:
    """Load nothing, and refuse a checkpoint."""
    if checkpoint is not None:
        raise ConfigError(f"SAM model region_merging has no weights, got checkpoint {checkpoint}")


def _file_sha256(checkpoint: Path | None) -> str:
    """Hash a checkpoint file, or the shipped one."""
    if checkpoint is not None and checkpoint.is_dir():
        raise ConfigError(
            f"{checkpoint} is a folder, expected a file; models hub_sam, hub_sam_hq and hub_sam2 "
            "take folders"
        )
    try:
        with (WEIGHTS if checkpoint is None else checkpoint).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read SAM checkpoint {checkpoint}: {error.strerror}") from error


def _version_sha256(checkpoint: Path | None) -> str:
    """Hash the algorithm's version in the place of weights."""
    _build_nothing(checkpoint)
    return hashlib.sha256(region_merging.VERSION.encode()).hexdigest()


def _shipped_and_regions_sha256(checkpoint: Path | None) -> str:
    """Hash the small SAM's weights together with the version of what is done with its masks."""
    named = f"{_file_sha256(checkpoint)} {tiny_regions.VERSION}"
    return hashlib.sha256(named.encode()).hexdigest()


def _as_it_is(_network: None, image: Image, _options: GeneratorOptions) -> Image:
    """Prepare nothing."""
    return image


def _merge_regions(
    _network: None, images: Sequence[Image], options: GeneratorOptions
) -> list[Masks]:
    """Find masks without a network."""
    return [region_merging.region_masks(image, options) for image in images]


def _builder(name: str, build: Callable[[], Any], embed_dim: int) -> Callable[[Path | None], Any]:
    """Give a function that builds one of Meta's SAMs and loads its `.pth` strictly."""

    def load(checkpoint: Path | None) -> Any:
        if checkpoint is None:
            raise ConfigError(f"SAM model {name} needs a checkpoint file, got none")
        state = _read_checkpoint(checkpoint)
        if family := _family_of(state):
            raise ConfigError(f"{checkpoint} is not a checkpoint of SAM model {name}{family}")
        found = _name_of(state)
        if found != name:
            hint = f"use model {found}" if found else f"expected {embed_dim} channels of {name}"
            raise ConfigError(f"{checkpoint} is not a checkpoint of SAM model {name}: {hint}")
        sam = build()
        try:
            sam.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise ConfigError(f"{checkpoint} {_what_differs(sam, state, name)}") from error
        return sam.eval()

    return load


def _what_differs(sam: Any, state: dict[str, torch.Tensor], model: str) -> str:
    """Name a parameter that is missing, one too many, or of another shape."""
    own = sam.state_dict()
    if missing := own.keys() - state.keys():
        some = f"{len(missing)} parameters, such as {min(missing)},"
        return f"lacks {some} of SAM model {model}; download it again"
    if more := state.keys() - own.keys():
        return f"has {len(more)} parameters, such as {min(more)}, that SAM model {model} has not"
    name = next(key for key in sorted(own) if own[key].shape != state[key].shape)
    shapes = f"{tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
    return f"has {name} of shape {shapes} for SAM model {model}"


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict without running any code that the file may hold."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns in paragraphs; one line is said below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"cannot read SAM checkpoint {path}: {error.strerror}") from error
    # Damaged bytes raise anything; torch's own words would advise to run code from the file.
    except Exception as error:
        raise ConfigError(
            f"cannot read SAM checkpoint {path}: no file of tensors (cut short, a web page, or it "
            "holds code); download it again"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        hint = _family_of(state["model"])
        raise ConfigError(f"SAM checkpoint {path} holds its tensors under 'model'{hint}")
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise ConfigError(f"SAM checkpoint {path} is not a state dict of tensors")
    return state


def _family_of(state: dict[Any, Any]) -> str:
    """Name the entry of another family that a state dict belongs to, as the end of a sentence."""
    names = [name for name in state if isinstance(name, str)]
    if any(name.startswith("image_encoder.trunk.") for name in names):
        return ": it is SAM 2; use model hub_sam2 with its folder or id of the hub"
    if any(name.startswith(("mask_decoder.hf_", "mask_decoder.compress_vit")) for name in names):
        return ": it is SAM-HQ; use model hub_sam_hq with its folder or id of the hub"
    return ""


_EMBED_DIM = {"vit_tiny_demo": 128, "vit_b": 768, "vit_l": 1024, "vit_h": 1280}


def _name_of(state: dict[str, torch.Tensor]) -> str | None:
    """Tell from the encoder's width which entry a state dict belongs to, or None."""
    position = state.get("image_encoder.pos_embed")
    width = None if position is None or position.ndim != 4 else position.shape[-1]
    return next((name for name, dim in _EMBED_DIM.items() if dim == width), None)


def _published(name: str, build: Callable[[], Any]) -> SamModel:
    """Give the entry of one of Meta's SAMs, at the defaults of its own mask generator."""
    return _model(name, build=_builder(name, build, _EMBED_DIM[name]), sha256=_file_sha256)


def _from_hub(
    name: str,
    load: Callable[[Path], Any],
    wrap: Callable[[Any, GeneratorOptions], Any],
) -> SamModel:
    """Give the entry of a family of `transformers`; a checkpoint is a folder or a hub's id."""

    def folder(checkpoint: Path | None) -> Path:
        if checkpoint is None:
            raise ConfigError(f"SAM model {name} needs a folder or the id of a hub, got none")
        return resolve_hub(checkpoint, name)

    return _model(
        name,
        build=lambda checkpoint: load(folder(checkpoint)),
        sha256=lambda checkpoint: hub_sha256(folder(checkpoint)),
        wrap=wrap,
    )


SAM_MODELS: dict[str, SamModel] = {
    "vit_tiny_demo": _model("vit_tiny_demo", build=_build_shipped, sha256=_file_sha256),
    "vit_tiny_regions": _model(
        "vit_tiny_regions",
        build=_build_shipped,
        sha256=_shipped_and_regions_sha256,
        prepare=tiny_regions.prepare,
        generate=tiny_regions.generate,
    ),
    "region_merging": _model(
        "region_merging",
        build=_build_nothing,
        sha256=_version_sha256,
        prepare=_as_it_is,
        generate=_merge_regions,
    ),
    "vit_b": _published("vit_b", build_sam_vit_b),
    "vit_l": _published("vit_l", build_sam_vit_l),
    "vit_h": _published("vit_h", build_sam_vit_h),
    "hub_sam": _from_hub("hub_sam", load_hub_sam, _as_network),
    "hub_sam_hq": _from_hub("hub_sam_hq", load_hub_sam_hq, _in_precision),
    "hub_sam2": _from_hub("hub_sam2", load_hub_sam2, _in_precision),
}
"""Names and facts as in `entries.SAM_ENTRIES`."""


def checkpoint_sha256(name: str, path: Path | None) -> str:
    """Name the weights of a model by their content, for fingerprints.

    Args:
        name: A key of `SAM_MODELS`.
        path: The checkpoint, or None for the shipped one.

    Returns:
        The SHA-256 of the file, of a folder's files, or of the algorithm's version where an entry
        has no weights; 64 hexadecimal digits.

    Raises:
        ConfigError: If the name is unknown, the file is missing, or one is given for an entry
            without weights.
    """
    if name not in SAM_MODELS:
        raise ConfigError(f"unknown SAM model {name!r}, choose from {', '.join(SAM_MODELS)}")
    if path is None and SAM_MODELS[name].needs_checkpoint:
        raise ConfigError(f"SAM model {name} needs a checkpoint file, got none")
    return SAM_MODELS[name].sha256(path)
