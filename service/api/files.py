"""Finished files over HTTP: their names are hashes of their bytes, so they never change."""

from __future__ import annotations

import re

from fastapi import Request, Response

from service.api.context import Services
from service.errors import UnknownJob
from service.jobs.job import Result

PARTIAL = 206
NOT_MODIFIED = 304
UNSATISFIABLE = 416


async def answer_file(services: Services, request: Request, result: Result, variant: str | None) -> Response:
    """The bytes of a result or of one of its variants, or the range of them that is asked for.

    Raises:
        UnknownJob: there is no such variant, or the file has been deleted.
    """
    name, media_type = _chosen(result, variant)
    headers = {
        "etag": f'"{name}"',
        "cache-control": "private, max-age=31536000, immutable",
        "accept-ranges": "bytes",
    }
    if f'"{name}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=NOT_MODIFIED, headers=headers)
    content = await services.read(name)
    # Players of videos ask for parts, and some refuse to seek without them.
    asked = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("range", ""))
    if asked is None or asked.groups() == ("", ""):
        return Response(content, media_type=media_type, headers=headers)
    first, last = _bounds(asked[1], asked[2], len(content))
    if first > last:
        headers["content-range"] = f"bytes */{len(content)}"
        return Response(status_code=UNSATISFIABLE, headers=headers)
    headers["content-range"] = f"bytes {first}-{last}/{len(content)}"
    return Response(content[first : last + 1], PARTIAL, headers, media_type)


def _chosen(result: Result, variant: str | None) -> tuple[str, str]:
    if variant is None:
        return result.content_sha256, result.media_type
    for one in result.variants:
        if one.name == variant:
            return one.content_sha256, one.media_type
    names = ", ".join(one.name for one in result.variants) or "none"
    raise UnknownJob(f"there is no variant {variant[:80]!r}; there is {names}", code="result_not_found")


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """The first and the last byte; what ends before it begins cannot be satisfied."""
    if not first:
        return max(0, size - int(last)), size - 1 if int(last) else -1
    return int(first), min(int(last), size - 1) if last else size - 1
