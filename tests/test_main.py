"""The commands beside LightningCLI's: what they print, and what they answer to arguments that they don't take."""

import sys

import pytest

from lightning_weights import doctor
from lightning_weights.__main__ import main
from lightning_weights.methods import METHODS, describe_methods


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command line, without compiling kernels, and return its exit code, output and errors."""
    monkeypatch.setattr(doctor, "tabulate", list)

    def call(*arguments):
        try:
            main(list(arguments))
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def test_methods_prints_the_cards(command):
    code, printed, error = command("methods")
    assert (code, printed, error) == (0, describe_methods() + "\n", "")
    assert [line for line in printed.splitlines() if line[:1].strip()] == [card.key for card in METHODS]
    assert max(map(len, printed.splitlines())) <= 80


def test_methods_prints_the_cards_asked_for(command):
    code, printed, error = command("methods", "glow", "classp")
    assert (code, error) == (0, "")
    assert [line for line in printed.splitlines() if line[:1].strip()] == ["glow", "classp"]
    assert all(block in describe_methods() for block in printed.strip().split("\n\n"))


def test_unknown_methods_are_named_beside_the_known_ones(command):
    code, printed, error = command("methods", "clasp")
    assert (code, printed) == (2, "")
    assert "key is 'clasp'; allowed are 'classp', " in error


def test_doctor_prints_every_part(command):
    code, printed, error = command("doctor")
    assert (code, error) == (0, "")
    headings = (
        "lightning-weights ",
        "\n\nOptional packages\n",
        "\n\nOperators (",
        "\n\nKernels compiled ahead of time\n",
    )
    places = [printed.find(heading) for heading in headings]
    assert places[0] == 0
    assert places == sorted(set(places))
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize("name", ["methods", "doctor"])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_given_instead_of_the_report(command, name, option):
    code, printed, error = command(name, option)
    assert (code, error) == (0, "")
    assert printed.splitlines()[0] == f"usage: lightning-weights {name} [-h]{' [key ...]' * (name == 'methods')}"
    assert "Operators" not in printed
    assert METHODS[0].arxiv not in printed


@pytest.mark.parametrize(
    ("name", "usage", "surprise"),
    [("methods", " [key ...]", "--verbose"), ("doctor", "", "classp"), ("doctor", "", "--verbose")],
)
def test_arguments_that_are_not_taken_are_named(command, name, usage, surprise):
    code, printed, error = command(name, surprise)
    assert (code, printed) == (2, "")
    assert error.splitlines() == [
        f"usage: lightning-weights {name} [-h]{usage}",
        f"lightning-weights {name}: error: unrecognized arguments: {surprise}",
    ]


def test_arguments_are_taken_from_the_process(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lightning-weights", "methods"])
    main()
    assert capsys.readouterr().out == describe_methods() + "\n"


@pytest.mark.parametrize("arguments", [[], ["fit", "doctor"], ["--help"], None])
def test_everything_else_goes_to_the_trainer_command_line(monkeypatch, arguments):
    seen = []
    monkeypatch.setattr("lightning_weights.cli.run", seen.append)
    monkeypatch.setattr(sys, "argv", ["lightning-weights", "validate"])
    main(arguments)
    assert seen == [arguments]
