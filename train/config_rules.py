"""What docs/config.md says beyond the dataclasses: its beginning, an example, keys that exclude.

Every example here is parsed by a test: what is said to be refused is, and its neighbour is not.
"""

from dataclasses import dataclass

INTRODUCTION = """
# The config

Every verb reads one YAML file, `--config stages.yaml`. It begins with `version: 1`; of its eight
sections only `data` needs anything, a `reader`. `--set section.key=value` replaces a value:
`--set train.burn_in.steps=200`, `--set "refine.chain=[{strategy: iom}, {strategy: pwa}]"`.

A key that does not exist, a value of another type or out of range is refused with its place before
anything is run. A verb checks the sections that it reads, `run-rounds --dry-run` all of them. Paths
begin at the folder in which the command is run; `~` is one's home.

This page is written by `python -m train.config_reference > docs/config.md`; a test holds it to the
code. An example:
"""

EXAMPLE = """
version: 1
data: {reader: jsonl, annotations: photos.jsonl, labelled: {ratio: 1.0}}
candidates: {model: vit_b, checkpoint: weights/sam_vit_b_01ec64.pth}
refine:
  chain:
    - {strategy: cpi-u, params: {min_label_coverage: 0.6}, min_gain: 0.0}
    - {strategy: pwa}
train:
  preset: ours
  network: {size: base, tokenizer: bert-base-uncased, options: {image_size: 384}}
  burn_in: {steps: 2000}
  student: {steps: 4000}
evaluate: {final_splits: [val]}
rounds: {rounds: 1}
"""
"""A config with every kind of value."""

ABOUT = {
    "data": "Read by `prepare-data`.",
    "candidates": "Read by `sam-candidates`; [the models, and what they cover](candidates.md).",
    "teacher": "Read by `predict-teacher`.",
    "refine": "Read by `refine-labels`; [the strategies and what they are worth](strategies.md).",
    "calibrate": "Read by `refine-labels calibrate`; "
    "[what it tries and how it decides](strategies.md#calibrate-before-you-train).",
    "train": "Read by `train-student`; [training in all detail](training.md).",
    "evaluate": "Read by `evaluate-student` and `run-rounds`; [the protocols](evaluation.md).",
    "rounds": "Read by `run-rounds`.",
}
"""The line below the heading of every section."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Keys of a section that do not go together, or not without each other."""

    words: str
    """The rule, Markdown."""
    refused: str
    """What breaks it, YAML on one line."""
    accepted: str
    """The same put right."""


