"""Shell: the whole job as a config: all sections of stages.yaml, and the files that they name.

Needs no torch, so that a mistake is told at once.
"""

from dataclasses import dataclass

from pipeline.candidate_config import CandidatesConfig
from pipeline.commands import Settings
from pipeline.data_config import DataConfig
from pipeline.errors import ConfigError
from pipeline.named_files import refuse_missing
from refine.calibrate_config import CalibrateConfig
from refine.stage import RefineConfig
from train.config import EvaluateConfig, RoundsConfig, TeacherConfig, TrainConfig
from train.presets import train_section


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """All sections of stages.yaml."""

    data: DataConfig
    candidates: CandidatesConfig
    teacher: TeacherConfig
    refine: RefineConfig
    calibrate: CalibrateConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    rounds: RoundsConfig

    def __post_init__(self) -> None:
        if self.rounds.stop is not None and not self.evaluate.splits:
            raise ConfigError(
                "rounds.stop: expected a split in evaluate.splits to go by, found none; name one, "
                "or set rounds.stop to null"
            )


def parse_job(settings: Settings) -> JobConfig:
    """Parse every section, so that a mistake anywhere is found before any work.

    Raises:
        ConfigError: If one does not parse.
    """
    return JobConfig(
        data=settings.section("data", DataConfig),
        candidates=settings.section("candidates", CandidatesConfig),
        teacher=settings.section("teacher", TeacherConfig),
        refine=settings.section("refine", RefineConfig),
        calibrate=settings.section("calibrate", CalibrateConfig),
        train=train_section(settings),
        evaluate=settings.section("evaluate", EvaluateConfig),
        rounds=settings.section("rounds", RoundsConfig),
    )


def refuse_missing_files(job: JobConfig) -> None:
    """Look whether all files are there that a job names; folders of images are not looked at.

    Raises:
        ConfigError: Names all that are missing, by their keys.
    """
    sections = {
        "data": job.data.input_files(),
        "candidates": job.candidates.input_files(),
        "train.network": job.train.network.input_files(starts=True),
    }
    refuse_missing(
        {f"{section}.{name}": path for section, files in sections.items()
         for name, path in files.items()}
    )  # fmt: skip


def notes_on(job: JobConfig) -> list[str]:
    """Say what cannot be known of a job beforehand: what the hub gives, and when it stops."""
    checkpoint, tokenizer = job.candidates.checkpoint, job.train.network.tokenizer
    named = {"candidates.checkpoint": checkpoint, "train.network.tokenizer": tokenizer}
    notes = [
        f"{key}: {path} is no path here, and is looked for on the hub"
        for key, path in named.items()
        if path is not None and not path.exists()
    ]
    if job.rounds.stop is not None:
        notes.append("rounds.stop may end the job before its last round")
    return notes
