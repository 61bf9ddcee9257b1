"""Attention between the few tokens of many prompts and the pixels of the image that they share.

Two ways from the same weights. `IN_ORDER` sums as `segment_anything.modeling.Attention` does, in
another layout: no copy of what the prompts share, no copy to part the heads, and a softmax over few
tokens that runs along the pixels. `REASSOCIATED` moves the projections of the image side to the
tokens, since the product of three matrices is associative; its numbers are equal up to rounding,
and it does half the multiplications or less.

Shape legend: K prompts, T tokens of a prompt, S pixels of the embedding, C channels, H heads,
D channels of a head. `keys_KSC` may be (1, S, C), when all prompts share it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Ask = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Tell = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Attention(NamedTuple):
    """How tokens attend to pixels and pixels to tokens."""

    ask: Ask
    """(attention module, query_KTC, keys_KSC, pe_SC) -> answer (K, T, C)."""
    tell: Tell
    """(attention module, keys_KSC, pe_SC, key_KTC, value_KTC) -> keys plus what they are told,
    (K, S, C)."""


def _channels_of_heads(attention: Any, width: int) -> list[slice]:
    """Give each head's channels."""
    size = width // attention.num_heads
    return [slice(head * size, (head + 1) * size) for head in range(attention.num_heads)]


def _ask_in_order(
    attention: Any, query_KTC: torch.Tensor, keys_KSC: torch.Tensor, pe_SC: torch.Tensor
) -> torch.Tensor:
    """Project pixels, attend head by head; overwrites nothing that is handed in."""
    query = attention.q_proj(query_KTC)
    key, value = attention.k_proj(keys_KSC + pe_SC), attention.v_proj(keys_KSC)
    count = len(query)
    answer = torch.empty_like(query)
    heads = _channels_of_heads(attention, query.shape[-1])
    for head in heads:
        shared_key, shared_value = (side[..., head].expand(count, -1, -1) for side in (key, value))
        logits = torch.matmul(query[..., head], shared_key.transpose(1, 2))
        share = logits.div_(math.sqrt(head.stop - head.start)).softmax(-1)
        answer[..., head] = torch.bmm(share, shared_value)
    projected: torch.Tensor = attention.out_proj(answer)
    return projected


def _tell_in_order(
    attention: Any,
    keys_KSC: torch.Tensor,
    pe_SC: torch.Tensor,
    key_KTC: torch.Tensor,
    value_KTC: torch.Tensor,
) -> torch.Tensor:
    """Project pixels, attend head by head with the pixels as the last axis."""
    query = attention.q_proj(keys_KSC + pe_SC)
    key, value = attention.k_proj(key_KTC), attention.v_proj(value_KTC)
    count = len(key)
    told = query.new_empty(count, *query.shape[1:])
    for head in _channels_of_heads(attention, query.shape[-1]):
        asking = query[..., head].transpose(1, 2).expand(count, -1, -1)
        logits = torch.bmm(key[..., head], asking)  # (K, T, S)
        share = logits.div_(math.sqrt(head.stop - head.start)).softmax(1)
        told[..., head] = torch.bmm(share.transpose(1, 2), value[..., head])
    projected: torch.Tensor = attention.out_proj(told)
    return projected + keys_KSC


def _heads(attention: Any, weight: torch.Tensor) -> torch.Tensor:
    """View a projection's weight (H * D, C) as (H, D, C)."""
    return weight.view(attention.num_heads, -1, weight.shape[1])


def _ask_reassociated(
    attention: Any, query_KTC: torch.Tensor, keys_KSC: torch.Tensor, pe_SC: torch.Tensor
) -> torch.Tensor:
    """Project tokens to the pixels' channels, and what they see to the answer's."""
    weight = _heads(attention, attention.k_proj.weight)
    query = attention.q_proj(query_KTC).unflatten(-1, weight.shape[:2])  # (K, T, H, D)
    asked = torch.einsum("kthd,hdc->khtc", query, weight).flatten(1, 2) * weight.shape[1] ** -0.5
    if len(keys_KSC) == 1:
        logits = asked @ (keys_KSC[0] + pe_SC).T
        seen = logits.softmax(-1) @ keys_KSC[0]
    else:
        logits = torch.baddbmm(asked @ pe_SC.T, asked, keys_KSC.transpose(1, 2))  # (K, H * T, S)
        seen = torch.bmm(logits.softmax(-1), keys_KSC)  # (K, H * T, C)
    value = _heads(attention, attention.v_proj.weight)
    seen = seen.unflatten(1, (weight.shape[0], -1))
    heads = torch.einsum("khtc,hdc->kthd", seen, value).flatten(2) + attention.v_proj.bias
    answer: torch.Tensor = attention.out_proj(heads)
    return answer


def _tell_reassociated(
    attention: Any,
    keys_KSC: torch.Tensor,
    pe_SC: torch.Tensor,
    key_KTC: torch.Tensor,
    value_KTC: torch.Tensor,
) -> torch.Tensor:
    """Project tokens to the pixels' channels on both sides of the softmax."""
    weight = _heads(attention, attention.q_proj.weight)
    scale = weight.shape[1] ** -0.5
    key = attention.k_proj(key_KTC).unflatten(-1, weight.shape[:2])  # (K, T, H, D)
    asked = torch.einsum("kthd,hdc->khtc", key, weight).flatten(1, 2) * scale
    bias = (key * attention.q_proj.bias.view(weight.shape[:2])).sum(-1).transpose(1, 2) * scale
    if len(keys_KSC) == 1:
        logits = asked @ (keys_KSC[0] + pe_SC).T
    else:
        logits = torch.baddbmm(asked @ pe_SC.T, asked, keys_KSC.transpose(1, 2))  # (K, H * T, S)
    logits = logits.unflatten(1, (weight.shape[0], -1)) + bias[..., None]
    share = logits.softmax(2).flatten(1, 2)
    out = attention.out_proj.weight.unflatten(1, weight.shape[:2])  # (C, H, D)
    value = attention.v_proj(value_KTC).unflatten(-1, weight.shape[:2])
    told = torch.einsum("kthd,chd->khtc", value, out).flatten(1, 2)
    base = (keys_KSC + attention.out_proj.bias).expand(len(told), -1, -1)
    return torch.baddbmm(base, share.transpose(1, 2), told)


IN_ORDER = Attention(_ask_in_order, _tell_in_order)
REASSOCIATED = Attention(_ask_reassociated, _tell_reassociated)
