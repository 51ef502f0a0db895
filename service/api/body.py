"""Reading bodies: JSON, and forms as OpenAI's client sends them, into the same strict models."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from service.api.schema import StrictBody
from service.errors import InvalidRequest

JSON = "application/json"
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
KEY_HEADER = "Idempotency-Key"
MAX_KEY_CHARS = 255
MAX_PARTS = 100
LARGE_BYTES = 256 * 1024
"""A body from which on it is parsed in a thread: a megabyte of base64 takes some milliseconds."""

Body = TypeVar("Body", bound=StrictBody)


# Both are called by the routes and are no dependencies of theirs: those would cost a quarter of a submission.
async def read_body(request: Request, model: type[Body], forms: bool = True) -> Body:
    """The body, validated.

    Args:
        request: whose body is still to be read.
        model: with which it is validated.
        forms: whether forms are taken beside JSON.

    Raises:
        RequestValidationError, InvalidRequest: it is not such a body.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if forms and media_type in FORMS:
            fields = await _read_form(request)
            return await to_thread.run_sync(lambda: model.model_validate(fields, strict=False))
        if media_type == JSON or media_type.endswith("+json"):
            content = await request.body()
            if len(content) < LARGE_BYTES:
                return model.model_validate_json(content)
            return await to_thread.run_sync(model.model_validate_json, content)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from None
    also = f" or {FORMS[0]}" if forms else ""
    raise InvalidRequest(f"the body must be a JSON object, sent as {JSON}{also}")


def idempotency_key(request: Request) -> str | None:
    """The key under which a client submits, so that it may do so again.

    Raises:
        InvalidRequest: it is empty or too long.
    """
    key = request.headers.get(KEY_HEADER)
    if key is not None and not 1 <= len(key) <= MAX_KEY_CHARS:
        raise InvalidRequest(
            f"{KEY_HEADER} has {len(key)} characters, between 1 and {MAX_KEY_CHARS} are allowed", param=KEY_HEADER
        )
    return key


async def _read_form(request: Request) -> dict[str, Any]:
    limit = request.state.body_limit  # of the body as a whole, which is checked as it comes
    async with request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=limit) as form:
        parts = [
            (name, await value.read() if isinstance(value, UploadFile) else value) for name, value in form.multi_items()
        ]
    return nested(parts)


def nested(parts: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The object that the names of a form's parts describe: ``image[]`` twice is a list of two,
    ``input_reference[image_url]`` an object, ``loras[][name]`` a list of objects, a new one when a name comes again.

    Raises:
        InvalidRequest: a name comes twice that is no list, or is used in two ways.
    """
    found: dict[str, Any] = {}
    for name, value in parts:
        match = re.fullmatch(r"([^\[\]]+)(\[\d*\])?(?:\[([^\[\]]+)\])?", name)
        if match is None:
            found[name] = value  # refused as an unknown field, by name
            continue
        root, listed, key = match.groups()
        if listed:
            there = found.setdefault(root, [])
            fits = isinstance(there, list)
            if fits and key is None:
                there.append(value)
            elif fits:
                if not there or not isinstance(there[-1], dict) or key in there[-1]:
                    there.append({})
                there[-1][key] = value
        elif key is not None:
            there = found.setdefault(root, {})
            fits = isinstance(there, dict) and key not in there
            if fits:
                there[key] = value
        else:
            fits = root not in found
            found.setdefault(root, value)
        if not fits:
            raise InvalidRequest(f"{root[:80]} is in the form twice", param=root[:80])
    return found


def described(model: type[StrictBody], forms: bool = True) -> dict[str, Any]:
    """What the API's description says of a submission with such a body, for ``openapi_extra``."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    content = {JSON: {"schema": _inlined(schema, definitions)}}
    if forms:
        content[FORMS[0]] = content[JSON]
    key = {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS}
    return {
        "requestBody": {"required": True, "content": content},
        "parameters": [{"name": KEY_HEADER, "in": "header", "required": False, "schema": key}],
    }


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items()}
