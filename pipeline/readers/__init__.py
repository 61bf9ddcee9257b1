"""Readers of data sets; a new format is one module and one line here."""

from pipeline.readers.base import Reader
from pipeline.readers.jsonl import read_jsonl
from pipeline.readers.refer import read_refer
from pipeline.readers.scenes import read_scenes
from pipeline.readers.semires_split import read_semires_split

READERS: dict[str, Reader] = {
    "refer": read_refer,
    "semires-split": read_semires_split,
    "jsonl": read_jsonl,
    "scenes": read_scenes,
}
