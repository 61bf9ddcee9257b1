"""Names of BERT as on the hub and inside LAVT's checkpoints; ours are the same below `text.`."""

from train.published.names import Ignored, Rule

_LAYER = "encoder.layer.{layer}."
_NORMS = (
    "embeddings.LayerNorm",
    _LAYER + "attention.output.LayerNorm",
    _LAYER + "output.LayerNorm",
)
_LINEARS = (
    *(_LAYER + f"attention.self.{name}" for name in ("query", "key", "value")),
    _LAYER + "attention.output.dense",
    _LAYER + "intermediate.dense",
    _LAYER + "output.dense",
)
_TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")

BERT_RULES = (
    *(Rule(f"embeddings.{t}.weight", (f"text.embeddings.{t}.weight",)) for t in _TABLES),
    *(Rule(f"{name}.{{kind}}", (f"text.{name}.{{kind}}",)) for name in (*_LINEARS, *_NORMS)),
)
"""Every learned tensor up to the last layer's words."""

OLD_NORM_RULES = tuple(
    Rule(f"{norm}.{old}", (f"text.{norm}.{new}",))
    for norm in _NORMS
    for old, new in (("gamma", "weight"), ("beta", "bias"))
)
"""A norm's scale and shift under the names that bert-base-uncased has carried since 2018."""

BERT_IGNORED = (
    Ignored("pooler.dense.{kind}", "sums a sentence up for a classifier; LAVT reads every word"),
    Ignored("embeddings.position_ids", "counts 0, 1, 2, ...; computed anew"),
)
"""Of a bare BERT."""

HEADS_IGNORED = (
    Ignored("cls.{rest}", "the heads of pre-training"),
    Ignored(_LAYER + "{rest}", "a layer beyond the network's text_layers", only_without_place=True),
)
"""Of a BERT from the hub, besides."""
