"""Presets of the `train` section: the paper, the released code, and ours, every value sourced.

python -m train.presets docs/training.md    writes the table of that document anew
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.commands import Settings
from pipeline.config import parse_config
from pipeline.errors import ConfigError
from train.config import TrainConfig

PRESETS: dict[str, dict[str, tuple[Any, str]]] = {
    "paper": {
        "network.name": ("lavt", "§4.2"),
        "network.size": ("base", "§4.2: Swin-B and BERT-base; window 12 by the code"),
        "network.max_tokens": (20, "not given; the code"),
        "burn_in.steps": (2160, "not given; the code's 40 epochs of 432 objects (RefCOCO, 1 %)"),
        "burn_in.learning_rate": (5e-5, "§4.2"),
        "burn_in.labelled_batch": (8, "not given; the code's 2 on each of 4 GPUs"),
        "student.steps": (139880, "not given; 40 epochs of 41 972 objects (RefCOCO, 1 %), by 12"),
        "student.learning_rate": (5e-5, "§4.2"),
        "student.labelled_batch": (12, "§4.2: 3 on each of 4 GPUs"),
        "student.unlabelled_batch": (12, "§4.2: 3 on each of 4 GPUs"),
        "weight_decay": (0.01, "§4.2"),
        "frozen": (
            ["text.embeddings.", "text.encoder.layer.10.", "text.encoder.layer.11."],
            "not given; LAVT's train.py",
        ),
        "ema_decay": (0.996, "§4.2"),
        "ema_warmup": (False, "equation 5"),
        "class_weights": ([1.0, 1.0], "equation 1: plain BCE"),
        "dice": (0.0, "equation 1"),
        "labelled_weight": (1.0, "equation 4 gives no value"),
        "unlabelled_weight": (1.0, "equation 4 gives no value"),
        "balance": ("per_sample", "equation 10: one mean"),
        "max_grad_norm": (None, "not mentioned"),
        "labelled_view": ("plain", "§3.1: augmentation is of unlabelled images"),
        "augment.blur_probability": (0.5, "§4.2 names the blur; the code's value"),
        "augment.blur_radius": (1.0, "the code's value"),
        "augment.flip_probability": (0.0, "not mentioned"),
        "augment.jitter_probability": (0.5, "§4.2 names the jitter; the code's value"),
        "augment.brightness": (0.25, "the code's value"),
        "augment.contrast": (0.25, "the code's value"),
        "augment.saturation": (0.25, "the code's value"),
        "augment.hue": (0.25, "the code's value"),
        "evaluate_every": (3497, "figure 7: every epoch"),
        "evaluate_expressions": (10834, "all of RefCOCO's val"),
        "evaluate_by": ("overall_iou", "§4.2: oIoU"),
        "patience": (None, "not mentioned"),
        "final": ("best", "figure 7: the reported number is the best epoch's"),
        "precision": ("float32", "not mentioned"),
    },
    "released": {
        "network.name": ("lavt", "args.py --model"),
        "network.size": ("base", "args.py --swin_type; window 12 by the name of the weights"),
        "network.max_tokens": (20, "dataset_semi.py"),
        "burn_in.steps": (2160, "args.py --epochs 40, of 432 objects (RefCOCO, 1 %)"),
        "burn_in.learning_rate": (5e-5, "args.py --lr"),
        "burn_in.labelled_batch": (8, "README: 2 on each of 4 GPUs"),
        "student.steps": (139880, "args.py --epochs 40, of 41 972 objects (RefCOCO, 1 %), by 12"),
        "student.learning_rate": (5e-5, "args.py --lr"),
        "student.labelled_batch": (12, "README: 3 on each of 4 GPUs"),
        "student.unlabelled_batch": (12, "README: 3 on each of 4 GPUs"),
        "weight_decay": (0.01, "args.py --wd"),
        "frozen": (
            ["text.embeddings.", "text.encoder.layer.10.", "text.encoder.layer.11."],
            "train.py: only layers 0 to 9 of BERT are given to AdamW",
        ),
        "ema_decay": (0.9996, "train_semi_CPI.py: written into the call; --ema_rate is not read"),
        "ema_warmup": (False, "train_semi_CPI.py"),
        "class_weights": ([0.9, 1.1], "train.py, criterion"),
        "dice": (0.0, "imported, neither shipped nor used"),
        "labelled_weight": (1.0, "train_semi_CPI.py; train_semi_IOM.py has 10"),
        "unlabelled_weight": (1.0, "args.py --unsup_lambda"),
        "balance": ("branch", "train_semi_CPI.py: half each where both are there"),
        "max_grad_norm": (None, "no clipping"),
        "labelled_view": ("plain", "dataset_semi.py"),
        "augment.blur_probability": (0.5, "transforms.py"),
        "augment.blur_radius": (1.0, "transforms.py"),
        "augment.flip_probability": (0.0, "transforms.py: there, and off"),
        "augment.jitter_probability": (0.5, "transforms.py"),
        "augment.brightness": (0.25, "transforms.py"),
        "augment.contrast": (0.25, "transforms.py"),
        "augment.saturation": (0.25, "transforms.py"),
        "augment.hue": (0.25, "transforms.py"),
        "evaluate_every": (3497, "train_semi_CPI.py: every epoch"),
        "evaluate_expressions": (10834, "the code draws one sentence per object at random"),
        "evaluate_by": ("overall_iou", "train_semi_CPI.py"),
        "patience": (5, "train_semi_CPI.py; in train_semi_IOM.py it never fires"),
        "final": ("best", "train_semi_CPI.py: model_best"),
        "precision": ("float32", "no autocast"),
    },
    "ours": {
        "network.name": ("lavt", "as the paper"),
        "network.size": ("base", "as the paper"),
        "network.max_tokens": (20, "as the paper"),
        "burn_in.steps": (2160, "as the paper"),
        "burn_in.learning_rate": (5e-5, "as the paper"),
        "burn_in.labelled_batch": (8, "as the paper"),
        "burn_in.warmup_steps": (100, "AdamW's first steps are its noisiest"),
        "student.steps": (41964, "12 epochs: figure 7 is flat from there on"),
        "student.learning_rate": (5e-5, "as the paper"),
        "student.labelled_batch": (12, "as the paper"),
        "student.unlabelled_batch": (12, "as the paper"),
        "student.warmup_steps": (100, "as for the burn-in"),
        "weight_decay": (0.01, "as the paper"),
        "frozen": (
            ["text.embeddings.", "text.encoder.layer.10.", "text.encoder.layer.11."],
            "as the paper",
        ),
        "ema_decay": (0.996, "as the paper"),
        "ema_warmup": (True, "the first teachers forget the random decoder"),
        "class_weights": ([0.9, 1.1], "as the code"),
        "dice": (0.0, "as the paper"),
        "labelled_weight": (1.0, "as the paper"),
        "unlabelled_weight": (1.0, "as the paper"),
        "balance": ("per_sample", "as the paper: every sample has the same say"),
        "max_grad_norm": (1.0, "one bad label does not undo many steps"),
        "labelled_view": ("strong", "169 images are seen hundreds of times"),
        "augment.blur_probability": (0.5, "as the code"),
        "augment.blur_radius": (1.0, "as the code"),
        "augment.flip_probability": (0.5, "left and right are swapped in the sentence"),
        "augment.jitter_probability": (0.5, "as the code"),
        "augment.brightness": (0.25, "as the code"),
        "augment.contrast": (0.25, "as the code"),
        "augment.saturation": (0.25, "as the code"),
        "augment.hue": (0.05, "a quarter turn makes a red shirt green: sentences name colours"),
        "evaluate_every": (3497, "every epoch"),
        "evaluate_expressions": (2000, "enough to see the curve"),
        "evaluate_by": ("overall_iou", "as the paper"),
        "patience": (None, "steps are few enough"),
        "final": ("last", "val stays unseen, and the EMA is smooth"),
        "precision": ("bfloat16", "for tensor cores; weights, losses and AdamW stay float32"),
    },
}
"""Values and where they come from, by preset and dotted key of the `train` section.

