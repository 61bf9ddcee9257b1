"""The `candidates` section of stages.yaml."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.exchange import ImportConfig, source_sha256
from pipeline.sam.entries import SAM_ENTRIES
from pipeline.sam.options import GeneratorOptions

IMPORTED = "imported"
"""Instead of an entry of `SAM_ENTRIES`: the masks are read from files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidatesConfig:
    """The `candidates` section of stages.yaml."""

    model: str = "vit_tiny_demo"
    """What makes the masks; `imported`: somebody made them before, see `masks`."""
    checkpoint: Path | None = None
    """Weights of the model: a file, or for `hub_...` a folder or a hub's id; None where the project
    ships them or there are none."""
    masks: ImportConfig | None = None
    """For model `imported`: format and place of the masks."""
    canvas: int = 640
    """Longest side in pixels of stored masks, a multiple of 8; larger images are scaled down."""
    shard_size: int = 64
    """Images per shard and task, at least 1."""
    max_candidates: int = 256
    """Candidates kept per image, those of the highest predicted IoU; at least 1."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where SAM runs; `auto` takes a GPU if there is one. What has no weights runs on the CPU."""
    options: GeneratorOptions = field(default_factory=GeneratorOptions)
    """Grid, thresholds and batches of the mask generator. Only a network has them."""

    def __post_init__(self) -> None:
        if self.model not in (*SAM_ENTRIES, IMPORTED):
            known = ", ".join((*SAM_ENTRIES, IMPORTED))
            raise ValueError(f"model: unknown {self.model!r}; known are {known}")
        if (self.masks is None) == (self.model == IMPORTED):
            given = "none" if self.masks is None else f"{self.masks.path}"
            raise ValueError(f"masks: model {IMPORTED}, and no other, needs them, found {given}")
        if self.needs_checkpoint and self.checkpoint is None:
            raise ValueError(f"checkpoint: {self.model} needs one: a .pth file, or a hub's folder")
        if self.canvas < 8 or self.canvas % 8:
            raise ValueError(f"canvas: expected a multiple of 8 pixels, found {self.canvas}")
        for name in ("shard_size", "max_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.options.max_candidates is not None:
            raise ValueError("options.max_candidates: write it as candidates.max_candidates")
        if not self.has_network:
            _refuse_unused(self)
        else:
            _refuse_senseless(self)

    @property
    def has_network(self) -> bool:
        """Whether a network makes the masks."""
        return self.model in SAM_ENTRIES and SAM_ENTRIES[self.model].has_network

    @property
    def needs_checkpoint(self) -> bool:
        """Whether the model comes without weights of its own."""
        return self.model in SAM_ENTRIES and SAM_ENTRIES[self.model].needs_checkpoint

    def input_files(self) -> dict[str, Path]:
        """Give the files that have to be here, by field name; what the hub may have is left out."""
        files = {"masks.path": None if self.masks is None else self.masks.path}
        if not self.model.startswith("hub_"):
            files["checkpoint"] = self.checkpoint
        return {name: path for name, path in files.items() if path is not None}


def _refuse_unused(config: CandidatesConfig) -> None:
    """Refuse what means nothing where no network makes the masks."""
    if config.checkpoint is not None:
        raise ValueError(f"checkpoint: {config.model} has no weights, found {config.checkpoint}")
    for name, value in dataclasses.asdict(config.options).items():
        if value is not None:
            raise ValueError(f"options.{name}: unused by model {config.model}, found {value!r}")


def _refuse_senseless(config: CandidatesConfig) -> None:
    """Refuse options that do not go together, before anything is run."""
    options = generator_options(config)
    if options.compile_encoder and options.profile != "fast":
        raise ValueError("options.compile_encoder: belongs to profile fast")
    if options.compile_encoder and config.model in ("hub_sam_hq", "hub_sam2"):
        raise ValueError(f"options.compile_encoder: unused by model {config.model}")
    layers = (options.crop_n_layers or 0) + 1
    if options.point_grids is not None and len(options.point_grids) != layers:
        raise ValueError(
            f"options.point_grids: expected a grid per crop layer, {layers}, found "
            f"{len(options.point_grids)}"
        )


def generator_options(config: CandidatesConfig) -> GeneratorOptions:
    """Fill what the config leaves open: by the model's entry, then by Meta's defaults.

    What has no network reads `max_candidates` alone, the others stay None.
    """
    filled = config.options
    if config.model in SAM_ENTRIES:
        filled = SAM_ENTRIES[config.model].options_with(filled)
    return dataclasses.replace(filled, max_candidates=config.max_candidates)


def with_absolute_paths(config: CandidatesConfig) -> CandidatesConfig:
    """Name weights and masks by absolute paths, for workers that were started in another folder.

    A checkpoint that is no path here is a hub's id, and stays one.
    """
    checkpoint, masks = config.checkpoint, config.masks
    if checkpoint is not None and checkpoint.exists():
        checkpoint = checkpoint.absolute()
    if masks is not None:
        masks = dataclasses.replace(masks, path=masks.path.absolute())
    return dataclasses.replace(config, checkpoint=checkpoint, masks=masks)


def source_of_masks(config: CandidatesConfig) -> str:
    """Name by content what makes the masks, weights or files, 64 hexadecimal digits.

    Raises:
        ConfigError: If it is missing or of another model.
    """
    if config.masks is not None:
        return source_sha256(config.masks)
    from pipeline.sam.models import checkpoint_sha256  # torch takes seconds

    return checkpoint_sha256(config.model, config.checkpoint)
