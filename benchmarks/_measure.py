"""What every benchmark shares: contestants in turn on one thread, ratios within rounds, the machine, a JSON file.

CPU time of the process counts. All contestants run once per round, in random order, since what ran before decides what
is in the cache; a busy machine slows all of them alike, so that ratios within rounds are what can be compared.
"""

import json
import platform
import random
import statistics
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

PEAK_BANDWIDTH = {"A100 80 GB": 2.0e12, "H100 SXM": 3.35e12, "B200": 8.0e12, "MI300X": 5.3e12}  # bytes per second


def arguments(key: str, description: str | None) -> ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fraction of the rounds")
    default = Path("results") / key / "benchmark.json"
    parser.add_argument("--out", type=Path, default=default, help="file to write (%(default)s)")
    return parser


def prepare() -> None:
    """Take one thread, and the same random numbers every time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)


def conclude(options: Namespace, result: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    """Print where the numbers come from and what they are, and write them."""
    result = {"machine": machine(), **result}
    print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    report(result)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))


def cpu_seconds(run: Callable[[], Any]) -> float:
    """Return the CPU time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def peak(run: Callable[[], Any]) -> int:
    """Return how many bytes more than before are in use at the worst moment of a call."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for change in sorted(changes, key=lambda change: change.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return most


def take_turns(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of every contestant in every round."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            times[name].append(cpu_seconds(contestants[name]))
    return times


def quotients(seconds: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles, over the rounds, of a contestant's time divided by another one's."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(seconds, others, strict=True)], n=4)
    return {"ratio": middle, "ratio_q1": low, "ratio_q3": high}


def milliseconds(seconds: Sequence[float]) -> float:
    """Return the median."""
    return 1e3 * statistics.median(seconds)


def spread(row: Mapping[str, Any]) -> str:
    """Format what `quotients` returned."""
    return f"{row['ratio']:5.2f} ({row['ratio_q1']:.2f}-{row['ratio_q3']:.2f})"


def machine() -> dict[str, Any]:
    """Describe where the numbers come from."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cpus": len(models),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
