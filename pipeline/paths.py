"""Where everything lies in a run directory."""

from dataclasses import dataclass

from pipeline.folds import Fold
from pipeline.places import Place


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The folders of one run; names are a contract with users' scripts."""

    run_dir: Place

    @property
    def manifest(self) -> Place:
        """Images, objects, expressions."""
        return self.run_dir / "manifest"

    @property
    def candidates(self) -> Place:
        """Candidates of every training image."""
        return self.run_dir / "candidates.zarr"

    def round(self, number: int) -> Place:
        """Everything of one round; round 0 is the burn-in."""
        return self.run_dir / f"round-{number}"

    def teacher(self, number: int) -> Place:
        """The teacher's predictions of a round."""
        return self.round(number) / "teacher.zarr"

    def labels(self, number: int) -> Place:
        """The refined labels of a round."""
        return self.round(number) / "labels.zarr"

    def quality(self, number: int) -> Place:
        """What the refinement of a round came to."""
        return self.round(number) / "quality.json"

    def student(self, number: int) -> Place:
        """Checkpoints and final weights of a round."""
        return self.round(number) / "student"

    def fold(self, fold: Fold) -> Place:
        """Everything of one fold of the labelled images, for calibration."""
        return self.run_dir / "calibration" / f"fold-{fold.number}-of-{fold.count}"

    def fold_student(self, fold: Fold) -> Place:
        """The burn-in without a fold's images."""
        return self.fold(fold) / "student"

    def fold_teacher(self, fold: Fold) -> Place:
        """Its predictions of that fold."""
        return self.fold(fold) / "teacher.zarr"

    def calibration(self, number: int) -> Place:
        """What the strategies would come to in a round, by the labelled images."""
        return self.round(number) / "calibration.json"

    def chosen_strategy(self, number: int) -> Place:
        """The chain that calibration chose for a round, where it was applied."""
        return self.round(number) / "strategy.json"

    def metrics(self, number: int) -> Place:
        """Evaluation of a round's student."""
        return self.round(number) / "metrics.json"
