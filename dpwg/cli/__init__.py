"""The command line. Every verb prints for people, or one JSON value with `--json`.

A verb is a function of the module that `VERBS` names: its arguments, with their types, defaults and
docstrings, are the verb's options, read by tyro. Only the module of the verb that runs is imported.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from dpwg.launch import run

PROGRAM = "python -m dpwg"
VERBS = {
    "data": ("data", "render the embedded data sets"),
    "check": ("data", "tell what is wrong with a data set of yours, before budget is spent"),
    "train": ("train", "train a whole family of checkpoints within a time budget"),
    "tokenizer": ("train", "train the spectral tokenizer on public images"),
    "upsampler": ("train", "train the super-resolution model on public images"),
    "pretrain": ("train", "train WaveletGPT on public images and captions"),
    "reranker": ("train", "train the model that chooses among candidates, on public images"),
    "finetune": ("finetune", "fine-tune privately on sensitive images and captions"),
    "sample": ("sample", "generate images of a caption, or a data set of captions"),
    "list": ("releases", "show every checkpoint with its privacy figures"),
    "push": ("releases", "publish a checkpoint with its model card on the Hugging Face Hub"),
    "space": ("releases", "write the app as a folder for Hugging Face Spaces"),
    "account": ("privacy", "answer with noise and epsilon, by PLD, PRV and RDP"),
    "quality": ("measure", "measure the pictures of checkpoints beside real ones"),
    "cost": ("measure", "count what a private example costs, small and at published sizes"),
    "evaluate": ("measure", "measure checkpoints on held-out records"),
    "attack": ("measure", "attack checkpoints: which records were they trained on?"),
    "audit": ("measure", "bound the private engine's epsilon from below, with canaries"),
    "bench": ("measure", "measure training, sampling and start-up on this machine"),
}
"""The module and the one-line help of each verb, in the order that the help shows them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns 0; 2 after an error told in one sentence, or a report of faults.

    `data check` is the verb `check`, `measure quality` the verb `quality`.
    """
    # Two busy processes on few cores stall each other when OpenMP threads spin; before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _main(words))


def _main(words: list[str]) -> int:
    if words[:2] in (["data", "check"], ["measure", "quality"], ["measure", "cost"]):
        del words[0]
    if not words or words[0] in ("-h", "--help"):
        print(overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from dpwg import __version__

        print(__version__)
        return 0
    name, *rest = words
    if name not in VERBS:
        near = "".join(f", perhaps {word}" for word in get_close_matches(name, VERBS, 1))
        raise ValueError(f"There is no verb {name!r}{near}; `{PROGRAM} --help` shows all.")
    as_json = "--json" in rest
    call = parsed(name, rest)
    from dpwg.cli.console import Bars, as_table, plain

    try:
        answer = call()
    finally:
        Bars.close()
    if answer is None:
        return 0
    try:
        told = json.dumps(plain(answer), indent=2, allow_nan=False) if as_json else as_table(answer)
        print(told, flush=True)
    except BrokenPipeError:  # who reads has seen enough, as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2 if isinstance(answer, dict) and answer.get("wrong") else 0


def parsed(name: str, words: Sequence[str]) -> Callable[[], Any]:
    """A verb with its options read, ready to run; `--json` is `main`'s."""
    import tyro

    words = [word for word in words if word != "--json"]

    function = getattr(importlib.import_module(f"dpwg.cli.{VERBS[name][0]}"), name)

    @functools.wraps(function)
    def ready(*given: Any, **options: Any) -> Callable[[], Any]:
        return functools.partial(function, *given, **options)

    signature = inspect.signature(function)
    if "settings" in signature.parameters and any(word.startswith("--preset") for word in words):
        from dpwg.cli.options import preset_settings

        settings = signature.parameters["settings"]
        settings = settings.replace(default=preset_settings(settings.default, words))
        changed = signature.parameters | {"settings": settings}
        ready.__signature__ = signature.replace(parameters=[*changed.values()])  # type: ignore[attr-defined]
    call: Callable[[], Any] = tyro.cli(
        ready,
        prog=f"{PROGRAM} {name}",
        args=words,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return call


def overview() -> str:
    """The verbs, a line each."""
    lines = "\n".join(f"  {name:10}  {text}" for name, (_, text) in VERBS.items())
    return (
        "DP-Wavelet: differentially private text-to-image generation from coarse to fine.\n\n"
        f"usage: {PROGRAM} VERB [options]\n\n{lines}\n\n"
        f"`{PROGRAM} VERB --help` shows a verb's options; `--json` after any prints one JSON value."
    )
