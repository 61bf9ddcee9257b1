"""The kinds of published files: which dictionaries they hold, and the map of each."""

from dataclasses import dataclass

from train.published.bert import BERT_IGNORED, BERT_RULES, HEADS_IGNORED, OLD_NORM_RULES
from train.published.lavt import MODEL_IGNORED, MODEL_RULES, ONE_IGNORED, TEXT_PREFIX
from train.published.names import Ignored, Rule, prefixed
from train.published.swin import SWIN_IGNORED, SWIN_RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One dictionary of tensors inside a file."""

    keys: tuple[str, ...]
    """Where it may lie, the first that is there; none means that the file is the dictionary."""
    rules: tuple[Rule, ...]
    """Where its tensors belong."""
    ignored: tuple[Ignored, ...]
    """Which it may hold besides."""
    optional_prefix: str = ""
    """Stripped from names that have it."""
    may_be_bare: bool = True
    """Whether a file that is nothing but this dictionary is taken too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A kind of published file."""

    title: str
    """What it is, for the user."""
    sections: tuple[Section, ...]
    """Its dictionaries."""
    fills: tuple[str, ...]
    """Parts of our network (first word of the names) that it must fill completely."""


LAYOUTS: dict[str, Layout] = {
    "lavt": Layout(
        title="LAVT or SemiRES, BERT apart (`model` and `bert_model`)",
        sections=(
            Section(keys=("model",), rules=MODEL_RULES, ignored=MODEL_IGNORED, may_be_bare=False),
            Section(
                keys=("bert_model",), rules=BERT_RULES, ignored=BERT_IGNORED, may_be_bare=False
            ),
        ),
        fills=("vision", "fusions", "decoder", "text"),
    ),
    "lavt-one": Layout(
        title="LAVT or SemiRES, BERT inside the model (`lavt_one`)",
        sections=(
            Section(
                keys=("model",),
                rules=(*MODEL_RULES, *prefixed(BERT_RULES, TEXT_PREFIX)),
                ignored=ONE_IGNORED,
            ),
        ),
        fills=("vision", "fusions", "decoder", "text"),
    ),
    "swin": Layout(
        title="Swin Transformer, Microsoft's names",
        sections=(Section(keys=("model", "state_dict"), rules=SWIN_RULES, ignored=SWIN_IGNORED),),
        fills=("vision",),
    ),
    "bert": Layout(
        title="BERT from the hub, or a folder that transformers saved",
        sections=(
            Section(
                keys=(),
                rules=(*BERT_RULES, *OLD_NORM_RULES),
                ignored=(*BERT_IGNORED, *HEADS_IGNORED),
                optional_prefix="bert.",
            ),
        ),
        fills=("text",),
    ),
}
"""Name on the command line to its layout."""

BESIDE = {
    "optimizer": "the optimizer's state",
    "lr_scheduler": "the learning rate's state",
    "scaler": "the loss scaler's state",
    "epoch": "how long it was trained",
    "args": "the options it was trained with; read to compare heads",
    "max_accuracy": "a result",
    "config": "the options it was trained with",
    "meta": "the options it was trained with",
}
"""What a file may hold beside the dictionaries, and why it is left out."""
