"""Pictures inside a body: files of a form, data URLs, base64. Nothing is fetched from anywhere."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from pydantic_core import PydanticCustomError

_DATA_URL_HEAD = 200
"""Characters within which a data URL must come to its comma."""


def read_reference(value: Any) -> Any:
    """The bytes of a picture.

    Args:
        value: bytes (a file of a form); a data URL; base64; an object with one of these as ``image_url`` or
            ``b64_json``; or a list of one of all these.

    Raises:
        PydanticCustomError: it is something else; the message does not repeat it.
    """
    if isinstance(value, list):
        if len(value) != 1:
            raise _refused(f"{len(value)} pictures; one is taken")
        value = value[0]
    if isinstance(value, dict):
        given = [name for name in ("image_url", "b64_json") if value.get(name) is not None]
        if len(given) != 1 or any(other is not None for name, other in value.items() if name not in given):
            raise _refused("an object must hold image_url (a data URL) or b64_json, and nothing else")
        value = value[given[0]]
        if isinstance(value, dict) and list(value) == ["url"]:
            value = value["url"]
    if isinstance(value, bytes) or value is None:
        return value
    if not isinstance(value, str):
        raise _refused(f"expected a data URL, base64 or a file, not {type(value).__name__}")
    return _decode(value)


def _decode(text: str) -> bytes:
    if text.startswith("data:"):
        comma = text.find(",", 0, _DATA_URL_HEAD)
        head, text = text[: max(comma, 0)], text[comma + 1 :]
        if not head.endswith(";base64"):
            raise _refused("a data URL must be of the form data:image/png;base64,...")
    elif text[:8].lower().startswith(("http:", "https:", "ftp:", "file:")):
        raise _refused("addresses are not fetched; send the picture itself: a file, a data URL or base64")
    try:
        # Line breaks are what the `base64` command writes.
        return base64.b64decode("".join(text.split()).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise _refused("this is no base64") from None


def _refused(message: str) -> PydanticCustomError:
    return PydanticCustomError("picture", "{message}", {"message": message})
