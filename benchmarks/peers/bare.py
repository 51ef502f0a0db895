"""The API's framework and server with nothing behind them: what requests cost before any work is done for them."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

ANSWER = b'{"id": "0"}'

app = FastAPI()


@app.get("/health/live")
async def live() -> Response:
    """It answers."""
    return Response(ANSWER, media_type="application/json")


@app.post("/v1/jobs")
async def submit(request: Request) -> Response:
    """Read the body and forget it."""
    await request.body()
    return Response(ANSWER, 202, media_type="application/json")


@app.get("/v1/jobs/{job_id}")
async def get(job_id: str) -> Response:
    """The same for every id."""
    return Response(ANSWER, media_type="application/json", headers={"x-job": job_id})