RULES: dict[str, tuple[Rule, ...]] = {
    "data": (
        Rule(
            "`labelled`: one of `ratio`, `ids` and `file`",
            "data: {reader: scenes, labelled: {ratio: 0.1, file: ids.txt}}",
            "data: {reader: scenes, labelled: {ratio: null, file: ids.txt}}",
        ),
        Rule(
            "no path that the reader does not read",
            "data: {reader: scenes, images: photos}",
            "data: {reader: jsonl, annotations: photos.jsonl, images: photos}",
        ),
        Rule(
            "every path that the reader needs",
            "data: {reader: semires-split, annotations: a.json}",
            "data: {reader: semires-split, annotations: a.json, images: train2014}",
        ),
        Rule(
            "`refs` and `instances` of a `semires-split`: both or none",
            "data: {reader: semires-split, annotations: a.json, images: train2014, refs: refs.p}",
            "data: {reader: semires-split, annotations: a.json, images: train2014, refs: refs.p, "
            "instances: instances.json}",
        ),
    ),
    "candidates": (
        Rule(
            "`masks` with model `imported`, and with no other",
            "candidates: {model: vit_tiny_demo, masks: {format: coco, path: masks.json}}",
            "candidates: {model: imported, masks: {format: coco, path: masks.json}}",
        ),
        Rule(
            "`checkpoint` where the project ships no weights",
            "candidates: {model: vit_h}",
            "candidates: {model: vit_h, checkpoint: sam_vit_h_4b8939.pth}",
        ),
        Rule(
            "neither `checkpoint` nor `options` without a network (`region_merging`, `imported`)",
            "candidates: {model: region_merging, options: {points_per_side: 16}}",
            "candidates: {model: vit_tiny_regions, options: {points_per_side: 16}}",
        ),
        Rule(
            "`options`: `points_per_side` or `point_grids`",
            "candidates: {options: {points_per_side: 8, point_grids: [[[0.5, 0.5]]]}}",
            "candidates: {options: {point_grids: [[[0.5, 0.5]]]}}",
        ),
        Rule(
            "`point_grids`: one for the image and one per layer of `crop_n_layers`",
            "candidates: {options: {crop_n_layers: 1, point_grids: [[[0.5, 0.5]]]}}",
            "candidates: {options: {crop_n_layers: 1, point_grids: [[[0.5, 0.5]], [[0.5, 0.5]]]}}",
        ),
        Rule(
            "`compile_encoder` with `profile: fast`, and not with `hub_sam2` or `hub_sam_hq`",
            "candidates: {options: {profile: reference, compile_encoder: true}}",
            "candidates: {options: {profile: fast, compile_encoder: true}}",
        ),
        Rule(
            "`max_candidates` stands beside `options`, not in it",
            "candidates: {options: {max_candidates: 100}}",
            "candidates: {max_candidates: 100}",
        ),
    ),
    "teacher": (),
    "refine": (
        Rule(
            "the last of the `chain` always answers: `pwa` or `none`, without `min_gain`",
            "refine: {chain: [{strategy: iom}]}",
            "refine: {chain: [{strategy: iom}, {strategy: pwa}]}",
        ),
        Rule(
            "where the strategy's own `params` are those of the weight, no `weight_params`",
            "refine: {chain: [{strategy: pwa, weight_params: {mean: 0.4}}]}",
            "refine: {chain: [{strategy: pwa, params: {mean: 0.4}}]}",
        ),
        Rule(
            "`cpi` and its kin: at least one of `min_label_coverage` and `min_mask_coverage`",
            "refine: {chain: [{strategy: cpi-u, params: {min_label_coverage: null}}, "
            "{strategy: pwa}]}",
            "refine: {chain: [{strategy: cpi, params: {min_label_coverage: null}}, "
            "{strategy: pwa}]}",
        ),
    ),
    "calibrate": (
        Rule(
            "`grid`: any strategy but `drop`",
            "calibrate: {grid: {drop: {share: [0.05, 0.1]}}}",
            "calibrate: {grid: {iom: {min_iou: [0.3, 0.5]}}}",
        ),
    ),
    "train": (
        Rule(
            "`patience` and `final: best` with `evaluate_every`",
            "train: {final: best}",
            "train: {final: best, evaluate_every: 500}",
        ),
        Rule(
            "`warmup_steps` below `steps`",
            "train: {student: {steps: 100, warmup_steps: 100}}",
            "train: {student: {steps: 100, warmup_steps: 20}}",
        ),
        Rule(
            "`network.max_tokens` at most the network's `text_positions`",
            "train: {network: {size: toy, max_tokens: 40}}",
            "train: {network: {size: toy, max_tokens: 40, options: {text_positions: 40}}}",
        ),
    ),
    "evaluate": (
        Rule(
            "`headline` is among `protocols`",
            "evaluate: {protocols: [image]}",
            "evaluate: {protocols: [image], headline: image}",
        ),
    ),
    "rounds": (
        Rule(
            "`stop` goes by the first of `evaluate.splits`",
            "{rounds: {stop: {patience: 2}}, evaluate: {splits: []}}",
            "{rounds: {stop: {patience: 2}}, evaluate: {splits: [val]}}",
        ),
    ),
}
"""Section -> its rules; what an example leaves out takes its default, or is the demo's data."""
