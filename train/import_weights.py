"""Shell: published checkpoints to safetensors by our names, which a network can start from."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipeline.columns import file_sha256
from pipeline.errors import ConfigError, StoreError
from pipeline.records import sync_folder
from train.config import NetworkConfig
from train.lavt import Lavt, LavtConfig
from train.networks import lavt_config
from train.published.findings import Survey, refusal
from train.published.layouts import LAYOUTS, Layout
from train.published.mapping import find_bad_numbers, state_of, survey
from train.published.reading import Published, read_published
from train.published.sections import find_section, recognise
from train.published.sizes import (
    as_tensors,
    bert_differences,
    heads_unknown,
    option_differences,
    swin_differences,
    swin_sizes,
)
from train.text import load_text_encoder

FORMAT = 1
"""Version of the metadata in the file that is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """A published file, read and compared with a network."""

    published: Published
    layout: str
    """A key of `LAYOUTS`."""
    survey: Survey
    own: Mapping[str, torch.Tensor]
    """The network's names, shapes and dtypes."""
    refused: str | None
    """What is wrong, in one line; None if it can be imported."""

    @property
    def untouched(self) -> list[str]:
        """Parts of the network that such a file does not hold."""
        parts = dict.fromkeys(name.split(".")[0] for name in self.own)
        return [part for part in parts if part not in LAYOUTS[self.layout].fills]


def survey_published(
    network: NetworkConfig,
    source: str,
    layout: str | None = None,
    *,
    resize_tables: bool = False,
) -> Surveyed:
    """Read a published file and find every tensor's place in a network, writing nothing.

    Args:
        network: The network that shall start from it.
        source: A file or folder; for BERT also a name on the hub.
        layout: A key of `LAYOUTS`; None tells it by the names in the file.
        resize_tables: Interpolate position tables of another window.

    Returns:
        What is mapped, left out and wrong.

    Raises:
        ConfigError: If there is no such file, its kind cannot be told, the network is none that can
            be filled, or a text encoder would be filled without a vocabulary being configured.
        StoreError: If the file is damaged or would run code.
    """
    published = read_published(source, from_hub=layout == "bert")
    guess = recognise(published.content)
    name = layout or guess
    if name is None:
        raise ConfigError(
            f"{published.path}: of no known layout ({_first_names(published.content)}); "
            f"known are {', '.join(LAYOUTS)}"
        )
    config = _config_of(network, LAYOUTS[name])
    with torch.device("meta"):
        own = Lavt(config).state_dict()
    result = survey(published.content, LAYOUTS[name], own, resize_tables=resize_tables)
    refused = _other_network(published, name, guess, config)
    if refused is None and not result.problems:
        find_bad_numbers(result, own)
    if name.startswith("lavt"):
        note = heads_unknown(published.options, config)
        result.notes += [note] if note else []
    return Surveyed(
        published=published,
        layout=name,
        survey=result,
        own=own,
        refused=refused or _with_advice(result),
    )


def write_imported(surveyed: Surveyed, out: Path, *, replace: bool = False) -> str:
    """Write the placed tensors as safetensors, complete or not at all.

    Args:
        surveyed: Without a problem.
        out: The file; its folder is made.
        replace: Whether a file that is there may be replaced.

    Returns:
        sha256 of the file; the same input gives the same bytes.

    Raises:
        StoreError: If something is wrong with the published file, or `out` is there.
    """
    path = surveyed.published.path
    if surveyed.refused is not None:
        raise StoreError(f"{path}: {surveyed.refused}")
    refuse_existing(out, replace=replace)
    about = {
        "format": FORMAT,
        "layout": surveyed.layout,
        "source": path.name,
        "source_sha256": file_sha256(path),
        "notes": surveyed.survey.notes,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    # One key only: safetensors writes several in an order that changes from run to run.
    metadata = {"semires": json.dumps(about, sort_keys=True)}
    save_file(state_of(surveyed.survey, surveyed.own), partial, metadata)
    mask = os.umask(0)
    os.umask(mask)
    partial.chmod(0o666 & ~mask)  # safetensors leaves it to its owner alone
    with partial.open("rb+") as handle:
        os.fsync(handle.fileno())
    partial.replace(out)
    sync_folder(out.parent)
    return file_sha256(out)


def refuse_existing(out: Path, *, replace: bool) -> None:
    """Refuse to write over a file.

    Raises:
        StoreError: If it is there and may not be replaced.
    """
    if out.exists() and not replace:
        raise StoreError(f"{out}: is there already; choose another --out, or add --force")


def _config_of(network: NetworkConfig, layout: Layout) -> LavtConfig:
    if network.name != "lavt":
        raise ConfigError(
            f"train.network.name: these weights are for 'lavt', found {network.name!r}"
        )
    options: dict[str, Any] = dict(network.options)
    if "text" in layout.fills:
        if network.tokenizer is None:
            raise ConfigError(
                "train.network.tokenizer: a published text encoder knows the pieces of its own "
                "vocabulary only; set it to that model's vocab.txt, folder or name on the hub"
            )
        encoder = load_text_encoder(network.tokenizer, network.max_tokens)
        options["vocab_size"] = encoder.vocab_size
    return lavt_config(network.size, options)


def _other_network(
    published: Published, name: str, guess: str | None, config: LavtConfig
) -> str | None:
    """Say it if the file is of another kind or size as a whole, rather than tensor by tensor."""
    if guess is not None and guess != name:
        return f"expected {LAYOUTS[name].title}, found {LAYOUTS[guess].title}; use --from {guess}"
    if guess is None:
        return (
            f"expected {LAYOUTS[name].title}, found other names ({_first_names(published.content)})"
        )
    if published.description is not None and "text" in LAYOUTS[name].fills:
        found = bert_differences(published.description, config)
        if found is not None:
            return found
    _, tensors = find_section(published.content, LAYOUTS[name].sections[0])
    found = swin_differences(swin_sizes(as_tensors(tensors or {})), config)
    return found or option_differences(published.options or {}, config)


def _with_advice(result: Survey) -> str | None:
    found = refusal(result)
    if found is not None and any(problem.kind == "window" for problem in result.problems):
        found += "; add --resize-position-tables, or set train.network.options.window_size"
    return found


def _first_names(content: Mapping[str, Any]) -> str:
    """Give the first names of a file that nobody knows, one level into its dictionaries."""
    names = []
    for key, value in content.items():
        names += [f"{key}.{inner}" for inner in value] if isinstance(value, Mapping) else [str(key)]
    return f"its names: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
