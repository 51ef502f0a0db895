"""What no client should send: requests that are wrong in some way, and pictures that are larger than they look."""

from __future__ import annotations

import json
import random
import struct
import zlib

MIB = 2**20
BODY = {"prompt": "x", "n": 1, "seed": 5, "size": "auto", "loras": [], "deadline_s": 5.0, "image": "AAAA"}
PATHS = ("/v1/jobs", "/v1/images/generations", "/v1/images/edits", "/v1/videos", "/v1/jobs/a/events", "/v1/models/%ff")
VALUES = (
    "1e999",
    "NaN",
    "-0",
    '"\\ud800"',
    "[" * 500,
    "{}",
    "null",
    "9" * 400,
    '"\\u0000"',
    "true",
    '"' + "a" * 9000 + '"',
)
HEADERS = (
    "Idempotency-Key",
    "Last-Event-ID",
    "Range",
    "Authorization",
    "X-Request-Id",
    "Content-Type",
    "If-None-Match",
)


def garbage(draw: random.Random) -> tuple[bytes, bool]:
    """A request that is wrong in some way, and whether an answer must come."""
    kind = draw.randrange(5)
    if kind == 0:
        return draw.randbytes(draw.randrange(1, 400)), False
    body = json.dumps(BODY)
    if kind in (1, 2):
        name = draw.choice(list(BODY))
        body = body.replace(f'"{name}": {json.dumps(BODY[name])}', f'"{name}": {draw.choice(VALUES)}')
    content = body.encode()
    if kind == 3:
        content = bytes(byte if draw.random() > 0.05 else draw.randrange(256) for byte in content)
    media_type = draw.choice(
        ("application/json", "multipart/form-data; boundary=x", "text/plain", "application/x-www-form-urlencoded")
    )
    noise = "".join(chr(draw.randrange(33, 256)) for _ in range(draw.randrange(40)))
    length = len(content) + (draw.choice((-3, 10**6, 10**30)) if kind == 4 else 0)
    head = (
        f"{draw.choice(('GET', 'POST', 'DELETE', 'PATCH', 'post'))} {draw.choice(PATHS)}?limit={noise[:5]} HTTP/1.1\r\n"
        f"Host: x\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n"
        f"{draw.choice(HEADERS)}: {noise}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + content, kind in (1, 2, 3)


def png(width: int, height: int) -> bytes:
    """A picture that says it is so large, and ends soon."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(MIB))) + chunk(b"IEND", b"")
    )
