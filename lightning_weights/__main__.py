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
        from lightning_weights.methods import describe_methods

        parser = _parser(command, "List the methods and what was measured.")
        parser.add_argument("keys", nargs="*", metavar="key", help="of a method, such as classp; all by default")
        try:
            print(describe_methods(parser.parse_args(rest).keys))
        except ValueError as error:
            parser.error(str(error))
    elif command == "doctor":
        _parser(command, "Tell which kernels run on this machine.").parse_args(rest)
        from lightning_weights.doctor import examine

        for part in examine():
            print(part, end="\n\n", flush=True)
    else:
        from lightning_weights.cli import run

        run(args)


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"lightning-weights {command}", description=description)


if __name__ == "__main__":
    main()