Steps are those of RefCOCO with 1 % labelled; for other data sets set them beside the preset. Not
in any preset, since they are files: `network.tokenizer` and `network.init`.
"""

_TABLE = re.compile(r"(<!-- table presets -->\n).*?(<!-- end -->)", re.S)


def train_section(settings: Settings) -> TrainConfig:
    """Parse the `train` section, its preset filled in where it says nothing itself.

    Raises:
        ConfigError: If the preset is unknown, or the section does not parse.
    """
    where = f"{settings.config}: train"
    return parse_config(TrainConfig, with_preset(settings.given("train"), where), where)


def with_preset(section: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Replace the key `preset` by that preset's values; what the section says itself wins.

    Args:
        section: As YAML gave it.
        where: How to name it in errors.

    Returns:
        A mapping without `preset`.

    Raises:
        ConfigError: If there is no such preset, or it stands where a mapping is expected.
    """
    own = {key: value for key, value in section.items() if key != "preset"}
    name = section.get("preset")
    if name is None:
        return own
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"{where}.preset: expected one of {', '.join(PRESETS)}, found {name!r}")
    return _joined(preset_section(name), own)


def preset_section(name: str) -> dict[str, Any]:
    """Give a preset's values as a section."""
    section: dict[str, Any] = {}
    for key, (value, _) in PRESETS[name].items():
        *outer, last = key.split(".")
        target = section
        for part in outer:
            target = target.setdefault(part, {})
        target[last] = value
    return section


def _joined(base: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another, key by key at every depth."""
    result = dict(base)
    for key, value in own.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, Mapping):
            result[key] = _joined(below, value)
        else:
            result[key] = value
    return result


def preset_table() -> str:
    """Give all presets as a Markdown table: a line per key, value and source of each preset."""
    keys = list(dict.fromkeys(key for preset in PRESETS.values() for key in preset))
    keys.sort(key=lambda key: (key.count(".") == 0, key.split(".")[0] if "." in key else ""))
    lines = [f"| `train.` | {' | '.join(PRESETS)} |", "|---" * (1 + len(PRESETS)) + "|"]
    for key in keys:
        cells = [_cell(preset.get(key)) for preset in PRESETS.values()]
        lines.append(f"| `{key}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(entry: tuple[Any, str] | None) -> str:
    if entry is None:
        return "–"
    value, source = entry
    text = "off" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}` – {source}"


def with_table(document: str) -> str:
    """Put the table into a document, between its marks."""
    return _TABLE.sub(lambda found: found[1] + preset_table() + found[2], document)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
