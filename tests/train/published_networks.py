"""The published networks said again in plain torch, slowly, by the published names of weights.

Written from the structure of LAVT (yz93/LAVT-RIS), Swin (Microsoft) and BERT, as functions of a
state dict, so that a test can compare them with ours after a checkpoint went through the map.
Shape letters: B batch, N tokens of a feature map, C channels, L words, T channels of a word,
K heads.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Sizes:
    """What no tensor says, and what all tensors follow from."""

    embed_dim: int = 16
    depths: tuple = (2, 1, 2, 1)
    heads: tuple = (1, 2, 2, 4)
    window: int = 4
    fusion_heads: tuple = (2, 1, 4, 2)
    text_dim: int = 32
    text_layers: int = 2
    text_heads: int = 4
    vocabulary: int = 40
    positions: int = 24

    @property
    def dims(self):
        return [self.embed_dim * 2**i for i in range(len(self.depths))]

    @property
    def options(self):
        """The same for `train.network.options`."""
        return {
            "image_size": 56, "embed_dim": self.embed_dim, "depths": list(self.depths),
            "num_heads": list(self.heads), "window_size": self.window,
            "fusion_heads": list(self.fusion_heads), "text_dim": self.text_dim,
            "text_layers": self.text_layers, "text_heads": self.text_heads,
            "text_positions": self.positions, "coordinates": False, "decoder_channels": None,
        }  # fmt: skip


def linear_names(name, rows, columns, *tail, bias=True):
    return {f"{name}.weight": (rows, columns, *tail)} | ({f"{name}.bias": (rows,)} if bias else {})


def norm_names(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def swin_names(sizes, *, classifier=False):
    """Names and shapes of a Swin by Microsoft; with a classifier, also its buffers."""
    w = sizes.window
    names = linear_names("patch_embed.proj", sizes.embed_dim, 3, 4, 4)
    names |= norm_names("patch_embed.norm", sizes.embed_dim)
    for i, dim in enumerate(sizes.dims):
        for j in range(sizes.depths[i]):
            block = f"layers.{i}.blocks.{j}"
            names |= norm_names(f"{block}.norm1", dim) | norm_names(f"{block}.norm2", dim)
            names[f"{block}.attn.relative_position_bias_table"] = (
                (2 * w - 1) ** 2, sizes.heads[i],
            )  # fmt: skip
            names[f"{block}.attn.relative_position_index"] = (w * w, w * w)
            names |= linear_names(f"{block}.attn.qkv", 3 * dim, dim)
            names |= linear_names(f"{block}.attn.proj", dim, dim)
            names |= linear_names(f"{block}.mlp.fc1", 4 * dim, dim)
            names |= linear_names(f"{block}.mlp.fc2", dim, 4 * dim)
            if classifier and j % 2:
                names[f"{block}.attn_mask"] = (9, w * w, w * w)
        if i + 1 < len(sizes.dims):
            merge = f"layers.{i}.downsample"
            names |= linear_names(f"{merge}.reduction", 2 * dim, 4 * dim, bias=False)
            names |= norm_names(f"{merge}.norm", 4 * dim)
    if classifier:
        names |= norm_names("norm", sizes.dims[-1]) | linear_names("head", 7, sizes.dims[-1])
    return names


def fusion_names(stage, dim, text_dim):
    """Names and shapes of PWAM, gate and norm of a stage, `backbone.` included."""
    fusion = f"backbone.layers.{stage}.fusion"
    names = linear_names(f"{fusion}.vis_project.0", dim, dim, 1)
    names |= linear_names(f"{fusion}.image_lang_att.f_key.0", dim, text_dim, 1)
    names |= linear_names(f"{fusion}.image_lang_att.f_query.0", dim, dim, 1)
    names |= linear_names(f"{fusion}.image_lang_att.f_value.0", dim, text_dim, 1)
    names |= linear_names(f"{fusion}.image_lang_att.W.0", dim, dim, 1)
    names |= linear_names(f"{fusion}.project_mm.0", dim, dim, 1)
    for place in (0, 2):
        gate = f"backbone.layers.{stage}.res_gate.{place}"
        names |= linear_names(gate, dim, dim, bias=False)
    return names | norm_names(f"backbone.norm{stage}", dim)


def decoder_names(dims):
    """Names and shapes of the decoder."""
    hidden = dims[-1] // 2
    names, below = {}, dims[-1]
    for level, dim in zip((4, 3, 2), reversed(dims[:-1]), strict=True):
        for half, width in ((1, below + dim), (2, hidden)):
            names[f"classifier.conv{half}_{level}.weight"] = (hidden, width, 3, 3)
            batch_norm = f"classifier.bn{half}_{level}"
            names |= norm_names(batch_norm, hidden)
            names[f"{batch_norm}.running_mean"] = names[f"{batch_norm}.running_var"] = (hidden,)
            names[f"{batch_norm}.num_batches_tracked"] = ()
        below = hidden
    return names | linear_names("classifier.conv1_1", 2, hidden, 1, 1)


def model_names(sizes):
    """Names and shapes of `model` in a LAVT checkpoint without BERT."""
    names = {f"backbone.{name}": shape for name, shape in swin_names(sizes).items()}
    for stage, dim in enumerate(sizes.dims):
        names |= fusion_names(stage, dim, sizes.text_dim)
    return names | decoder_names(sizes.dims)


def bert_names(sizes, *, layers=None):
    """Names and shapes of a bare BERT without its pooler."""
    t = sizes.text_dim
    names = {
        "embeddings.word_embeddings.weight": (sizes.vocabulary, t),
        "embeddings.position_embeddings.weight": (sizes.positions, t),
        "embeddings.token_type_embeddings.weight": (2, t),
    } | norm_names("embeddings.LayerNorm", t)
    for i in range(sizes.text_layers if layers is None else layers):
        layer = f"encoder.layer.{i}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value",
                     "attention.output.dense"):  # fmt: skip
            names |= linear_names(f"{layer}.{part}", t, t)
        names |= linear_names(f"{layer}.intermediate.dense", 4 * t, t)
        names |= linear_names(f"{layer}.output.dense", t, 4 * t)
        names |= norm_names(f"{layer}.attention.output.LayerNorm", t)
        names |= norm_names(f"{layer}.output.LayerNorm", t)
    return names


def random_state(names, seed=0):
    """Weights that keep numbers near one, so that a mistake anywhere shows at the end."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in names.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("relative_position_index"):
            state[name] = pair_index(round(shape[0] ** 0.5))
        elif name.endswith("running_var"):
            state[name] = values.abs() + 0.5
        elif name.endswith("weight") and len(shape) == 1:
            state[name] = 1 + 0.2 * values
        elif name.endswith("weight") and len(shape) > 1 and "embeddings" not in name:
            state[name] = values / values[0].numel() ** 0.5
        else:
            state[name] = 0.5 * values
    return state


