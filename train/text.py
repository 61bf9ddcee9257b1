"""Sentences to word pieces, with a published vocabulary or one built from the sentences at hand.

Shape letters: N sentences, L tokens.
"""

import hashlib
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer

from pipeline.columns import file_sha256
from pipeline.errors import ConfigError
from pipeline.found_values import why
from pipeline.records import atomic_write

MAX_TOKENS = 20
"""Tokens of a sentence, [CLS] and [SEP] included, as in LAVT and SemiRES."""
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""First rows of a vocabulary, in this order; [PAD] is id 0."""
VOCABULARY_FILE = "vocab.txt"
"""Name of the file that holds a vocabulary, one token a line, the id being the line number."""

TOKENIZER_CONFIG = "tokenizer_config.json"
"""What makes a folder one that transformers saved, rather than one with a vocabulary alone."""

_NO_PART = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf",
            ".ot", ".md", ".index.json")  # fmt: skip
"""Weights and texts for people, which may lie beside a tokenizer: how their names end."""

_NORMALIZER = normalizers.BertNormalizer(lowercase=True)  # also strips accents
_PRE_TOKENIZER = pre_tokenizers.BertPreTokenizer()


def split_words(sentence: str) -> list[str]:
    """Split into lower-case words and punctuation marks, exactly as BERT's tokenizer does."""
    normalized = _NORMALIZER.normalize_str(sentence)
    return [word for word, _ in _PRE_TOKENIZER.pre_tokenize_str(normalized)]


def build_vocabulary(sentences: Iterable[str]) -> tuple[str, ...]:
    """Collect a WordPiece vocabulary that holds every word of the sentences whole.

    Deterministic: special tokens, then words by falling count and, among equals, by code point,
    then every letter, digit and seen character, alone and as a `##` continuation, so that a word
    never seen still decomposes. Unlike BERT's own vocabulary it has no longer word parts.

    Args:
        sentences: The training sentences; their order does not matter.

    Returns:
        Distinct tokens; the position is the id.
    """
    counts = Counter(word for sentence in sentences for word in split_words(sentence))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    seen = {character for word in counts for character in word}
    characters = sorted(seen | set(string.ascii_lowercase + string.digits))
    tokens = [*SPECIAL_TOKENS, *words, *characters, *(f"##{c}" for c in characters)]
    return tuple(dict.fromkeys(tokens))


def save_vocabulary(tokens: Sequence[str], folder: Path) -> Path:
    """Write `vocab.txt` into an existing folder and give its path."""
    path = folder / VOCABULARY_FILE
    atomic_write(path, "".join(f"{token}\n" for token in tokens).encode())
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoder:
    """A tokenizer and the fixed length of what it gives; made by `load_text_encoder`."""

    tokenizer: Any
    """A transformers tokenizer with BERT's special tokens."""
    max_tokens: int = MAX_TOKENS
    """Length L of every encoded sentence, tokens."""

    @property
    def vocab_size(self) -> int:
        """Rows that a word embedding needs."""
        return len(self.tokenizer)

    def encode(self, sentences: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Turn sentences into token ids, padded or cut to L.

        Departs from LAVT, which cuts a long sentence's [SEP] off: here the last token stays [SEP].

        Args:
            sentences: Any text; an empty sentence is [CLS] [SEP].

        Returns:
            Ids (N, L) and mask (N, L), int64; the mask is 1 on tokens and 0 on padding.
        """
        if not sentences:
            empty = np.zeros((0, self.max_tokens), np.int64)
            return empty, empty.copy()
        encoded = self.tokenizer(
            list(sentences), padding="max_length", truncation=True, max_length=self.max_tokens
        )
        ids_NL = np.asarray(encoded["input_ids"], np.int64)
        return ids_NL, np.asarray(encoded["attention_mask"], np.int64)


def load_text_encoder(source: str | Path, max_tokens: int = MAX_TOKENS) -> TextEncoder:
    """Load a tokenizer.

    Args:
        source: A `vocab.txt`, a folder with one, a folder that transformers saved, or the name of
            a model on the hub such as `bert-base-uncased`.
        max_tokens: Length of an encoded sentence, at least 3.

    Returns:
        The encoder.

    Raises:
        ConfigError: If `max_tokens` is below 3, the vocabulary lacks a special token, or there is
            nothing to load.
    """
    if max_tokens < 3:
        raise ConfigError(f"max_tokens is at least 3 ([CLS], a word, [SEP]), got {max_tokens}")
    vocabulary = _vocabulary_of(Path(source))
    if vocabulary is not None:
        tokenizer: Any = _from_vocabulary(vocabulary)
    else:
        tokenizer = _from_hub(str(source))
    return TextEncoder(tokenizer=tokenizer, max_tokens=max_tokens)


def _from_hub(source: str) -> Any:
    """Load what transformers reads by itself: from a folder or the hub's cache, else the hub.

    The hub's client tries every file six times, with pauses that no setting changes: it is asked
    only for what the cache has not.
    """
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError):
        pass
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no tokenizer at {source!r}: give a vocab.txt, a folder or a hub name (with "
            "HF_HUB_OFFLINE=1 a hub that cannot be reached is not waited for)"
        ) from error


def absolute_source(source: Path) -> Path:
    """Name a tokenizer by an absolute path, for processes that were started in another folder.

    What is no path here is a name on the hub, and stays one.
    """
    return source.absolute() if source.exists() else source


def tokenizer_sha256(source: Path) -> str | None:
    """Name by content what `load_text_encoder` reads, wherever it lies.

    Args:
        source: As `load_text_encoder` takes it.

    Returns:
        64 hexadecimal digits: the sha256 of a vocabulary; of a folder that transformers saved, that
        over names and contents of the files in it, weights and hidden files left out. None for what
        is no path here: nothing but its name is known of a tokenizer on the hub.

    Raises:
        ConfigError: If a file cannot be read.
    """
    if not source.exists():
        return None
    vocabulary = _vocabulary_of(source)
    try:
        if vocabulary is not None:
            return file_sha256(vocabulary)
        digest = hashlib.sha256()
        for path in sorted(source.iterdir()):
            if (
                path.is_file()
                and not path.name.startswith(".")
                and not path.name.endswith(_NO_PART)
            ):
                digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    except OSError as error:
        raise ConfigError(
            f"{source}: a tokenizer that cannot be read ({error.strerror})"
        ) from error
    return digest.hexdigest()


def _vocabulary_of(source: Path) -> Path | None:
    """Give the file that is all of a tokenizer; None for what transformers reads by itself."""
    path = source / VOCABULARY_FILE if source.is_dir() else source
    return path if path.is_file() and not (source / TOKENIZER_CONFIG).exists() else None


def _from_vocabulary(path: Path) -> BertTokenizer:
    try:
        tokens = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as UTF-8 text ({why(error)})") from error
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing or tokens[0] != SPECIAL_TOKENS[0]:
        raise ConfigError(f"{path}: a vocabulary begins with [PAD] and holds {SPECIAL_TOKENS}")
    return BertTokenizer(vocab={token: row for row, token in enumerate(tokens)})
