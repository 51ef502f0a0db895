"""API keys. The server knows their SHA-256 only."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SCHEME = "bearer "


class ApiKeys:
    """The keys that open ``/v1``. Without any it is open.

    Args:
        digests: SHA-256 of each key, in hex.

    Raises:
        ValueError: one is not; it is not repeated, for it may be the key itself.
    """

    def __init__(self, digests: Sequence[str]) -> None:
        for number, digest in enumerate(digests, 1):
            if _DIGEST.fullmatch(digest) is None:
                raise ValueError(f"api_keys: entry {number} is not the SHA-256 of a key: 64 digits of 0-9 and a-f")
        self._digests = tuple(bytes.fromhex(digest) for digest in digests)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._digests)

    def admit(self, authorization: str) -> bool:
        """Whether this Authorization header has a key. The time it takes says nothing about any of them."""
        if not self._digests:
            return True
        key = authorization[len(_SCHEME) :].strip() if authorization[: len(_SCHEME)].lower() == _SCHEME else ""
        given = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        # Every one is compared, also after a match.
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0
