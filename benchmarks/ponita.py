"""What PONITA costs beside other equivariant networks: python benchmarks/ponita.py [--quick] [--out FILE].

One thread, CPU time of the process, forward and backward pass on 16 complete graphs of 20 points, which all networks
map to a scalar and a vector for each point. Contestants take turns in random order, and ratios are taken within rounds,
so that a busy machine slows all alike. PONITA's two forms have the same weights and the same results; the unfused one
is its operators one by one. The two also run each in processes of its own, as a network is trained: there the system
hands large tensors' memory out anew in every pass. Networks of e3nn's tensor products take part if e3nn is installed.
Memory is what PyTorch's profiler counts in one pass. GPU numbers are estimates from the kernels' cost model and are
called so.
"""

import importlib.util
import multiprocessing
import statistics
from collections.abc import Callable
from typing import Any

import torch
from _measure import (
    PEAK_BANDWIDTH,
    arguments,
    conclude,
    cpu_seconds,
    milliseconds,
    peak,
    prepare,
    quotients,
    spread,
    take_turns,
)
from _ponita_rivals import EGNN, Points, TensorProductNetwork, points, unfused
from torch import Tensor, nn

from lightning_weights.kernels.fiber_conv import fiber_conv, fiber_conv_reference, sort_edges
from lightning_weights.kernels.fiber_conv.cost import cost, cost_composed
from lightning_weights.modules import Ponita

GRAPHS, NODES, LAYERS = 16, 20, 4
# grid, orientations, channels and basis functions of PONITA; halves of the cube and the icosahedron are opposite
SIZES = (
    ("platonic", 8, 64, 32),
    ("fibonacci", 8, 64, 32),
    ("platonic", 8, 64, 64),
    ("platonic", 12, 64, 64),
    ("fibonacci", 16, 64, 64),
)
LARGE = (20, 128, 256)  # the paper's, for the estimate
Network = Callable[[Points], tuple[Tensor, Tensor]]


def title(grid: str, orientations: int, channels: int, basis: int) -> str:
    """Return the name of a PONITA."""
    return f"PONITA {grid} O={orientations} C={channels} B={basis}"


AGAINST = [title(*sizes) for sizes in SIZES[:2]]  # as many parameters as e3nn's with l <= 2 and 32 channels


def networks() -> dict[str, tuple[Network, int]]:
    """Return every contestant as a function of points, with its number of parameters."""
    found = {name: form for sizes in SIZES for name, form in forms(*sizes).items()}
    rivals: dict[str, nn.Module] = {"EGNN, 64 wide": EGNN(64, LAYERS)}
    if importlib.util.find_spec("e3nn") is not None:
        rivals |= {
            f"e3nn, {channels} channels, l <= {lmax}": TensorProductNetwork(channels, lmax, LAYERS)
            for channels, lmax in ((64, 1), (32, 2), (64, 2))
        }
    return found | {name: (network, number_of_parameters(network)) for name, network in rivals.items()}


def forms(grid: str, orientations: int, channels: int, basis: int) -> dict[str, tuple[Network, int]]:
    """Return a PONITA, fused and unfused."""
    sizes = {"hidden_dim": channels, "basis_dim": basis, "num_layers": LAYERS, "num_orientations": orientations}
    network = Ponita(1, 1, 1, 1, **sizes, grid=grid, random_grid="off")
    name, count = title(grid, orientations, channels, basis), number_of_parameters(network)
    return {name: (fused(network), count), f"{name}, unfused": (unfused(network), count)}


def fused(network: Ponita) -> Network:
    """Return the network as a function of points."""
    return lambda x: network(x.charges, x.pos, x.edge_index, x.batch, x.velocities[:, None])


def number_of_parameters(network: nn.Module) -> int:
    """Count what is trained."""
    return sum(parameter.numel() for parameter in network.parameters())


def passes(network: Network, x: Points) -> Callable[[], None]:
    """Return a forward and a backward pass whose gradients belong to nobody afterwards."""

    def run() -> None:
        scalars, vectors = network(x)
        parameters = [leaf for leaf in leaves(scalars.grad_fn) if leaf is not None]
        torch.autograd.grad(scalars.square().mean() + vectors.square().mean(), parameters)

    return run


def leaves(node: Any) -> list[Tensor]:
    """Return the parameters that a result depends on."""
    seen, waiting, found = set(), [node], []
    while waiting:
        here = waiting.pop()
        if here is None or here in seen:
            continue
        seen.add(here)
        if hasattr(here, "variable"):
            found.append(here.variable)
        waiting += [following for following, _ in here.next_functions]
    return found


def measure_networks(rounds: int) -> list[dict[str, Any]]:
    """Return a row per contestant: time, ratios to the first two PONITAs and to its unfused form, and memory."""
    x, contestants = points(GRAPHS, NODES), networks()
    runs = {name: passes(network, x) for name, (network, _) in contestants.items()}
    for run in runs.values():
        run()
        run()
    # ahead of the times: it leaves a heap of which malloc gives little back, and page faults are no arithmetic
    peaks = {name: peak(run) for name, run in runs.items()}
    times = take_turns(runs, rounds)
    rows = []
    for name, own in times.items():
        row = {"name": name, "parameters": contestants[name][1], "ms": milliseconds(own), "peak": peaks[name]}
        row["slower"] = {against: quotients(own, times[against]) for against in AGAINST}
        slow = f"{name}, unfused"
        if slow in times:
            row["fused"] = {**quotients(times[slow], own), "memory": peaks[slow] / peaks[name]}
        rows.append(row)
    return rows


