"""SAM-HQ as `transformers` keeps it, driven by our mask generator.

Shape legend: N images, K prompts, M masks of a prompt (3), T tokens of a prompt, C channels,
S pixels of the embedding, h and w its rows and columns.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pipeline.sam.hub_files import check_one_position, fill_network, read_config, read_weights
from pipeline.sam.hub_networks import HubNetwork, build_network, check_finite
from pipeline.sam.hub_pixels import read_pixels
from pipeline.sam.networks import Decoded, Select
from pipeline.torchvision_ops import ensure_importable


class HqEmbedding(NamedTuple):
    """One image, as SAM-HQ's decoder takes it."""

    image: torch.Tensor
    """The encoder's output, shape (1, C, h, w)."""
    detail: torch.Tensor
    """The HQ feature: early and late features of the encoder, shape (1, C / 8, 4 h, 4 w)."""


class HubSamHq(HubNetwork):
    """SAM-HQ on the modules of `transformers`' SamHQModel.

    Segment Anything in High Quality, Ke et al., NeurIPS 2023, arXiv:2306.01567. Each of SAM's
    masks gets the logits of the HQ token added. Departs from the authors' code, which keeps the
    mask of highest predicted IoU alone, and from `transformers` in two places: masks stay in the
    order of SAM's tokens, and they are drawn from the pixels that the two-way transformer gives,
    as the authors do. `transformers` 5.23 drops those pixels, and draws from the image embedding
    with rows and columns exchanged.
    """

    @torch.inference_mode()
    def encode(self, prepared: Sequence[torch.Tensor]) -> list[HqEmbedding]:
        """Encode images at once.

        Args:
            prepared: From `prepare`.

        Raises:
            SemiresError: If an embedding is not finite.
        """
        pixel_values = self.pixels.normalise(prepared, self.device)
        with self.precision():
            image, early = self.model.get_image_embeddings(pixel_values)
            detail = self._detail(image, early)
        image, detail = image.float(), detail.float()
        check_finite("SAM-HQ", image, detail)
        return [HqEmbedding(image[i : i + 1], detail[i : i + 1]) for i in range(len(image))]

    def _detail(self, image: torch.Tensor, early: Sequence[torch.Tensor]) -> torch.Tensor:
        """Give the HQ feature, (N, C / 8, 4 h, 4 w), from what the encoder gave."""
        decoder = self.model.mask_decoder
        late = decoder.activation(decoder.encoder_norm(decoder.encoder_conv1(image)))
        detail: torch.Tensor = decoder.encoder_conv2(late)
        if early:  # after each block with global attention, (N, h, w, C'); the first is meant
            fine = decoder.compress_vit_conv1(early[0].permute(0, 3, 1, 2).contiguous())
            fine = decoder.activation(decoder.compress_vit_norm(fine))
            detail = detail + decoder.compress_vit_conv2(fine)
        return detail

    @torch.inference_mode()
    def decode(
        self,
        embedding: HqEmbedding,
        points: npt.NDArray[np.float64],
        size: tuple[int, int],
        select: Select,
    ) -> Decoded:
        """Prompt with one positive point each; only prompts with a wanted mask are drawn.

        Args:
            embedding: Of one image.
            points: (x, y) in pixels of the image, shape (K, 2).
            size: (H, W) of the image.
            select: Which masks are wanted.
        """
        prompts, labels = self.prompts(points, size, torch.float64)  # as SAM does
        sparse, dense = self.model.prompt_encoder(
            input_points=prompts, input_labels=labels, input_boxes=None, input_masks=None
        )
        place = self.model.get_image_wide_positional_embeddings()  # sines, not in half precision
        with self.precision():
            queries_KTC, pixels_KSC = self._attend(embedding.image + dense, place, sparse)
            iou = self.model.mask_decoder.iou_prediction_head(queries_KTC[:, 0])[:, 1:].float()
            passes = select(iou)
            drawn = torch.nonzero(passes.any(1))[:, 0]
            logits = self._draw(embedding, queries_KTC[drawn], pixels_KSC[drawn]).float()
        return Decoded(logits[passes[drawn]], iou, torch.nonzero(passes))

    def _attend(
        self, image: torch.Tensor, place: torch.Tensor, sparse: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the two-way transformer on an image and places (1, C, h, w), prompts (1, K, 2, C).

        Gives tokens (K, T, C) and pixels (K, S, C).
        """
        decoder, count = self.model.mask_decoder, sparse.shape[1]
        first = torch.cat(
            [decoder.iou_token.weight, decoder.mask_tokens.weight, decoder.hq_token.weight]
        )
        queries, pixels = decoder.transformer(
            point_embeddings=torch.cat([first.expand(1, count, -1, -1), sparse], 2),
            image_embeddings=image.expand(count, -1, -1, -1),
            image_positional_embeddings=place.expand(count, -1, -1, -1),
            attention_similarity=None,
        )
        return queries[0], pixels[:, 0]

    def _draw(
        self, embedding: HqEmbedding, queries_KTC: torch.Tensor, pixels_KSC: torch.Tensor
    ) -> torch.Tensor:
        """Draw the masks of prompts, (K, M, 4 h, 4 w)."""
        decoder = self.model.mask_decoder
        networks = decoder.output_hypernetworks_mlps
        source = pixels_KSC.transpose(1, 2).unflatten(2, embedding.image.shape[2:])
        fine = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(source)))
        fine = decoder.activation(decoder.upscale_conv2(fine))
        sharp = decoder.activation(decoder.mask_norm(decoder.mask_conv1(fine)))
        sharp = decoder.mask_conv2(sharp) + embedding.detail
        # Tokens: IoU, one for a single mask, one for each of M masks, HQ, and the prompt.
        rows = [networks[i](queries_KTC[:, 1 + i]) for i in range(1, len(networks))]
        hq_row = decoder.hq_mask_mlp(queries_KTC[:, 1 + len(networks)])
        logits = torch.stack(rows, 1) @ fine.flatten(2) + hq_row[:, None] @ sharp.flatten(2)
        drawn: torch.Tensor = logits.unflatten(2, fine.shape[2:])
        return drawn


def load_hub_sam_hq(folder: Path, *, half: bool = False) -> HubSamHq:
    """Load a checkpoint of `transformers`' SamHQModel.

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
    raw = read_config(folder, "hub_sam_hq")
    ensure_importable()
    from transformers import SamHQConfig, SamHQModel

    model = build_network(SamHQConfig, SamHQModel, raw, folder)
    pixels = read_pixels(folder, model.config.vision_config.image_size, keep_aspect=True)
    state = read_weights(folder)
    check_one_position(state, folder)
    fill_network(model, state, folder)
    return HubSamHq(model.eval(), pixels, half=half)
