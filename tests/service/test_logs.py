"""Log lines are JSON objects."""

from __future__ import annotations

import json
import logging

from service.logs import JsonFormatter


def test_a_line() -> None:
    record = logging.LogRecord("a.b", logging.WARNING, "file", 1, "it is %s\nand more", ("so",), None)
    record.__dict__.update({"job": "j1", "where": {1, 2}})
    text = JsonFormatter().format(record)
    line = json.loads(text)
    assert "\n" not in text and line["message"] == "it is so\nand more"
    assert (line["level"], line["logger"], line["job"]) == ("warning", "a.b", "j1")
    assert line["time"].endswith("Z") and "taskName" not in line


def test_an_exception() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "file", 1, "x", (), (ValueError, error, error.__traceback__))
    assert "ValueError: why" in json.loads(JsonFormatter().format(record))["exception"]
