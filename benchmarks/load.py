"""What is asked of every server: the same requests in the same order, sent in a closed loop or at given times."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import httpx

from models.spec.model import ModelSpec

STEPS = (4, 10, 20, 30)
GUIDANCES = (1.0, 3.0)
STYLES = ("3d", "noto", "twemoji")
CONCEPTS = (
    "red apple", "banana", "bicycle", "blue heart", "bread", "cactus", "candle", "cat face", "cherries", "crab",
    "crescent moon", "crown", "dog face", "envelope", "fire", "fish", "four leaf clover", "fox", "frog", "gem stone",
    "ghost", "glasses", "grapes", "green apple", "guitar", "hamburger", "hot beverage", "house", "key", "lemon",
    "light bulb", "mushroom", "octopus", "panda", "pizza", "pumpkin", "rainbow", "rocket", "snowman", "star",
    "strawberry", "sunflower", "tiger face", "tulip", "turtle", "umbrella", "watermelon", "yellow heart",
)  # fmt: skip

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
TIMEOUT_S = 1800.0
"""No answer is given up on before the worst queue of a slow machine has drained."""


@dataclass(frozen=True)
class Request:
    """One picture."""

    model: str
    """Its name; peers that have one model do not look at it."""
    prompt: str
    num_inference_steps: int
    guidance_scale: float
    seed: int
    scheduler: str


@dataclass(frozen=True)
class Answer:
    """What came of a request."""

    request: Request
    seconds: float
    """From the moment at which it was due, so that a client that is late itself hides nothing."""
    picture: str
    """The picture's bytes in base64; they are looked at after the clock has stopped."""
    fault: str
    """Empty for a picture."""


@dataclass(frozen=True)
class Run:
    """Answers in the order of their requests, and the time that all took together."""

    answers: list[Answer]
    seconds: float

    @property
    def latencies(self) -> list[float]:
        """Seconds of the requests that got a picture."""
        return [answer.seconds for answer in self.answers if not answer.fault]

    @property
    def short_latencies(self) -> list[float]:
        """The same of the requests with the fewest steps."""
        return [a.seconds for a in self.answers if not a.fault and a.request.num_inference_steps == STEPS[0]]

    @property
    def faults(self) -> list[str]:
        """What the requests that got none got instead."""
        return [answer.fault for answer in self.answers if answer.fault]


def make_requests(count: int, seed: int, spec: ModelSpec) -> list[Request]:
    """``count`` requests to a model. Every pair of steps and guidance comes equally often, so that two lists are equal
    work; their order, the prompts and the seeds are drawn."""
    draw = random.Random(seed)
    kinds = [kind for _, kind in zip(range(count), itertools.cycle(_shuffled_kinds(draw)), strict=False)]
    draw.shuffle(kinds)
    return [
        Request(spec.name, _prompt(draw), steps, guidance, draw.randrange(2**32), spec.solver)
        for steps, guidance in kinds
    ]


def alike_requests(count: int, seed: int, spec: ModelSpec) -> list[Request]:
    """``count`` requests to a model with its own number of steps and guidance."""
    draw = random.Random(seed)
    return [
        Request(spec.name, _prompt(draw), spec.steps, spec.guidance, draw.randrange(2**32), spec.solver)
        for _ in range(count)
    ]


def warm_up_requests(spec: ModelSpec) -> list[Request]:
    """A few requests of every kind, of prompts that no measured request has."""
    kinds = itertools.product((STEPS[0], STEPS[1]), GUIDANCES, range(2))
    return [
        Request(spec.name, f"warm-up {i}", steps, guidance, i, spec.solver)
        for i, (steps, guidance, _) in enumerate(kinds)
    ]


def arrival_times(count: int, rate: float, seed: int) -> list[float]:
    """Seconds from the start at which the requests of a Poisson process of ``rate`` a second arrive."""
    draw = random.Random(seed)
    return list(itertools.accumulate(draw.expovariate(rate) for _ in range(count)))


async def closed_loop(client: httpx.AsyncClient, requests: Sequence[Request], clients: int) -> Run:
    """``clients`` clients, each sending its next request when it has the answer to its last."""
    answers: dict[int, Answer] = {}
    waiting = iter(enumerate(requests))
    began = time.perf_counter()

    async def one_client() -> None:
        for index, request in waiting:  # shared: whoever is free takes the next
            answers[index] = await _ask(client, request, time.perf_counter())

    await asyncio.gather(*(one_client() for _ in range(clients)))
    return Run([answers[i] for i in range(len(requests))], time.perf_counter() - began)


async def open_loop(client: httpx.AsyncClient, requests: Sequence[Request], times: Sequence[float]) -> Run:
    """Each request at its time, whether or not the ones before it are answered."""
    began = time.perf_counter()

    async def at(seconds: float, request: Request) -> Answer:
        await asyncio.sleep(max(0.0, began + seconds - time.perf_counter()))
        return await _ask(client, request, began + seconds)

    answers = await asyncio.gather(*(at(t, request) for t, request in zip(times, requests, strict=True)))
    return Run(list(answers), time.perf_counter() - began)


def open_client(url: str) -> httpx.AsyncClient:
    """A client that neither waits for a connection nor gives up on an answer, and asks no proxy."""
    return httpx.AsyncClient(base_url=url, limits=LIMITS, timeout=TIMEOUT_S, trust_env=False)


def _prompt(draw: random.Random) -> str:
    return f"{draw.choice(CONCEPTS)}, {draw.choice(STYLES)}"


def _shuffled_kinds(draw: random.Random) -> list[tuple[int, float]]:
    kinds = list(itertools.product(STEPS, GUIDANCES))
    draw.shuffle(kinds)
    return kinds


async def _ask(client: httpx.AsyncClient, request: Request, due: float) -> Answer:
    picture = fault = ""
    try:
        response = await client.post("/v1/images/generations", json=asdict(request))
        if response.status_code == httpx.codes.OK:
            picture = response.json()["data"][0]["b64_json"]
        else:
            fault = f"{response.status_code}: {response.text[:300]}"
    except (httpx.HTTPError, ValueError, LookupError) as error:
        fault = f"{type(error).__name__}: {error}"
    return Answer(request, time.perf_counter() - due, picture, fault)
