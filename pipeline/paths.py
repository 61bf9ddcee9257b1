"""Where everything lies in a run directory."""

from dataclasses import dataclass
from pathlib import Path


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

    def metrics(self, number: int) -> Path:
        """Evaluation of a round's student."""
        return self.round(number) / "metrics.json"
