"""Names of a Swin as Microsoft publishes it (patch_embed, layers.0.blocks.0.attn.qkv, ...).

Ours are those of transformers' Swin from 5.9 on, which has query, key and value apart.
"""

from train.published.names import Ignored, Rule

_BLOCK = "layers.{stage}.blocks.{block}."
_OUR_BLOCK = "vision.encoder.layers.{stage}.blocks.{block}."
_MERGE = "layers.{stage}.downsample."

SWIN_RULES = (
    Rule("patch_embed.proj.{kind}", ("vision.embeddings.patch_embeddings.projection.{kind}",)),
    Rule("patch_embed.norm.{kind}", ("vision.embeddings.norm.{kind}",)),
    Rule(_BLOCK + "norm1.{kind}", (_OUR_BLOCK + "layernorm_before.{kind}",)),
    Rule(
        _BLOCK + "attn.qkv.{kind}",
        tuple(_OUR_BLOCK + f"attention.{name}_proj.{{kind}}" for name in "qkv"),
        "split",
    ),
    Rule(_BLOCK + "attn.proj.{kind}", (_OUR_BLOCK + "attention.o_proj.{kind}",)),
    Rule(
        _BLOCK + "attn.relative_position_bias_table",
        (_OUR_BLOCK + "attention.relative_position_bias.relative_position_bias_table",),
    ),
    Rule(_BLOCK + "norm2.{kind}", (_OUR_BLOCK + "layernorm_after.{kind}",)),
    Rule(_BLOCK + "mlp.fc1.{kind}", (_OUR_BLOCK + "mlp.fc1.{kind}",)),
    Rule(_BLOCK + "mlp.fc2.{kind}", (_OUR_BLOCK + "mlp.fc2.{kind}",)),
    Rule(_MERGE + "reduction.weight", ("vision.encoder." + _MERGE + "reduction.weight",)),
    Rule(_MERGE + "norm.{kind}", ("vision.encoder." + _MERGE + "norm.{kind}",)),
)
"""Every learned tensor that LAVT uses of a Swin."""

POSITION_INDEX = _BLOCK + "attn.relative_position_index"
"""Buffer: which row of the table each pair of a window's tokens reads."""
INDEX_REASON = "follows from the window's size; computed anew"

SWIN_IGNORED = (
    Ignored(POSITION_INDEX, INDEX_REASON),
    Ignored(_BLOCK + "attn_mask", "follows from the sizes of image and window; computed anew"),
    Ignored("norm.{kind}", "norm before the classifier; LAVT norms what each fusion gives instead"),
    Ignored("head.{kind}", "the image classifier"),
)
"""The rest of a published file."""
