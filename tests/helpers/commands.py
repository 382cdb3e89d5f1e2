"""Command lines that are quick to parse."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from lightning_weights.__main__ import main
from lightning_weights.cli import CommandLine


def keep_commands(patch: Any, *names: str) -> None:
    """Leave all other commands out: their parsers take the same arguments, and making them is most of a test's time."""
    every, add = CommandLine.subcommands(), CommandLine._add_runner
    kept = {name: skipped for name, skipped in every.items() if name in names}

    def add_kept(self: CommandLine, parser: Any, name: str, *rest: Any) -> None:
        if name in names:
            add(self, parser, name, *rest)

    patch.setattr(CommandLine, "subcommands", staticmethod(lambda: kept))
    patch.setattr(CommandLine, "_add_runner", add_kept)


def print_completion(path: Path) -> None:
    """Write the script with which bash completes `fit` and the package's own commands."""
    keep_commands(pytest.MonkeyPatch(), "fit", "increments", "quantize", "stack")
    with path.open("w") as file, contextlib.redirect_stdout(file):
        main(["--print_completion", "shtab-bash"])
