"""Shell: whether the files of a manifest and of trainings are those that were written."""

import functools
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pipeline.columns import file_sha256
from pipeline.config import fingerprint
from pipeline.errors import ManifestError, StoreError
from pipeline.in_threads import default_threads, in_order
from pipeline.json_files import read_checked
from pipeline.manifest import ANEW, load_manifest, read_description, refuse_other_columns
from pipeline.places import Place, is_on_the_way, reason_of
from pipeline.records import read_json
from pipeline.run_contents import DAMAGE
from pipeline.shard_audit import progress
from pipeline.trainings import verb_of_training

_OTHER_HASH = "its own hash differs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it should be: `missing` (never finished) or `damaged`."""

    what: str
    state: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what} {self.state}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the verification of one place came to."""

    place: Place
    """A store, the manifest, or the folder of a student."""
    unit: str
    """What was counted: "shards" or "files"."""
    intact: int
    total: int
    problems: tuple[Problem, ...]
    advice: str = ""
    """What makes anew what is damaged; "" where nothing is, or the reasons say it."""

    @property
    def damaged(self) -> bool:
        """Whether something is damaged; what is merely missing is not."""
        return any(problem.state == "damaged" for problem in self.problems)


def verify_manifest(folder: Place, threads: int | None = None) -> Report:
    """Hash every file of a manifest against its description; the images are not read.

    Of manifest.json itself what decides results is compared: hashes, counts and fingerprint. The
    settings in it are compared by prepare-data.
    """
    problems: tuple[Problem, ...] = ()
    try:
        problems = tuple(
            _damaged(name, f"{folder / name} is missing or damaged ({reason}); {ANEW}")
            for name, reason in differing(folder, read_description(folder)["files"], threads)
        )
        if not problems:
            refuse_other_columns(folder, load_manifest(folder))
    except ManifestError as error:
        problems = (_damaged("manifest", str(error)),)
    return Report(
        place=folder, unit="manifests", intact=int(not problems), total=1, problems=problems
    )


def verify_student(folder: Place, threads: int | None = None) -> Report:
    """Hash the files of a finished training against student.json, and this against its own hash."""
    path = folder / "student.json"
    if not path.exists():
        problem = Problem(what="student.json", state="missing", reason="training is not finished")
        return _report(folder, 1, (problem,) if (folder / "plan.json").exists() else ())
    verb = verb_of_training(folder)
    advice = f"run '{verb}', which makes it anew"
    try:
        document = read_json(path)
        files = None if "files" not in document else dict(document["files"])
    except (StoreError, *DAMAGE):
        problem = _damaged("student.json", "expected JSON with the hashes of files, found another")
        return _report(folder, 1, (problem,), advice)
    unlike = _unlike_its_plan(folder, document)
    if files is None and not unlike:
        problem = Problem(what="files", state="missing", reason="student.json has no hashes")
        return _report(folder, 1, (problem,))
    files = files or {}
    damaged = differing(folder, files, threads)
    problems = tuple(_damaged(name, reason) for name, reason in [*damaged, *unlike])
    if any(reason != _OTHER_HASH for _, reason in unlike):
        # Of these a training without --force knows nothing, or refuses them.
        advice = f"run '{verb} --force', which makes it anew"
    return _report(folder, max(1, len(files)), problems, advice if problems else "")


def _unlike_its_plan(folder: Place, document: dict[str, Any]) -> list[tuple[str, str]]:
    """Give name and reason of what does not fit together: student.json, its hash, plan.json."""
    found = []
    try:
        read_checked(folder / "student.json")
    except StoreError:
        found.append(("student.json", _OTHER_HASH))
    plan = document.get("plan")
    if not isinstance(plan, dict):
        return found
    if not found and document.get("fingerprint") != fingerprint(plan):
        found.append(("student.json", "its fingerprint is not that of its plan"))
    try:
        begun = read_json(folder / "plan.json")
    except StoreError:
        return [*found, ("plan.json", "expected JSON, found none")]
    if not found and begun not in (plan, _without_tokenizer(plan)):
        found.append(("plan.json", "another than that in student.json"))
    return found


def _without_tokenizer(plan: dict[str, Any]) -> dict[str, Any]:
    """Give a plan as it was written before folders of tokenizers were hashed."""
    inputs = plan.get("inputs")
    if not isinstance(inputs, dict):
        return plan
    return {**plan, "inputs": {name: of for name, of in inputs.items() if name != "tokenizer"}}


def _damaged(what: str, reason: str) -> Problem:
    return Problem(what=what, state="damaged", reason=reason)


def _report(folder: Place, total: int, problems: tuple[Problem, ...], advice: str = "") -> Report:
    return Report(
        place=folder,
        unit="files",
        intact=max(0, total - len(problems)),
        total=total,
        problems=problems,
        advice=advice,
    )


def differing(folder: Place, hashes: dict[str, str], threads: int | None) -> list[tuple[str, str]]:
    """Give name and reason of every file that is missing or has another sha256, by name."""
    files = sorted(hashes.items())
    difference = functools.partial(_difference, folder)
    found = in_order(difference, files, threads or default_threads(folder))
    with closing(found), progress(folder, "files", len(files)) as bar:
        reasons = []
        for reason in found:
            reasons.append(reason)
            bar.update()
    return [(name, reason) for (name, _), reason in zip(files, reasons, strict=True) if reason]


def _difference(folder: Place, file: tuple[str, str]) -> str:
    """Say why a file is not the one that was hashed; "" if it is."""
    name, expected = file
    try:
        return "" if file_sha256(folder / name) == expected else "sha256 differs"
    except OSError as error:
        if is_on_the_way(folder, error):
            raise
        return f"cannot be read ({reason_of(error)})"
