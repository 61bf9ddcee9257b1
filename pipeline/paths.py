"""Where everything lies in a run directory."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.folds import Fold


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The folders of one run; names are a contract with users' scripts."""

    run_dir: Path

    @property
    def manifest(self) -> Path:
        """Images, objects, expressions."""
        return self.run_dir / "manifest"

    @property
    def candidates(self) -> Path:
        """Candidates of every training image."""
        return self.run_dir / "candidates.zarr"

    def round(self, number: int) -> Path:
        """Everything of one round; round 0 is the burn-in."""
        return self.run_dir / f"round-{number}"

    def teacher(self, number: int) -> Path:
        """The teacher's predictions of a round."""
        return self.round(number) / "teacher.zarr"

    def labels(self, number: int) -> Path:
        """The refined labels of a round."""
        return self.round(number) / "labels.zarr"

    def quality(self, number: int) -> Path:
        """What the refinement of a round came to."""
        return self.round(number) / "quality.json"

    def student(self, number: int) -> Path:
        """Checkpoints and final weights of a round."""
        return self.round(number) / "student"

    def fold(self, fold: Fold) -> Path:
        """Everything of one fold of the labelled images, for calibration."""
        return self.run_dir / "calibration" / f"fold-{fold.number}-of-{fold.count}"

    def fold_student(self, fold: Fold) -> Path:
        """The burn-in without a fold's images."""
        return self.fold(fold) / "student"

    def fold_teacher(self, fold: Fold) -> Path:
        """Its predictions of that fold."""
        return self.fold(fold) / "teacher.zarr"

    def calibration(self, number: int) -> Path:
        """What the strategies would come to in a round, by the labelled images."""
        return self.round(number) / "calibration.json"

    def chosen_strategy(self, number: int) -> Path:
        """The chain that calibration chose for a round, where it was applied."""
        return self.round(number) / "strategy.json"

    def metrics(self, number: int) -> Path:
        """Evaluation of a round's student."""
        return self.round(number) / "metrics.json"