def pair_index(window):
    """Row of the bias table for every pair of a window's tokens, one pair at a time."""
    tokens = [(y, x) for y in range(window) for x in range(window)]
    span = 2 * window - 1
    rows = [[(a - c + window - 1) * span + b - d + window - 1 for c, d in tokens]
            for a, b in tokens]  # fmt: skip
    return torch.tensor(rows)


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def conv1(state, name, x_BNC):
    """Apply a published 1x1 convolution over tokens."""
    return F.conv1d(x_BNC.transpose(1, 2), state[f"{name}.weight"], state[f"{name}.bias"])


def layer_norm(state, name, x, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def swin_attention(state, name, x_BHWC, heads, window, shift):
    """Attend within shifted windows: all tokens to all, what may not be seen being pushed down.

    Tokens are addressed by where they stand after the cyclic shift; two see each other within a
    window, and lose 100 where the shift made neighbours of what is far apart.
    """
    height, width, dim = x_BHWC.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = ((y - shift) % height).flatten(), ((x - shift) % width).flatten()
    cell = y // window * (width // window) + x // window

    def region(position, size):
        return (position >= size - window).long() + (position >= size - shift).long()

    zone = region(y, height) * 3 + region(x, width)
    span = 2 * window - 1
    row_NN = (y[:, None] % window - y[None] % window + window - 1) * span
    row_NN = row_NN + x[:, None] % window - x[None] % window + window - 1
    table = state[f"{name}.relative_position_bias_table"]
    bias_KNN = table[row_NN.clamp(0, len(table) - 1)].permute(2, 0, 1)
    if shift:
        bias_KNN = bias_KNN - 100.0 * (zone[:, None] != zone[None])
    bias_KNN = bias_KNN.masked_fill(cell[:, None] != cell[None], -torch.inf)
    qkv = linear(state, f"{name}.qkv", x_BHWC.flatten(1, 2))
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.split(dim, -1))
    scores = torch.einsum("bhnc,bhmc->bhnm", q, k) * (dim // heads) ** -0.5 + bias_KNN
    mixed = torch.einsum("bhnm,bhmc->bhnc", scores.softmax(-1), v)
    out = linear(state, f"{name}.proj", mixed.transpose(1, 2).flatten(2))
    return out.unflatten(1, (height, width))


def swin_block(state, name, x_BNC, size, heads, window, shift):
    """Run one block on a map of any size: zeros fill it up to whole windows after the norm."""
    height, width = size
    x_BHWC = layer_norm(state, f"{name}.norm1", x_BNC).unflatten(1, size)
    padded = F.pad(x_BHWC, (0, 0, 0, -width % window, 0, -height % window))
    seen = swin_attention(state, f"{name}.attn", padded, heads, window, shift)
    x_BNC = x_BNC + seen[:, :height, :width].flatten(1, 2)
    hidden = linear(state, f"{name}.mlp.fc1", layer_norm(state, f"{name}.norm2", x_BNC))
    return x_BNC + linear(state, f"{name}.mlp.fc2", F.gelu(hidden))


def swin_merge(state, name, x_BNC, size):
    """Halve a map: the four tokens of a square side by side, column by column."""
    height, width = size
    x = F.pad(x_BNC.unflatten(1, size), (0, 0, 0, width % 2, 0, height % 2))
    four = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
    merged = layer_norm(state, f"{name}.norm", torch.cat(four, -1).flatten(1, 2))
    return linear(state, f"{name}.reduction", merged)


def fusion_stage(state, stage, visual_BNC, words_BLT, mask_BL, heads):
    """PWAM, gate and norm of a stage: what goes on, and what the decoder gets."""
    name = f"backbone.layers.{stage}.fusion"
    dim = visual_BNC.shape[-1]
    look = f"{name}.image_lang_att"
    query = F.instance_norm(conv1(state, f"{look}.f_query.0", visual_BNC))
    kept_B1L = mask_BL[:, None].to(query.dtype)
    key = conv1(state, f"{look}.f_key.0", words_BLT) * kept_B1L
    value = conv1(state, f"{look}.f_value.0", words_BLT) * kept_B1L
    gathered = []
    for q, k, v in zip(*(x.chunk(heads, 1) for x in (query, key, value)), strict=True):
        scores = torch.einsum("bcn,bcl->bnl", q, k) * dim**-0.5 + (1e4 * kept_B1L - 1e4)
        gathered.append(torch.einsum("bnl,bcl->bnc", scores.softmax(-1), v))
    language = F.instance_norm(conv1(state, f"{look}.W.0", torch.cat(gathered, -1)))
    seen = F.gelu(conv1(state, f"{name}.vis_project.0", visual_BNC))
    joint = F.gelu(conv1(state, f"{name}.project_mm.0", (seen * language).transpose(1, 2)))
    joint_BNC = joint.transpose(1, 2)
    gate = f"backbone.layers.{stage}.res_gate"
    opened = linear(state, f"{gate}.2", linear(state, f"{gate}.0", joint_BNC).relu()).tanh()
    return visual_BNC + opened * joint_BNC, layer_norm(state, f"backbone.norm{stage}", joint_BNC)


def decoder(state, features, *, training=False):
    """Features (B, C, h, w), first to last, to logits; running statistics unless training."""
    x = features[-1]
    for level, feature in zip((4, 3, 2), reversed(features[:-1]), strict=True):
        if x.shape[-2:] != feature.shape[-2:]:
            x = F.interpolate(x, feature.shape[-2:], mode="bilinear", align_corners=True)
        x = torch.cat([x, feature], 1)
        for half in (1, 2):
            x = F.conv2d(x, state[f"classifier.conv{half}_{level}.weight"], padding=1)
            norm = f"classifier.bn{half}_{level}"
            mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
            if training:
                mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
            x = x * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None]
            x = x.relu()
    return F.conv2d(x, state["classifier.conv1_1.weight"], state["classifier.conv1_1.bias"])


