"""Shell: published CLIPSeg weights to ours: `python -m train.clipseg_weights SOURCE OUT`.

The file that it writes is what `train.network.init` starts a round 0 from.
"""

from collections.abc import Mapping
from pathlib import Path

import click
import torch
from safetensors.torch import save as save_tensors

from pipeline.errors import SemiresError, StoreError
from pipeline.records import atomic_write
from train.clipseg import ClipSeg
from train.networks import clipseg_config
from train.published.reading import read_published

_RENAMED = (
    ("clip.text_model.", "text."),
    ("clip.vision_model.", "vision."),
    ("clip.text_projection.", "text_projection."),
    ("decoder.", "decoder."),
)
"""Published name to ours, by prefix."""
_UNREAD = (
    "clip.visual_projection.", "clip.logit_scale", "clip.vision_model.post_layernorm.",
    "clip.text_model.embeddings.position_ids", "clip.vision_model.embeddings.position_ids",
)  # fmt: skip
"""Published tensors that reach no mask, by prefix."""


def published_weights(
    published: Mapping[str, torch.Tensor], network: ClipSeg
) -> dict[str, torch.Tensor]:
    """Rename the tensors of `CLIPSegForImageSegmentation`, every one accounted for.

    Args:
        published: Its state dict, such as the safetensors of `CIDAS/clipseg-rd64-refined`.
        network: What the weights are for; it is not changed.

    Returns:
        A state dict that `network.load_state_dict` takes strictly.

    Raises:
        StoreError: If a tensor is unknown, missing or of another shape; names the first.
    """
    own = network.state_dict()
    last = network.config.extract_layers[-1]
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in published.items():
        if name.startswith(_UNREAD) or _layer_of(name) > last:
            continue
        ours = next((new + name[len(old) :] for old, new in _RENAMED if name.startswith(old)), "")
        if ours not in own:
            raise StoreError(f"clipseg: published tensor {name!r} has no place in this network")
        if tensor.shape != own[ours].shape:
            raise StoreError(
                f"clipseg: published tensor {name!r} has shape {tuple(tensor.shape)}, expected "
                f"{tuple(own[ours].shape)}; size, options and tokenizer must be the published ones"
            )
        weights[ours] = tensor
    missing = [name for name in own if name not in weights]
    if missing:
        raise StoreError(f"clipseg: {len(missing)} tensors are missing, first {missing[0]!r}")
    return weights


def _layer_of(name: str) -> int:
    """Give the image transformer's layer that a published tensor belongs to, or -1."""
    prefix = "clip.vision_model.encoder.layers."
    return int(name[len(prefix) :].split(".")[0]) if name.startswith(prefix) else -1


def import_clipseg(source: str, out: Path, size: str = "base") -> int:
    """Write published weights by our names as safetensors.

    Args:
        source: A file, a folder that transformers saved, or a name on the hub such as
            `CIDAS/clipseg-rd64-refined`. Nothing in it is executed.
        out: The file to write; its folder is made.
        size: Of `CLIPSEG_SIZES`.

    Returns:
        Tensors written.

    Raises:
        SemiresError: If the source cannot be read or a tensor does not fit, or `out` is there.
    """
    if out.exists():
        raise StoreError(f"{out}: is there already; delete it or choose another place")
    published = read_published(source, from_hub=True)
    with torch.device("meta"):
        network = ClipSeg(clipseg_config(size))
    weights = published_weights(published.content, network)
    atomic_write(out, save_tensors({name: t.contiguous() for name, t in weights.items()}))
    return len(weights)


@click.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--size", default="base", show_default=True, help="Size of our CLIPSeg.")
def main(source: str, out: Path, size: str) -> None:
    """Turn published CLIPSeg weights into ours."""
    try:
        click.echo(f"wrote {out}: {import_clipseg(source, out, size)} tensors")
    except SemiresError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
