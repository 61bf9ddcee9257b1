"""The embedded data set: scenes generated on the spot, then read like one's own lines."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

from pipeline.data_config import DataConfig
from pipeline.readers.base import Progress, Source
from pipeline.readers.jsonl import open_jsonl
from pipeline.scenes.write import write_scenes


def read_scenes(
    config: DataConfig, work: Path, workers: int, progress: Progress | None = None
) -> Source:
    """Generate the embedded data set in `work` / "scenes" and open it.

    Args:
        config: `scenes` and `scenes_seed` are used.
        work: Folder to generate in; the same config gives the same files.
        workers: Processes that generate.
        progress: Told of every scene that is generated, with the number so far.
    """
    root = work / "scenes"
    path = write_scenes(
        root,
        seed=config.scenes_seed,
        counts=config.scenes,
        progress=None if progress is None else _counted(progress),
        workers=workers,
    )
    return open_jsonl(path, None)


def _counted(progress: Progress) -> Callable[[], None]:
    numbers = count(1)
    return lambda: progress("scenes", next(numbers))
