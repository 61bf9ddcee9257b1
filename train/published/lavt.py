"""Names of LAVT as yz93/LAVT-RIS and nini0919/SemiRES save it (their model files are the same).

The backbone is a Swin by Microsoft's names, with PWAM, gate and norm of every stage inside it.
"""

from train.published.bert import BERT_IGNORED
from train.published.names import Ignored, Rule, prefixed
from train.published.swin import INDEX_REASON, POSITION_INDEX, SWIN_RULES

_STAGE = "backbone.layers.{stage}."
_GATE = _STAGE + "res_gate.{place}.weight"
_ATTENTION = {
    "vis_project.0": "visual",
    "image_lang_att.f_query.0": "query",
    "image_lang_att.f_key.0": "key",
    "image_lang_att.f_value.0": "value",
    "image_lang_att.W.0": "output",
    "project_mm.0": "joint",
}

FUSION_RULES = (
    *(
        Rule(
            _STAGE + f"fusion.{theirs}.{{kind}}",
            (f"fusions.{{stage}}.attention.{ours}.{{kind}}",),
            "matrix",
        )
        for theirs, ours in _ATTENTION.items()
    ),
    Rule(_GATE, ("fusions.{stage}.gate.{place}.weight",)),
    Rule("backbone.norm{stage}.{kind}", ("fusions.{stage}.norm.{kind}",)),
)
"""Pixel-word attention (1x1 convolutions there, linear layers here), language gate and norm."""

DECODER_RULES = (
    *(
        rule
        for join, level in enumerate((4, 3, 2))  # numbered by the coarser of the two features
        for half in (1, 2)
        for rule in (
            Rule(
                f"classifier.conv{half}_{level}.weight",
                (f"decoder.joins.{join}.{3 * (half - 1)}.weight",),
            ),
            Rule(
                f"classifier.bn{half}_{level}.{{stat}}",
                (f"decoder.joins.{join}.{3 * (half - 1) + 1}.{{stat}}",),
            ),
        )
    ),
    Rule("classifier.conv1_1.{kind}", ("decoder.head.{kind}",)),
)
"""The decoder, top-down."""

MODEL_RULES = (*prefixed(SWIN_RULES, "backbone."), *FUSION_RULES, *DECODER_RULES)
"""All of a checkpoint's `model` but the text encoder."""

MODEL_IGNORED = (
    Ignored("backbone." + POSITION_INDEX, INDEX_REASON),
    Ignored(
        _GATE,
        "behind the last stage the gate reaches no output: untrained",
        only_without_place=True,
    ),
)

TEXT_PREFIX = "text_encoder."
"""Of BERT inside a `lavt_one` checkpoint."""

ONE_IGNORED = (
    *MODEL_IGNORED,
    *(Ignored(TEXT_PREFIX + entry.source, entry.reason) for entry in BERT_IGNORED),
)
