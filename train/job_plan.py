"""Shell: what every step of a job would do, or why it would refuse; nothing is written."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.candidate_stage import plan_candidates
from pipeline.errors import SemiresError
from pipeline.folds import Fold
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.prepare_plan import plan_data
from pipeline.records import Plan
from pipeline.runner import check_plan, pending_shards
from refine.chosen import is_chosen
from refine.stage import config_of_round, plan_refinement
from train.evaluate import plan_evaluation, refuse_no_truth, splits_of_round
from train.job import JobConfig
from train.predict import plan_teacher
from train.training_plan import plan_training

Look = Callable[[], tuple[bool, str]]
"""Whether a step is done, and what there is to say; refuses if another is in its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one command of a job would do."""

    verb: str
    state: Literal["done", "to do", "waits", "refuses"]
    """`waits` where its inputs are not there yet, so that nothing more can be said."""
    note: str

    @property
    def text(self) -> str:
        """In two lines."""
        begin = {"refuses": "would refuse: ", "waits": "waits for "}
        return f"{self.verb}:\n  {begin.get(self.state, f'{self.state}; ')}{self.note}"


def plan_job(
    job: JobConfig, run_dir: Place, *, limit: int | None = None, force: bool = False
) -> Iterator[Step]:
    """Ask every step of a job, in order, what it would do with what lies in the run directory.

    Of images those are looked at that a training there has left out; another that cannot be read
    is found when it is trained on.

    Args:
        job: All sections.
        run_dir: Run directory; it may be empty.
        limit: As `run_rounds` takes it.
        force: Whether what another config made would be made anew.
    """
    ask = _Asking(force)
    data = ask("prepare-data", [], lambda: _data(job, run_dir, limit))
    yield data
    candidates = ask(
        "sam-candidates", [data], lambda: _shards(plan_candidates(job.candidates, run_dir))
    )
    yield candidates
    student = ask(
        "train-student --round 0",
        [data],
        lambda: _training(job, run_dir, 0),
        f"{job.train.burn_in.steps} steps",
    )
    yield student
    yield from _evaluations(ask, job, run_dir, 0, student)
    folds: list[Step] = []
    if job.rounds.calibrate:
        folds = list(_folds(ask, job, run_dir, data))
        yield from folds
    for number in range(1, job.rounds.rounds + 1):
        steps = list(_round(ask, job, run_dir, number, (candidates, student, folds)))
        yield from steps
        student = steps[-1]
        yield from _evaluations(ask, job, run_dir, number, student)


class _Asking:
    """Asks a step, given those whose results it needs."""

    def __init__(self, force: bool) -> None:
        self._force = force

    def __call__(
        self, verb: str, needs: Sequence[Step], plan: Callable[[], Look], about: str = ""
    ) -> Step:
        """Ask one step.

        Args:
            verb: Its command.
            needs: The steps before it whose results it reads.
            plan: Reads its inputs; refuses where they do not fit or are not there.
            about: What is known of it even without inputs.
        """
        lacking = [need for need in needs if need.state != "done"]
        stuck = [need for need in lacking if need.state in ("refuses", "waits")]
        more = f"; {about}" if about else ""
        if stuck:
            return Step(verb=verb, state="waits", note=f"'{stuck[0].verb}'{more}")
        try:
            look = plan()
        except SemiresError as error:
            if lacking:
                return Step(verb=verb, state="waits", note=f"'{lacking[0].verb}'{more}")
            return Step(verb=verb, state="refuses", note=str(error))
        try:
            done, note = look()
        except SemiresError as error:
            if self._force:
                return Step(verb=verb, state="to do", note=f"by --force, since {error}")
            return Step(verb=verb, state="refuses", note=str(error))
        return Step(verb=verb, state="done" if done else "to do", note=note)


def _data(job: JobConfig, run_dir: Place, limit: int | None) -> Look:
    def look() -> tuple[bool, str]:
        found = plan_data(job.data, run_dir, limit=limit)
        if found is None:
            return False, f"reader {job.data.reader}"
        refuse_no_truth(job.evaluate, load_manifest(RunPaths(run_dir).manifest))
        return True, found

    return look


def _shards(plan: Plan) -> Look:
    def look() -> tuple[bool, str]:
        check_plan(plan, plan.stage)
        todo = len(pending_shards(plan))
        return not todo, (
            f"{plan.num_items} {plan.unit} in {plan.num_shards} shards of {plan.shard_size}, "
            f"{todo} to do"
        )

    return look


def _training(job: JobConfig, run_dir: Place, number: int, fold: Fold | None = None) -> Look:
    training = plan_training(job.train, run_dir, number, None, fold)
    return lambda: (training.is_done(), training.text)


def _evaluations(
    ask: _Asking, job: JobConfig, run_dir: Place, number: int, student: Step
) -> Iterator[Step]:
    """Ask for every split that is evaluated after a round; one without a truth is passed over."""
    last = number == job.rounds.rounds and job.rounds.stop is None
    try:
        splits = splits_of_round(job.evaluate, run_dir, final=last)
    except SemiresError:  # no manifest: which splits there are is not known
        splits = job.evaluate.splits
    for split in splits:
        verb = f"evaluate-student --round {number} --split {split}"

        def plan(split: str = split) -> Look:
            evaluation = plan_evaluation(job.evaluate, run_dir, number, split)
            return lambda: evaluation

        yield ask(verb, [student], plan)


def _folds(ask: _Asking, job: JobConfig, run_dir: Place, data: Step) -> Iterator[Step]:
    steps = f"{job.train.burn_in.steps} steps"
    for part in range(1, job.calibrate.folds + 1):
        fold = Fold(part, job.calibrate.folds)

        def plan(fold: Fold = fold) -> Look:
            return _training(job, run_dir, 0, fold)

        def predict(fold: Fold = fold) -> Look:
            return _shards(plan_teacher(job.teacher, run_dir, 1, fold)[0])

        trained = ask(f"train-student --fold {fold}", [data], plan, steps)
        yield trained
        yield ask(f"predict-teacher --fold {fold}", [trained], predict)


def _round(
    ask: _Asking,
    job: JobConfig,
    run_dir: Place,
    number: int,
    before: tuple[Step, Step, list[Step]],
) -> Iterator[Step]:
    """Ask teacher, calibration, refinement and, last, the student of a round.

    Args:
        ask: Who asks.
        job: All sections.
        run_dir: Run directory.
        number: The round, from 1.
        before: Candidates, the student of the round before, and the steps of the folds.
    """
    candidates, student, folds = before
    teacher = ask(
        f"predict-teacher --round {number}",
        [student],
        lambda: _shards(plan_teacher(job.teacher, run_dir, number)[0]),
    )
    yield teacher
    needs = [candidates, teacher]
    if folds:
        chosen = ask(
            f"refine-labels calibrate --round {number}",
            [candidates, *folds],
            lambda: _choice(job, run_dir, number),
        )
        yield chosen
        needs.append(chosen)

    def refine() -> Look:
        config = config_of_round(job.refine, run_dir, number)
        return _shards(plan_refinement(config, run_dir, number))

    labels = ask(f"refine-labels --round {number}", needs, refine)
    yield labels
    yield ask(
        f"train-student --round {number}",
        [student, labels],
        lambda: _training(job, run_dir, number),
        f"{job.train.student.steps} steps",
    )


def _choice(job: JobConfig, run_dir: Place, number: int) -> Look:
    """Say whether a choice is there; one that found nothing better leaves none, and is repeated."""
    chosen = is_chosen(job.calibrate, run_dir, number)
    note = "a strategy is chosen" if chosen else f"{job.calibrate.folds} folds to compare by"
    return lambda: (chosen, note)
