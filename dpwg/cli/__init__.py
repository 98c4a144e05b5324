"""The command line. Every verb prints for people, or one JSON value with `--json`.

A verb is an `add_…`, which names it and its arguments, and below it the function that runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from dpwg.cli import data, family, finetune, measure, train, use
from dpwg.cli.console import plain, table
from dpwg.cli.options import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns 0; or 2 after one clear line on bad input, or a report of faults.

    Raises ModuleNotFoundError where a package is missing, and SystemExit(2) where no such verb or
    option can be parsed.

    `data check` is the verb `check`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:2] == ["data", "check"]:
        del words[0]
    options = parser().parse_args(words)
    try:
        answer = options.run(options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise  # a package of requirements.txt: `dpwg.launch` tells
        print(f"dpwg: {error}", file=sys.stderr)
        return 2
    if answer is None:
        return 0
    try:
        if options.json:
            print(json.dumps(plain(answer), indent=2, allow_nan=False), flush=True)
        else:
            print(table(answer), flush=True)
    except BrokenPipeError:  # who reads has seen enough, as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2 if isinstance(answer, dict) and answer.get("wrong") else 0


class _Parser(argparse.ArgumentParser):
    """Faults in one line, a mistyped option before what is then missing."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        known = list(self._option_string_actions)
        for word in args or ():
            name, *_ = word.split("=")
            if self._subparsers or word in ("--", "-h", "--help"):
                break  # a verb's own words, or none that matter
            if not name.startswith("--") or " " in name:
                continue  # a value
            if not any(own.startswith(name) for own in known):
                near = get_close_matches(name, known, 1, cutoff=0.7)
                found = f"{name!r:.80}" + "".join(f"; near it is {own}" for own in near)
                self.error(f"Expected an option of this verb, found {found}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"dpwg: {message}. `{self.prog} --help` shows what there is.\n")


def parser() -> argparse.ArgumentParser:
    """The parser of every verb, in the order that the help shows them."""
    commands = _Parser(
        prog="python -m dpwg", description="Differentially private text-to-image generation."
    )
    verbs = commands.add_subparsers(required=True, metavar="verb")

    def verb(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        command = verbs.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print one JSON value")
        command.set_defaults(run=run, verb=command)
        return command

    data.add_data(verb)
    data.add_check(verb)
    family.add_train(verb)
    train.add_tokenizer(verb)
    train.add_upsampler(verb)
    train.add_pretrain(verb)
    train.add_reranker(verb)
    finetune.add_finetune(verb)
    use.add_sample(verb)
    use.add_push(verb)
    use.add_space(verb)
    use.add_list(verb)
    use.add_account(verb)
    measure.add_bench(verb)
    measure.add_evaluate(verb)
    measure.add_audit(verb)
    measure.add_readme(verb)
    return commands
