"""Core: what a published file says of the network it belongs to, compared with a configuration.

Some of it leaves no trace in any shape: with other numbers of heads the same tensors would fit and
compute something else.
"""

from collections.abc import Mapping
from typing import Any

import torch

from train.lavt import LAVT_SIZES, LavtConfig
from train.published.names import match
from train.published.position_tables import window_of

_BERT_FIXED = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "is_decoder": False,
}


def swin_sizes(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Read a Swin's sizes off the shapes of its tensors.

    Args:
        tensors: By Microsoft's names, with or without `backbone.` before them.

    Returns:
        Values by field of `LavtConfig`, window included; empty if this is no Swin.
    """
    depths: dict[int, int] = {}
    heads: dict[int, int] = {}
    sizes: dict[str, Any] = {}
    for full, tensor in tensors.items():
        name = full.removeprefix("backbone.")
        if name == "patch_embed.proj.weight" and tensor.ndim == 4:
            sizes |= {"embed_dim": tensor.shape[0], "patch_size": tensor.shape[-1]}
        found = match("layers.{stage}.blocks.{block}.attn.relative_position_bias_table", name)
        if found is None or window_of(tensor) is None:
            continue
        stage = int(found["stage"])
        depths[stage] = max(depths.get(stage, 0), int(found["block"]) + 1)
        heads[stage] = tensor.shape[1]
        sizes["window_size"] = window_of(tensor)
    if "embed_dim" not in sizes or sorted(depths) != list(range(len(depths))) or not depths:
        return {}
    order = range(len(depths))
    return sizes | {
        "depths": tuple(depths[stage] for stage in order),
        "num_heads": tuple(heads[stage] for stage in order),
    }


def swin_differences(sizes: Mapping[str, Any], config: LavtConfig) -> str | None:
    """Say in which sizes a published Swin is not the configured one, and which size it is.

    The window is left out: the tables of another can be interpolated.
    """
    wrong = [
        f"{name} {value}, train.network's is {getattr(config, name)}"
        for name, value in sizes.items()
        if name != "window_size" and value != getattr(config, name)
    ]
    if not wrong:
        return None
    same = [
        name
        for name, known in LAVT_SIZES.items()
        if all(getattr(known, key) == value for key, value in sizes.items() if key != "window_size")
    ]
    advice = f"; set train.network.size to {same[0]}" if same else ""
    return f"the file's network has {', '.join(wrong)}{advice}"


def option_differences(options: Mapping[str, Any], config: LavtConfig) -> str | None:
    """Compare the options that LAVT saves beside its weights (`args`) with a configuration."""
    mha = options.get("mha")
    if mha is None:
        return None
    try:
        heads = tuple(int(part) for part in str(mha).split("-")) if mha else (1,) * 4
    except ValueError:
        return f"the file's args.mha is {mha!r}, expected numbers such as 4-4-4-4"
    if heads == config.fusion_heads:
        return None
    return (
        f"the file was trained with {heads} heads in the pixel-word attention (--mha), "
        f"train.network's fusion_heads are {config.fusion_heads}; set "
        f"train.network.options.fusion_heads to {list(heads)}"
    )


def bert_differences(description: Mapping[str, Any], config: LavtConfig) -> str | None:
    """Compare a folder's config.json with what the text encoder computes."""
    expected = {"num_attention_heads": config.text_heads, **_BERT_FIXED}
    wrong = [
        f"{name} {description[name]!r}, expected {value!r}"
        for name, value in expected.items()
        if name in description and description[name] != value
    ]
    return f"its config.json says {', '.join(wrong)}" if wrong else None


def heads_unknown(options: Mapping[str, Any] | None, config: LavtConfig) -> str | None:
    """Warn that nothing in a file says how many heads its attention has."""
    if options is not None and options.get("mha") is not None:
        return None
    return (
        f"the file does not say how many heads its pixel-word attention has; "
        f"train.network's fusion_heads {config.fusion_heads} are taken"
    )


def as_tensors(entries: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Keep what is a tensor."""
    return {name: value for name, value in entries.items() if isinstance(value, torch.Tensor)}
