"""Readers whose crashes are known and not mended yet."""

AWAITED: frozenset[str] = frozenset()
"""Names of `tests.fuzz.readers.READERS`; their crashes are counted apart and fail nothing."""