def bert_words(state, ids_BL, mask_BL, sizes, prefix=""):
    """Give the words after the last layer, shape (B, L, T)."""
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    positions = state["embeddings.position_embeddings.weight"][: ids_BL.shape[1]]
    x = state["embeddings.word_embeddings.weight"][ids_BL] + positions
    x = x + state["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(state, "embeddings.LayerNorm", x, 1e-12)
    bias = (mask_BL[:, None, None].to(x.dtype) - 1) * 1e4
    for i in range(sizes.text_layers):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            linear(state, f"{layer}.attention.self.{part}", x)
            .unflatten(-1, (sizes.text_heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )  # fmt: skip
        scores = q @ k.transpose(2, 3) / (sizes.text_dim // sizes.text_heads) ** 0.5 + bias
        seen = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        seen = linear(state, f"{layer}.attention.output.dense", seen)
        x = layer_norm(state, f"{layer}.attention.output.LayerNorm", x + seen, 1e-12)
        hidden = F.gelu(linear(state, f"{layer}.intermediate.dense", x))
        seen = linear(state, f"{layer}.output.dense", hidden)
        x = layer_norm(state, f"{layer}.output.LayerNorm", x + seen, 1e-12)
    return x


def lavt_logits(model, words_BLT, images_B3HW, mask_BL, sizes):
    """Give the whole network's logits at the resolution of the first stage."""
    swin = {k.removeprefix("backbone."): v for k, v in model.items() if k.startswith("backbone.")}
    x = F.conv2d(images_B3HW, swin["patch_embed.proj.weight"], swin["patch_embed.proj.bias"], 4)
    size = tuple(x.shape[-2:])
    x = layer_norm(swin, "patch_embed.norm", x.flatten(2).transpose(1, 2))
    features = []
    for i, depth in enumerate(sizes.depths):
        for j in range(depth):
            shift = sizes.window // 2 if j % 2 else 0
            block = f"layers.{i}.blocks.{j}"
            x = swin_block(swin, block, x, size, sizes.heads[i], sizes.window, shift)
        x, given = fusion_stage(model, i, x, words_BLT, mask_BL, sizes.fusion_heads[i])
        features.append(given.transpose(1, 2).unflatten(-1, size))
        if i + 1 < len(sizes.depths):
            x = swin_merge(swin, f"layers.{i}.downsample", x, size)
            size = tuple((side + 1) // 2 for side in size)
    return decoder(model, features)
