"""CLIPSeg: a frozen or trained CLIP, and a light decoder that a sentence modulates.

Shape letters: B batch, H W pixels of the image, C channels, N tokens of the image (the class token
first), L word tokens, T channels of the words, P channels that image and sentence share.
"""

import torch
from torch import nn

from pipeline.torchvision_ops import ensure_importable
from train.clipseg_sizes import CLIPSEG_SIZES as CLIPSEG_SIZES
from train.clipseg_sizes import ClipSegConfig as ClipSegConfig

ensure_importable()

from transformers import (  # noqa: E402
    CLIPSegConfig,
    CLIPSegTextConfig,
    CLIPSegTextModel,
    CLIPSegVisionConfig,
    CLIPSegVisionModel,
)
from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder  # noqa: E402


def _parts(
    config: ClipSegConfig,
) -> tuple[CLIPSegTextConfig, CLIPSegVisionConfig, CLIPSegConfig]:
    vision = CLIPSegVisionConfig(
        hidden_size=config.vision_dim,
        intermediate_size=4 * config.vision_dim,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads,
        image_size=config.table_size,
        patch_size=config.patch_size,
    )
    text = CLIPSegTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.text_dim,
        intermediate_size=4 * config.text_dim,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        max_position_embeddings=config.text_positions,
        eos_token_id=0,  # unused: `encode_words` finds the end of a sentence by the mask
        pad_token_id=None,
        bos_token_id=None,
    )
    whole = CLIPSegConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=config.shared_dim,
        extract_layers=config.extract_layers,
        reduce_dim=config.reduce_dim,
        decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=config.decoder_hidden,
        use_complex_transposed_convolution=config.refined_head,
    )
    return text, vision, whole


class ClipSeg(nn.Module):
    """The network of CLIPSeg (Lüddecke and Ecker, CVPR 2022, arXiv:2112.10003) on transformers.

    Departs from transformers' own in three places. It gives two classes, the background's logit
    being 0, so that softmax equals the published sigmoid. A sentence is read off at its last token
    by the mask, so that any tokenizer will do that closes its sentences (CLIP's, or [SEP]). What
    reaches no output is not there: layers behind the last that is read, the image's own projection.
    Random weights come from torch's generator.
    """

    def __init__(self, config: ClipSegConfig) -> None:
        super().__init__()
        self.config = config
        text, vision, whole = _parts(config)
        self.text = CLIPSegTextModel(text)
        self.text_projection = nn.Linear(config.text_dim, config.shared_dim, bias=False)
        nn.init.normal_(self.text_projection.weight, std=config.text_dim**-0.5)
        self.vision = CLIPSegVisionModel(vision)
        del self.vision.encoder.layers[config.extract_layers[-1] + 1 :]
        self.vision.post_layernorm = nn.Identity()  # type: ignore[assignment]
        self.decoder = CLIPSegDecoder(whole)
        # By torch's own rules: transformers draws them with deviation 0.02, which makes what the
        # sentence modulates so small that a layer norm's epsilon drowns it.
        for layer in self.decoder.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                layer.reset_parameters()
        if not config.train_clip:
            for part in (self.text, self.text_projection, self.vision):
                part.requires_grad_(requires_grad=False)

    def encode_images(self, images_B3HW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Give what the decoder reads of images, whatever will be asked of them.

        Returns:
            Per layer of `extract_layers` (B, N, C).
        """
        x_BNC = self.vision.pre_layrnorm(self.vision.embeddings(images_B3HW))
        read = []
        for number, layer in enumerate(self.vision.encoder.layers):
            x_BNC = layer(x_BNC, None)
            if number in self.config.extract_layers:
                read.append(x_BNC)
        return tuple(read)

    def encode_words(self, token_ids_BL: torch.Tensor, token_mask_BL: torch.Tensor) -> torch.Tensor:
        """Give a vector per sentence: its last token's, projected; shape (B, P)."""
        words_BLT = self.text(
            input_ids=token_ids_BL, attention_mask=token_mask_BL
        ).last_hidden_state
        last_B = token_mask_BL.sum(dim=1) - 1
        rows_B = torch.arange(len(words_BLT), device=words_BLT.device)
        words_BP: torch.Tensor = self.text_projection(words_BLT[rows_B, last_B])
        return words_BP

    def decode(self, read: tuple[torch.Tensor, ...], words_BP: torch.Tensor) -> torch.Tensor:
        """Give logits (B, 2, H, W) of images and sentences, as `forward` does."""
        logit_BHW = self.decoder(list(read), words_BP).logits
        return torch.stack([torch.zeros_like(logit_BHW), logit_BHW], dim=1)

    def forward(
        self, images_B3HW: torch.Tensor, token_ids_BL: torch.Tensor, token_mask_BL: torch.Tensor
    ) -> torch.Tensor:
        """Score every pixel as background and foreground for its sentence.

        Args:
            images_B3HW: Images normalised by ImageNet's mean and deviation, shape (B, 3, H, W).
            token_ids_BL: Word pieces, shape (B, L), int64, in [0, vocab_size).
            token_mask_BL: 1 for a token, 0 for padding at the end, shape (B, L); a one in every
                row.

        Returns:
            Logits, shape (B, 2, H, W): the stride is 1.
        """
        words_BP = self.encode_words(token_ids_BL, token_mask_BL)
        return self.decode(self.encode_images(images_B3HW), words_BP)
