"""Print what every kernel compiles to on every GPU target: ``python -m lightning_weights.kernels``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lightning_weights.kernels._aot import as_markdown, tabulate


def main() -> int:
    """Print the table of compiled kernels.

    Returns:
        Exit code: 1 if a gate fails, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m lightning_weights.kernels", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table, with all its fields, to FILE")
    parser.add_argument("--quick", action="store_true", help="the first variant of every kernel only")
    arguments = parser.parse_args()
    reports = tabulate(arguments.quick)
    if arguments.json:
        arguments.json.write_text(json.dumps(reports, indent=1))
    print(as_markdown(reports))
    for report in reports:
        for failure in report["failures"]:
            blocks = "full" if report["even"] else "tail"
            print(
                f"{report['kernel']} ({report['variant']}, {blocks}) on {report['target']}: {failure}", file=sys.stderr
            )
    return int(any(report["failures"] for report in reports))


if __name__ == "__main__":
    sys.exit(main())