def measure_alone(processes: int) -> list[dict[str, Any]]:
    """Return how much longer the unfused form takes, each in so many new processes, which take turns."""
    rows, context = [], multiprocessing.get_context("spawn")
    for sizes in SIZES:
        times: dict[str, list[float]] = {name: [] for name in forms(*sizes)}
        for _ in range(processes):
            for name, own in times.items():
                with context.Pool(1) as pool:
                    own.append(pool.apply(time_alone, (sizes, name)))
        own, other = times.values()
        row = {"name": title(*sizes), "ms": milliseconds(own), "unfused ms": milliseconds(other)}
        rows.append({**row, **quotients(other, own)})
    return rows


def time_alone(sizes: tuple[str, int, int, int], name: str) -> float:
    """Return a form's median time in this process."""
    prepare()
    run = passes(forms(*sizes)[name][0], points(GRAPHS, NODES))
    return statistics.median([cpu_seconds(run) for _ in range(15)][3:])


def measure_operator(rounds: int) -> list[dict[str, Any]]:
    """Return the convolution's times and differences from its composition, forward and backward."""
    rows = []
    for grid, orientations, channels, basis in SIZES:
        x = points(GRAPHS, NODES)
        edges, count = sort_edges(x.edge_index, len(x.pos)), len(x.pos)
        seen = orientations // 2 if grid == "platonic" else orientations
        shapes = ((count, orientations, channels), (x.edge_index.shape[1], seen, basis), (channels, basis))
        shapes += ((orientations, orientations, channels), (channels,))
        operands = [torch.randn(shape, requires_grad=True) for shape in shapes]
        upstream = torch.randn(shapes[0])

        def gradients(function: Any, operands: Any = operands, edges: Any = edges, upstream: Any = upstream) -> Any:
            return torch.autograd.grad(function(*operands, edges=edges), operands, upstream)

        functions = {"operator": fiber_conv, "composition": fiber_conv_reference}
        first, second = (gradients(function) for function in functions.values())
        times = take_turns({name: lambda f=f: gradients(f) for name, f in functions.items()}, rounds)
        row = {name: milliseconds(seconds) for name, seconds in times.items()}
        difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(first, second, strict=True))
        sizes = title(grid, orientations, channels, basis).removeprefix("PONITA ")
        ratio = quotients(times["composition"], times["operator"])
        rows.append({"sizes": sizes, **row, **ratio, "difference": difference})
    return rows


def estimates() -> dict[str, Any]:
    """Return bytes per message and time at peak bandwidth of the paper's sizes, for GPUs that nobody measured here."""
    orientations, channels, basis = LARGE
    sizes = (GRAPHS * NODES, GRAPHS * NODES**2, orientations, channels, basis)
    moved = {
        name: sum(part.bytes_read + part.bytes_written for part in model(*sizes))
        for name, model in (("fused", cost), ("composed", cost_composed))
    }
    return {
        "bytes per message": {name: value / (sizes[1] * orientations * channels) for name, value in moved.items()},
        "microseconds": {
            gpu: {name: 1e6 * value / bandwidth for name, value in moved.items()}
            for gpu, bandwidth in PEAK_BANDWIDTH.items()
        },
    }


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"\nforward and backward, {GRAPHS} complete graphs of {NODES} points; time over that of {AGAINST[0]}")
    print(f"and of {AGAINST[1]}: medians (quartiles); then the unfused form's time and peak memory over the")
    print("fused one's")
    for row in result["networks"]:
        own = row.get("fused")
        tail = "" if own is None else f"  fused x {spread(own)}, memory / {own['memory']:.1f}"
        print(
            f"  {row['name']:42} {row['parameters']:7d} parameters {row['ms']:8.1f} ms  "
            f"x {'  x '.join(map(spread, row['slower'].values()))}  peak {row['peak'] / 2**20:6.1f} MiB{tail}"
        )
    print("\neach form in processes of its own: unfused / fused")
    for row in result["alone"]:
        print(f"  {row['name']:42} {row['unfused ms']:7.1f} ms / {row['ms']:7.1f} ms = {spread(row)}")
    print("\none convolution, forward and backward: composition / operator")
    for row in result["operator"]:
        print(
            f"  {row['sizes']:26} {row['composition']:7.1f} ms / {row['operator']:7.1f} ms = {spread(row)}, largest "
            f"difference {row['difference']:.1e}"
        )
    estimate = result["estimates"]
    per_message = ", ".join(f"{name} {value:.1f}" for name, value in estimate["bytes per message"].items())
    print(f"\nestimate, not measured: bytes per message of both passes, the paper's sizes: {per_message}")
    for gpu, times in estimate["microseconds"].items():
        print(f"  {gpu:10}  {times['fused']:7.0f} us (estimate), composed {times['composed']:7.0f} us (estimate)")


def main() -> None:
    """Measure, print and write."""
    options = arguments("ponita", __doc__).parse_args()
    prepare()
    rounds = 5 if options.quick else 25
    networks_first = measure_networks(rounds)
    result = {"networks": networks_first, "alone": measure_alone(2 if options.quick else 5)}
    result |= {"operator": measure_operator(rounds), "estimates": estimates()}
    conclude(options, result, report)


if __name__ == "__main__":
    main()
