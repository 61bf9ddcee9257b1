"""Pixel-word attention and the language gate: one fusion stage of LAVT.

Shape letters: B batch, N pixels (tokens) of a feature map, C channels of a stage, L word tokens,
T channels of a word.
"""

import torch
from torch import nn
from torch.nn import functional as F


def instance_norm(x_BNC: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Normalise every channel of every image over its pixels, without learned scale.

    Equals `nn.InstanceNorm1d` on (B, C, N); written for tokens, which saves two transposes.

    Args:
        x_BNC: Tokens, shape (B, N, C), floating.
        eps: Added to the variance.

    Returns:
        Shape and dtype of the input, zero mean and unit (biased) variance along N; bfloat16 is
        normalised in float32.
    """
    wide_BNC = x_BNC.float() if x_BNC.dtype == torch.bfloat16 else x_BNC
    variance_B1C, mean_B1C = torch.var_mean(wide_BNC, dim=1, keepdim=True, correction=0)
    return ((wide_BNC - mean_B1C) * torch.rsqrt(variance_B1C + eps)).to(x_BNC.dtype)


class PixelWordAttention(nn.Module):
    """Gather for every pixel the words that concern it, and multiply them into its feature.

    PWAM, LAVT (Yang et al., CVPR 2022, arXiv:2112.02244), equations 1 to 6. With V the visual
    tokens and W the words: queries instance_norm(V Wq), keys W Wk, values W Wv, G = attention,
    output = GELU(Wm (GELU(Wi V) * instance_norm(G Ww))). The paper's 1x1 convolutions are linear
    layers here, of the same weights. As in the released code, scores are divided by the root of
    all key channels, whatever the number of heads, and the two projections end in GELU.
    """

    def __init__(self, dim: int, text_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.visual = nn.Linear(dim, dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(text_dim, dim)
        self.value = nn.Linear(text_dim, dim)
        self.output = nn.Linear(dim, dim)
        self.joint = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def initialize_as_published(self) -> None:
        """Draw weights and biases uniformly within 1 / sqrt(fan in), as of torch's convolutions.

        The random numbers come from torch's generator.
        """
        for layer in (self.visual, self.query, self.key, self.value, self.output, self.joint):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.uniform_(layer.bias, -bound, bound)

    def _split(self, x_BNC: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = x_BNC.unflatten(-1, (self.num_heads, -1))
        return heads.transpose(1, 2)

    def forward(
        self, visual_BNC: torch.Tensor, words_BLT: torch.Tensor, mask_BL: torch.Tensor
    ) -> torch.Tensor:
        """Give the words' contribution F at every pixel.

        Args:
            visual_BNC: Output of a Swin stage, shape (B, N, C).
            words_BLT: Contextual words, shape (B, L, T).
            mask_BL: True where a token is a word, shape (B, L), bool; at least one per row.

        Returns:
            Shape (B, N, C).
        """
        attended = F.scaled_dot_product_attention(
            self._split(instance_norm(self.query(visual_BNC))),
            self._split(self.key(words_BLT)),
            self._split(self.value(words_BLT)),
            attn_mask=mask_BL[:, None, None, :],
            scale=visual_BNC.shape[-1] ** -0.5,
        )  # (B, heads, N, C / heads)
        language_BNC = instance_norm(self.output(attended.transpose(1, 2).flatten(2)))
        visual_BNC = self.dropout(F.gelu(self.visual(visual_BNC)))
        joint_BNC: torch.Tensor = self.dropout(F.gelu(self.joint(visual_BNC * language_BNC)))
        return joint_BNC


class FusionStage(nn.Module):
    """Pixel-word attention and the language gate that lets it into the visual stream.

    LAVT, equations 7 and 8: S = gate(F), E = V + S * F, gate = Tanh(Linear(ReLU(Linear(.)))).
    The released code first sets both gate layers to zero, where neither ever gets a gradient,
    and then overwrites them with the general initialisation; only the latter is done here.
    Behind the last stage the gated sum goes nowhere: `gated=False` leaves that gate out, whose
    weights the released checkpoints hold untrained.
    """

    def __init__(
        self, dim: int, text_dim: int, num_heads: int, dropout: float, *, gated: bool = True
    ) -> None:
        super().__init__()
        self.attention = PixelWordAttention(dim, text_dim, num_heads, dropout)
        self.gate: nn.Module | None = None
        if gated:
            self.gate = nn.Sequential(
                nn.Linear(dim, dim, bias=False),
                nn.ReLU(),
                nn.Linear(dim, dim, bias=False),
                nn.Tanh(),
            )
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, visual_BNC: torch.Tensor, words_BLT: torch.Tensor, mask_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fuse words into a stage's output.

        Args:
            visual_BNC: Output of a Swin stage, shape (B, N, C).
            words_BLT: Contextual words, shape (B, L, T).
            mask_BL: True where a token is a word, shape (B, L), bool.

        Returns:
            The gated sum (or V itself without a gate), input of the next stage, and F after a layer
            norm, input of the decoder; both of shape (B, N, C).
        """
        fused_BNC = self.attention(visual_BNC, words_BLT, mask_BL)
        if self.gate is not None:
            visual_BNC = visual_BNC + self.gate(fused_BNC) * fused_BNC
        return visual_BNC, self.norm(fused_BNC)
