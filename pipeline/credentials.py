"""Shell: credentials: told in texts, and hidden from whatever is printed."""

import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import fsspec

_WORD = re.compile(r"""[^\s'"]+""")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*:/")
_SIGNED = re.compile(
    r"""([?&](?:x-(?:amz|goog)-[\w-]+|awsaccesskeyid|googleaccessid|sig|signature|token|key|"""
    r"""password)=)[^&\s'"]+""",
    re.IGNORECASE,
)
"""What a URL says behind its question mark to prove who asks."""
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")
"""An access key's id, of whose secret this process may know nothing: roles hand them out."""
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL|CONNECTION_STRING|PASSPHRASE")
_SECRET_OF = ("AWS_", "FSSPEC_", "GOOGLE_", "GCS_", "AZURE_")
_FILES_OF_AWS = ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "HOME")
_MIN_SECRET = 6
"""Characters below which a setting is no secret, and hiding it would garble messages."""


def holds_credentials(text: str) -> bool:
    """Tell whether a text holds a URL with a user, a password or a signature in it.

    A secret may hold slashes: `s3://KEY:SE/CRET@bucket/a` is told by the colon before the `@`. A
    plain `@` behind the bucket, as in `s3://bucket/a@b`, is part of a name.
    """
    words = _WORD.findall(text)
    if _URL.match(text):  # as a whole, too: a password may hold blanks
        words.append(text)
    return any(_without_user(word) != word for word in words) or bool(_SIGNED.search(text))


def redacted(text: str) -> str:
    """Replace every credential that this process knows of, or can tell by its place, by `***`."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _WORD.sub(lambda word: _without_user(word[0]), text)
    return _KEY_ID.sub("***", _SIGNED.sub(r"\1***", text))


def _without_user(word: str) -> str:
    """Hide the user of a URL; a path made of one has lost a slash."""
    start, end = word.find(":/"), word.rfind("@")
    if start < 0 or end < start:
        return word
    user = word[start + 2 : end].removeprefix("/")
    if ":" not in user and "/" in user.partition("@")[0]:
        return word
    return f"{word[:start]}://***{word[end:]}"


def _secrets() -> set[str]:
    named = {
        value
        for name, value in os.environ.items()
        if name.startswith(_SECRET_OF) and _SECRET_NAME.search(name)
    }
    known = named | set(_leaves(fsspec.config.conf)) | _secrets_of_aws()
    return {text for text in known if len(text) >= _MIN_SECRET}


def _secrets_of_aws() -> frozenset[str]:
    """Give what AWS's own files hold, where S3 is in use: else its library is not loaded."""
    if "botocore.session" not in sys.modules:
        return frozenset()
    return _secrets_of_files(tuple(map(os.environ.get, _FILES_OF_AWS)))


@functools.lru_cache(maxsize=8)  # a message may be told for every one of a million items
def _secrets_of_files(_where: tuple[str | None, ...]) -> frozenset[str]:
    """Read AWS's files, all profiles of them; asks no instance's metadata and nobody else."""
    aws = sys.modules["botocore.session"]
    with suppress(sys.modules["botocore.exceptions"].BotoCoreError, OSError, ValueError):
        return frozenset(_leaves(aws.Session().full_config["profiles"]))
    return frozenset()


def _leaves(settings: Any, secret: bool = False) -> Iterator[str]:
    """Give the strings of settings that are called like a secret."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from _leaves(value, secret or bool(_SECRET_NAME.search(str(name).upper())))
    elif isinstance(settings, str) and secret:
        yield settings
