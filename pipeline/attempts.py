"""Shell: how often a shard was begun and not ended, and its failed items tried.

`attempts/00003.json` beside the store is written before a shard is computed and removed once it is
done. It outlives the process: a shard whose worker dies counts, wherever it runs next.
"""

import json
from dataclasses import dataclass, field

from pipeline.errors import StoreError
from pipeline.json_files import atomic_write, read_json
from pipeline.places import Place, delete, is_local
from pipeline.store import space_needed

MAX_ATTEMPTS = 3
"""How often a shard is tried as a whole before its items are isolated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """What was tried of a shard before."""

    shard: int = 0
    """Times the shard was begun and not ended."""
    items: dict[str, int] = field(default_factory=dict)
    """Per item that failed when the shard was last done: how often it was tried."""

    @property
    def exhausted(self) -> bool:
        """Whether the shard, or an item of it, had its attempts: then isolate at once."""
        return self.shard >= MAX_ATTEMPTS or max(self.items.values(), default=0) >= MAX_ATTEMPTS


def attempts_path(store: Place, shard: int) -> Place:
    """Give the place of a shard's attempts."""
    return store.with_suffix(".stage") / "attempts" / f"{shard:05d}.json"


def read_attempts(store: Place, shard: int) -> Attempts:
    """Read what was tried; none where there is no file, or none that is whole."""
    try:
        document = read_json(attempts_path(store, shard))
        items = {str(item): int(count) for item, count in document["items"].items()}
        return Attempts(shard=int(document["shard"]), items=items)
    except (StoreError, ValueError, TypeError, KeyError, AttributeError):
        return Attempts()


def write_attempts(store: Place, shard: int, attempts: Attempts) -> None:
    """Remember what was tried; lost by a power cut, which costs nothing but the count."""
    path = attempts_path(store, shard)
    text = json.dumps({"shard": attempts.shard, "items": attempts.items})
    with space_needed(path):
        if not is_local(path):
            atomic_write(path, text.encode())
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text)
        partial.replace(path)


def forget_attempts(store: Place, shard: int) -> None:
    """Forget a shard's attempts, once it is done."""
    delete(attempts_path(store, shard))
