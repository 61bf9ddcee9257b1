"""Core: find the place of every tensor of a published file, and say what does not fit.

Nothing is copied here: a survey holds views of the file's tensors, so that it also works on
tensors of the `meta` device, where only names and shapes are known.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from train.published.findings import Placed, Survey
from train.published.layouts import BESIDE, Layout, Section
from train.published.names import Ignored, Rule, fill, match
from train.published.position_tables import index_differs, is_table, resize_table, window_of
from train.published.sections import find_section


def survey(
    content: Mapping[str, Any],
    layout: Layout,
    own: Mapping[str, torch.Tensor],
    *,
    resize_tables: bool = False,
) -> Survey:
    """Place every tensor of a file.

    Args:
        content: The file as a dictionary.
        layout: An entry of `LAYOUTS`.
        own: The network's state dict; only names, shapes and dtypes are looked at.
        resize_tables: Interpolate position tables of another window instead of refusing them.

    Returns:
        Every tensor placed, ignored or in a problem; problems are complete, not just the first.
    """
    result = Survey()
    for section in layout.sections:
        where, tensors = find_section(content, section)
        if tensors is None:
            result.find("section", f"{' or '.join(section.keys) or 'tensors'} is not there")
            continue
        _place_all(result, section, where, tensors, own)
    _look_beside(result, content, layout)
    _note_spoilt(result)
    result.placed = [_fit(result, place, own, resize_tables) for place in result.placed]
    sources: dict[str, str] = {}
    for place in result.placed:
        if place.target in sources:
            also = sources[place.target]
            result.find("twice", f"{place.source}: {place.target} is taken by {also}")
        sources[place.target] = place.source
    for name in own:
        if name.split(".")[0] in layout.fills and name not in sources:
            result.find("missing", name)
    return result


def _place_all(
    result: Survey,
    section: Section,
    where: str,
    tensors: Mapping[str, Any],
    own: Mapping[str, torch.Tensor],
) -> None:
    for full, value in tensors.items():
        name, source = full.removeprefix(section.optional_prefix), where + full
        always = _ignored(section, name, only_without_place=False)
        if not isinstance(value, torch.Tensor):
            result.find("value", f"{source} is {type(value).__name__}")
        elif value.layout != torch.strided or value.is_quantized or value.is_complex():
            result.find("value", f"{source} is {value.dtype}, {value.layout}")
        elif always is not None:
            _look_at_index(result, name, value)
            result.ignored.append((source, always))
        else:
            _place(result, section, name, source, value, own)


def _place(
    result: Survey,
    section: Section,
    name: str,
    source: str,
    value: torch.Tensor,
    own: Mapping[str, torch.Tensor],
) -> None:
    found = _rule(section, name)
    if found is None:
        result.find("unknown", source)
        return
    rule, targets = found
    if any(target in own for target in targets):
        pieces = zip(targets, change(value, rule.change), strict=False)  # too few: missing
        result.placed += [Placed(source, target, rule, piece) for target, piece in pieces]
        return
    surplus = _ignored(section, name, only_without_place=True)
    if surplus is None:
        result.find("place", f"{source}: the network has no {targets[0]}")
    else:
        result.ignored.append((source, surplus))


def _rule(section: Section, name: str) -> tuple[Rule, tuple[str, ...]] | None:
    for rule in section.rules:
        values = match(rule.source, name)
        if values is not None:
            return rule, tuple(fill(target, values) for target in rule.targets)
    return None


def _ignored(section: Section, name: str, *, only_without_place: bool) -> Ignored | None:
    for entry in section.ignored:
        if entry.only_without_place == only_without_place and match(entry.source, name) is not None:
            return entry
    return None


def change(tensor: torch.Tensor, how: str) -> tuple[torch.Tensor, ...]:
    """Cut or reshape a tensor, without copying.

    Args:
        tensor: Any shape.
        how: A key of `CHANGES`.

    Returns:
        One tensor, or three of a third of the rows; a tensor that cannot be changed so comes back
        as it is, and its shape will not fit.
    """
    if how == "split" and tensor.ndim and tensor.shape[0] % 3 == 0:
        return tuple(tensor.chunk(3))
    if how == "matrix" and tensor.ndim == 3 and tensor.shape[-1] == 1:
        return (tensor[..., 0],)
    return (tensor,)


def _look_beside(result: Survey, content: Mapping[str, Any], layout: Layout) -> None:
    """Account for what lies beside the sections."""
    keys = {key for section in layout.sections for key in section.keys}
    if not any(isinstance(content.get(key), Mapping) for key in keys):
        return  # the file is the dictionary, or the lack of one is told already
    for key, value in content.items():
        if key in BESIDE:
            result.ignored.append((str(key), Ignored(str(key), BESIDE[key])))
        elif key not in keys and isinstance(value, torch.Tensor | Mapping):
            result.find("section", f"{key!r} is not known")


def _fit(result: Survey, place: Placed, own: Mapping[str, torch.Tensor], resize: bool) -> Placed:
    """Compare shape and kind of number with the network's; resize a table if asked to."""
    mine = own.get(place.target)
    if mine is None:
        result.find("place", f"{place.source}: the network has no {place.target}")
        return place
    tensor = place.tensor
    if tensor.is_floating_point() != mine.is_floating_point():
        result.find("value", f"{place.source} is {tensor.dtype}, {place.target} is {mine.dtype}")
    elif tensor.shape != mine.shape:
        sides = (window_of(tensor), window_of(mine)) if is_table(place.target) else (None, None)
        if None in sides or tensor.shape[1] != mine.shape[1]:
            result.find(
                "shape",
                f"{place.source} is {tuple(tensor.shape)}, {place.target} is {tuple(mine.shape)}",
            )
        elif resize:
            return replace(place, tensor=resize_table(tensor, mine.shape[0]))
        else:
            result.find("window", f"{place.source} is of window {sides[0]}, expected {sides[1]}")
    return place


def _look_at_index(result: Survey, name: str, index: torch.Tensor) -> None:
    if name.endswith("relative_position_index") and not index.is_meta:
        wrong = index_differs(index)
        if wrong:
            result.spoilt.append((name, wrong, index.numel()))


def _note_spoilt(result: Survey) -> None:
    if not result.spoilt:
        return
    name, wrong, entries = result.spoilt[0]
    result.notes.append(
        f"{len(result.spoilt)} position indices of the file are not those of their window (first "
        f"{name}: {wrong} of {entries} entries), as after an average over integer buffers; ours "
        f"are exact, so predictions differ a little from those published with it"
    )


def find_bad_numbers(result: Survey, own: Mapping[str, torch.Tensor]) -> None:
    """Take down every tensor with an infinity or a NaN, once in the network's dtype."""
    for place in result.placed:
        tensor = place.tensor
        if not tensor.is_floating_point() or place.target not in own:
            continue
        bad = int((~torch.isfinite(tensor.to(own[place.target].dtype))).sum())
        if bad:
            result.find("number", f"{place.source} has {bad} of {tensor.numel()}")


def state_of(result: Survey, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy the placed tensors in the network's dtypes, by the network's names."""
    return {
        place.target: place.tensor.detach().to(own[place.target].dtype).clone().contiguous()
        for place in result.placed
    }
