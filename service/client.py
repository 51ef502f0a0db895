"""A small client of the native job API, for the command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx

POLL_S = 0.2


class ServerError(Exception):
    """The server refused or the job did not complete; the text is what the server said."""


def run_job(
    client: httpx.Client, body: dict[str, Any], on_progress: Callable[[str, int, int | None], None]
) -> tuple[dict[str, Any], bytes]:
    """Submit a job, wait for its end, and fetch its first picture. Leaving early cancels the job.

    Args:
        client: with the server's address as its base.
        body: of ``POST /v1/jobs``.
        on_progress: called with state, step and number of steps (None while unknown) on every look.
    """
    job = read_answer(client.post("/v1/jobs", json=body))
    address = f"/v1/jobs/{job['id']}"
    try:
        while job["state"] in ("queued", "running"):
            progress = job["progress"] or {"step": 0, "steps": None}
            on_progress(job["state"], progress["step"], progress["steps"])
            time.sleep(POLL_S)
            answer = client.get(address)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:  # the job outlives a store that is away
                job = read_answer(answer)
    except BaseException:
        client.delete(address)
        raise
    if job["state"] != "completed":
        why = f": {job['error']['message']}" if job["error"] else ""
        if job["state"] == "expired":
            why = ": no worker was free to begin it before its deadline"
        raise ServerError(f"job {job['id']} {job['state']}{why}")
    picture = client.get(job["results"][0]["url"])
    if picture.is_error:
        read_answer(picture)
    return job, picture.content


def read_answer(response: httpx.Response) -> dict[str, Any]:
    """The object that the server answered with.

    Raises:
        ServerError: it answered with an error, or with something else.
    """
    try:
        content = response.json()
    except ValueError:
        content = None
    if response.is_error or not isinstance(content, dict):
        envelope = content.get("error", {}) if isinstance(content, dict) else {}
        raise ServerError(envelope.get("message") or f"HTTP {response.status_code}, which is no answer of Darkroom's")
    return content
