"""The embedded data set: scenes generated on the spot, then read like one's own lines."""

from pathlib import Path

from pipeline.data_config import DataConfig
from pipeline.readers.base import Source
from pipeline.readers.jsonl import open_jsonl
from pipeline.scenes.write import write_scenes


def read_scenes(config: DataConfig, work: Path, workers: int) -> Source:
    """Generate the embedded data set in `work` / "scenes" and open it.

    Args:
        config: `scenes` and `scenes_seed` are used.
        work: Folder to generate in; the same config gives the same files.
        workers: Processes that generate.
    """
    root = work / "scenes"
    path = write_scenes(root, seed=config.scenes_seed, counts=config.scenes, workers=workers)
    return open_jsonl(path, None)
