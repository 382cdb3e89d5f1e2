"""Entry point of ``lightning-weights`` and ``python -m lightning_weights``."""

import argparse
import sys


def main(args: list[str] | None = None) -> None:
    """Run one command: ``methods``, ``doctor``, or one of LightningCLI's, such as ``fit`` and ``validate``.

    Args:
        args: Command line without the program's name; ``sys.argv`` by default.
    """
    command, *rest = (sys.argv[1:] if args is None else args) or [""]
    if command == "methods":
        _expect_no_arguments(command, "List the methods and what was measured.", rest)
        from lightning_weights.methods import describe_methods

        print(describe_methods())
    elif command == "doctor":
        _expect_no_arguments(command, "Tell which kernels run on this machine.", rest)
        from lightning_weights.doctor import examine

        for part in examine():
            print(part, end="\n\n", flush=True)
    else:
        from lightning_weights.cli import run

        run(args)


def _expect_no_arguments(command: str, description: str, rest: list[str]) -> None:
    argparse.ArgumentParser(prog=f"lightning-weights {command}", description=description).parse_args(rest)


if __name__ == "__main__":
    main()
