"""SAM 2 as `transformers` keeps it, driven by our mask generator.

Shape legend: K prompts, C channels, h and w rows and columns of a feature map.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.sam.hub_files import fill_network, read_config, read_weights
from pipeline.sam.hub_networks import HubNetwork, build_network, check_finite
from pipeline.sam.hub_pixels import read_pixels
from pipeline.sam.networks import Decoded, Select
from pipeline.torchvision_ops import ensure_importable

_VIDEO_ONLY = (
    "memory_",
    "mask_downsample.",
    "object_pointer_proj.",
    "temporal_positional_encoding_projection_layer.",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "occlusion_spatial_embedding_parameter",
)
"""What the weights that only follow objects through a video begin with."""


class HubSam2(HubNetwork):
    """SAM 2 and 2.1 for single images on `transformers`' Sam2Model.

    SAM 2: Segment Anything in Images and Videos, Ravi et al., ICLR 2025, arXiv:2408.00714.
    Images are scaled to the square without regard to their aspect.
    """

    @torch.inference_mode()
    def encode(self, prepared: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Encode images at once.

        Args:
            prepared: From `prepare`.

        Returns:
            Of each image its feature maps from fine to coarse, each of shape (1, C, h, w); the
            last is the embedding.

        Raises:
            SemiresError: If an embedding is not finite.
        """
        pixel_values = self.pixels.normalise(prepared, self.device)
        with self.precision():
            maps = [one.float() for one in self.model.get_image_embeddings(pixel_values)]
        check_finite("SAM 2", *maps)
        return [[feature[i : i + 1] for feature in maps] for i in range(len(prepared))]

    @torch.inference_mode()
    def decode(
        self,
        embedding: list[torch.Tensor],
        points: npt.NDArray[np.float64],
        size: tuple[int, int],
        select: Select,
    ) -> Decoded:
        """Prompt with one positive point each; every mask is drawn, the wanted ones are given.

        Args:
            embedding: Of one image.
            points: (x, y) in pixels of the image, shape (K, 2).
            size: (H, W) of the image.
            select: Which masks are wanted.
        """
        prompts, labels = self.prompts(points, size, torch.float32)  # as SAM 2 does
        # Sines of places are not taken in half precision: points would move by a pixel or two.
        sparse, dense = self.model.prompt_encoder(
            input_points=prompts, input_labels=labels, input_boxes=None, input_masks=None
        )
        place = self.model.get_image_wide_positional_embeddings()
        with self.precision():
            logits, scores, _, _ = self.model.mask_decoder(
                image_embeddings=embedding[-1],
                image_positional_embeddings=place,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
                high_resolution_features=embedding[:-1],
            )
        iou = scores[0].float()
        wanted = torch.nonzero(select(iou))
        return Decoded(logits[0][wanted[:, 0], wanted[:, 1]].float(), iou, wanted)


def load_hub_sam2(folder: Path, *, half: bool = False) -> HubSam2:
    """Load a checkpoint of `transformers`' Sam2Model, or the image part of a Sam2VideoModel's.

    Args:
        folder: Holds `config.json` and the weights, as `resolve_hub` gives it.
        half: Whether the network runs in bfloat16; its weights stay float32.

    Returns:
        The network in evaluation mode on the CPU, float32.

    Raises:
        ConfigError: If the checkpoint is of another family or damaged, or its weights are not
            exactly those of the network.
        SemiresError: If a weight is not finite.
    """
    raw = read_config(folder, "hub_sam2")
    ensure_importable()
    from transformers import Sam2Config, Sam2Model

    model = build_network(Sam2Config, Sam2Model, raw, folder)
    pixels = read_pixels(folder, model.config.prompt_encoder_config.image_size, keep_aspect=False)
    state = read_weights(folder)
    if raw["model_type"] == "sam2_video":
        state = {name: x for name, x in state.items() if not name.startswith(_VIDEO_ONLY)}
    fill_network(model, state, folder)
    return HubSam2(model.eval(), pixels, half=half)
