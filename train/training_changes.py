"""Shell: how a training that lies in a folder differs from one that is asked for."""

from typing import Any

from pipeline.current_inputs import plan_differences
from pipeline.errors import StoreError
from pipeline.json_files import read_checked
from pipeline.places import Place
from pipeline.trainings import left_out_differences, left_out_of
from train.workspace import PLAN


def changes(folder: Place, plan: dict[str, Any]) -> list[str]:
    """Name what differs between a plan and the one that a training was begun with.

    A plan from before folders of tokenizers were hashed has no hash of one: it counts as the same,
    so that what was trained then stays what it is.

    Raises:
        StoreError: If the plan of then is damaged.
    """
    return [*_other_settings(folder, plan), *_left_out_otherwise(folder, plan)]


def refuse_changed(folder: Place, plan: dict[str, Any]) -> None:
    """Refuse to leave a training as it is, or to go on with it, where it is of another plan.

    Raises:
        StoreError: Names the differences, if there are any, and what to do.
    """
    others, images = _other_settings(folder, plan), _left_out_otherwise(folder, plan)
    if others:
        raise StoreError(
            f"{folder}: trained otherwise ({'; '.join([*others, *images][:5])}); go back to that, "
            f"choose a new --run-dir, or add --force to replace it"
        )
    if images:
        raise StoreError(
            f"{folder}: {'; '.join(images)}; add --force to train anew, or choose a new --run-dir"
        )


def _other_settings(folder: Place, plan: dict[str, Any]) -> list[str]:
    stored = read_checked(folder / PLAN)
    inputs = stored.get("inputs")
    if isinstance(inputs, dict) and "tokenizer" not in inputs:
        hashed = {name: value for name, value in plan["inputs"].items() if name != "tokenizer"}
        plan = {**plan, "inputs": hashed}
    return plan_differences(folder, stored, {**plan, "left_out": stored.get("left_out")})


def _left_out_otherwise(folder: Place, plan: dict[str, Any]) -> list[str]:
    """Say which images are left out no longer, or newly; none of another data set."""
    then = read_checked(folder / PLAN).get("inputs")
    if not isinstance(then, dict) or then.get("manifest") != plan["inputs"]["manifest"]:
        return []
    return left_out_differences(left_out_of(folder), plan["left_out"])
