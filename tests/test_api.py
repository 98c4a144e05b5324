"""The app asked from programs: the documented example, many clients at once, and memory."""

from __future__ import annotations

import contextlib
import io
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from app_server import ROOT, SHIPPED
from gradio_client import Client
from PIL import Image

from dpwg.method.pipeline import DPWaveletPipeline
from dpwg.ui.demo import build_demo
from dpwg.ui.limits import QUEUE_SIZE

API = (ROOT / "docs" / "api.md").read_text()
CAPTION = "A person with a black bob, on a green background"
CLIENTS, CALLS = 20, 5


def ask(client: Client, seed: int, checkpoint: str = "faces/eps-10") -> np.ndarray:
    inputs = (checkpoint, CAPTION, seed, 1, 1.5, 0.5, "bicubic")
    *_, files = client.predict(*inputs, api_name="/generate")
    return np.asarray(Image.open(next(f for f in files if f.endswith(f"seed-{seed}-coarse.png"))))


def test_every_handler_is_documented() -> None:
    table = API.split("## Ask the app from a program")[1].split("\n## ")[0]
    told = set(re.findall(r"`/(\w+)`", table))
    functions = build_demo().fns.values()
    assert told == {f.api_name for f in functions if f.api_visibility == "public"}


def test_the_documented_example_runs(app: tuple[str, int]) -> None:
    block = API.split("## Ask the app from a program")[1].split("```python\n")[1].split("```")[0]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(block.replace("http://127.0.0.1:7860", app[0]), {})
    assert "[7, 8]" in said.getvalue()
    assert said.getvalue().count(".png'") == 4


@pytest.mark.slow
def test_many_clients_get_their_own_images(app: tuple[str, int]) -> None:
    pipe = DPWaveletPipeline.from_pretrained(SHIPPED / "faces" / "eps-10")
    seeds = np.arange(CLIENTS * CALLS).reshape(CLIENTS, CALLS)
    expected = {
        int(seed): pipe(CAPTION, seed=int(seed), guidance=1.5, upsampler="bicubic").coarse[0]
        for seed in seeds.flat
    }
    clients = [Client(app[0], verbose=False) for _ in range(CLIENTS)]

    def visit(own: tuple[Client, np.ndarray]) -> list[np.ndarray]:
        return [ask(own[0], int(seed)) for seed in own[1]]

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(visit, zip(clients, seeds, strict=True)))
    for row, images in zip(seeds, answers, strict=True):
        for seed, image in zip(row, images, strict=True):
            np.testing.assert_array_equal(image, expected[int(seed)])


@pytest.mark.slow
def test_beyond_the_queue_is_said_in_words(app: tuple[str, int]) -> None:
    client = Client(app[0], verbose=False)
    inputs = ("faces/eps-10", CAPTION, 1, 4, 1.5, 0.5, "bicubic")
    jobs = [client.submit(*inputs, api_name="/generate") for _ in range(2 * QUEUE_SIZE)]
    errors = [error for job in jobs if (error := job.exception(timeout=600))]
    assert errors
    assert all("queue" in str(error).lower() for error in errors), errors[0]
    assert len(errors) < len(jobs)
    assert ask(client, 3).shape == (32, 32, 3)


@pytest.mark.slow
def test_memory_stays_flat_over_500_generations(app: tuple[str, int]) -> None:
    client, process = Client(app[0], verbose=False), psutil.Process(app[1])
    for seed in range(50):
        ask(client, seed)
    before = process.memory_info().rss
    for seed in range(500):
        ask(client, seed)
    assert process.memory_info().rss < 1.05 * before
