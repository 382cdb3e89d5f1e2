"""Ahead-of-time proof: every kernel is compiled for every target, and the machine code read and judged, without a GPU.

An op takes part by being a folder with a ``kernel.py`` that defines ``aot_rows(warp_size) -> list[Row]``. The table
must be made in a process without Triton's interpreter: kernels decorated for it cannot be compiled.
"""

from __future__ import annotations

import importlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_weights.errors import KernelUnavailableError, MissingDependencyError
from lightning_weights.kernels._machine_code import MachineCode, read_amd, read_nvidia
from lightning_weights.kernels._op import interpreting, triton_installed

KERNEL_MODULES = tuple(
    f"lightning_weights.kernels.{path.parent.name}.kernel" for path in sorted(Path(__file__).parent.glob("*/kernel.py"))
)
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
SHARED_LIMITS = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}


@dataclass(frozen=True)
class Row:
    """One variant of a kernel and what its machine code must look like.

    Args:
        name: Variant, as the table prints it.
        kernel: The ``@triton.jit`` function.
        signature: Type of each run-time argument: ``fp32``, ``i32``, ``i32:16`` for a multiple of 16, or a 16-byte
            aligned pointer, ``*fp32``, ``*i64``.
        constexprs: Values of the compile-time arguments.
        num_warps: Warps per program.
        registers: Budget of registers per thread.
        even: Whether the variant is the unmasked one, whose accesses must all be 128 bits wide.
        loads: Bytes that each vector load of a program moves, as in the kernel's cost model.
        stores: Bytes that each vector store of a program moves.
        wide_loads: Exact number of 128-bit loads per target, where the bytes do not give it: pipelined loops repeat
            their loads, and short vectors are loaded by many threads at once.
        wide_stores: The same for 128-bit stores: where matrix cores leave a result, it may go out in narrower ones.
        opcodes: Start of an instruction that must occur, per target: tensor cores where a product promises them.
        num_stages: Stages of software pipelining; None for Triton's default.
        fp_fusion: Whether products and sums may be fused, as at the launch.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    registers: int
    even: bool
    loads: tuple[int, ...]
    stores: tuple[int, ...]
    wide_loads: Mapping[str, int] = field(default_factory=dict)
    wide_stores: Mapping[str, int] = field(default_factory=dict)
    opcodes: Mapping[str, str] = field(default_factory=dict)
    num_stages: int | None = None
    fp_fusion: bool = False


@dataclass(frozen=True)
class Report:
    """What one variant compiled to for one target.

    Args:
        kernel: Name of the kernel.
        variant: Name of the variant.
        even: Whether it is the unmasked variant.
        target: ``sm_90``, ``gfx942`` ...
        registers: Registers per thread.
        spills: Spilled registers or stack bytes.
        shared: Bytes of shared memory.
        wide_loads: 128-bit load instructions.
        wide_stores: 128-bit store instructions.
        vector_loads: Vector loads in the kernel's intermediate code.
        vector_stores: Vector stores in the kernel's intermediate code.
        failures: Gates that do not hold, in words.
    """

    kernel: str
    variant: str
    even: bool
    target: str
    registers: int
    spills: int
    shared: int
    wide_loads: int
    wide_stores: int
    vector_loads: int
    vector_stores: int
    failures: list[str] = field(default_factory=list)


def tabulate(quick: bool = False) -> list[dict[str, Any]]:
    """Compile all kernels for all targets.

    Args:
        quick: Take the first variant of every kernel only.

    Returns:
        One plain dictionary with the fields of `Report` per kernel, variant and target.

    Raises:
        MissingDependencyError: If triton is not installed.
        KernelUnavailableError: If Triton's interpreter is switched on in this process.
    """
    if not triton_installed():
        raise MissingDependencyError("triton", "triton", "The table of compiled kernels")
    if interpreting():
        raise KernelUnavailableError("kernels cannot be compiled under Triton's interpreter: unset TRITON_INTERPRET")
    previous = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            return [asdict(report) for report in _reports(Path(folder), quick)]
        finally:
            os.environ.pop("TRITON_CACHE_DIR")
            if previous is not None:
                os.environ["TRITON_CACHE_DIR"] = previous


def as_markdown(reports: list[dict[str, Any]]) -> str:
    """Format the table for terminals of 80 columns and for the documentation.

    Args:
        reports: What [`tabulate`][] returned.

    Returns:
        A markdown table per kernel; cells read "registers / 128-bit loads / 128-bit stores".
    """
    return "\n\n".join(
        f"`{kernel}`: registers / 128-bit loads / 128-bit stores\n\n"
        + _table([report for report in reports if report["kernel"] == kernel])
        for kernel in dict.fromkeys(report["kernel"] for report in reports)
    )


def _table(reports: list[dict[str, Any]]) -> str:
    rows: dict[str, dict[str, str]] = {}
    for report in reports:
        cell = f"{report['registers']} / {report['wide_loads']} / {report['wide_stores']}"
        variant = f"{report['variant']} {'full' if report['even'] else 'tail'}"
        rows.setdefault(variant, {})[report["target"]] = "**fails**" if report["failures"] else cell
    width = max(map(len, rows))
    lines = [["variant".ljust(width), *(target.ljust(10) for target in TARGETS)]]
    lines += [["-" * width, *("-" * 10 for _ in TARGETS)]]
    lines += [
        [variant.ljust(width), *(cells.get(target, "").ljust(10) for target in TARGETS)]
        for variant, cells in rows.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _reports(folder: Path, quick: bool) -> Iterator[Report]:
    rows = [
        (row, target)
        for module in KERNEL_MODULES
        for target, (_, _, warp_size) in TARGETS.items()
        for row in _rows(module, warp_size, quick)
    ]
    binaries = [_compile(row, target) for row, target in rows]
    codes: dict[int, MachineCode] = {}
    for target, (backend, _, _) in TARGETS.items():
        places = [place for place, (_, its_target) in enumerate(rows) if its_target == target]
        if backend == "cuda":
            read = read_nvidia([binaries[place].asm["cubin"] for place in places], target, folder)
        else:
            read = [read_amd(binaries[place].asm["amdgcn"]) for place in places]
        codes.update(zip(places, read, strict=True))
    for place, (row, target) in enumerate(rows):
        yield _judge(row, target, binaries[place], codes[place])


def _rows(module: str, warp_size: int, quick: bool) -> list[Row]:
    rows: list[Row] = importlib.import_module(module).aot_rows(warp_size)
    return list({row.kernel: row for row in reversed(rows)}.values()) if quick else rows


def _judge(row: Row, target: str, binary: Any, code: MachineCode) -> Report:
    facts, opcode = code.facts(), row.opcodes.get(target, "")
    vector = {
        way: len(re.findall(rf"tt\.{way} .*: tensor<[\dx]+!tt\.ptr", binary.asm["ttir"])) for way in ("load", "store")
    }
    threads = row.num_warps * TARGETS[target][2]
    loads, stores = (sum(moved) // (16 * threads) for moved in (row.loads, row.stores))
    loads, stores = row.wide_loads.get(target, loads), row.wide_stores.get(target, stores)
    gates = {
        f"{facts['spills']} spills": facts["spills"] == 0,
        f"{facts['registers']} registers, budget {row.registers}": facts["registers"] <= row.registers,
        f"{binary.metadata.shared} bytes of shared memory": binary.metadata.shared <= SHARED_LIMITS[target],
        f"{vector['load']} vector loads, cost model {len(row.loads)}": vector["load"] == len(row.loads),
        f"{vector['store']} vector stores, cost model {len(row.stores)}": vector["store"] == len(row.stores),
        f"{facts['wide_loads']} loads of 128 bits instead of {loads}": not row.even or facts["wide_loads"] == loads,
        f"{facts['wide_stores']} stores of 128 bits instead of {stores}": not row.even
        or facts["wide_stores"] == stores,
        f"no instruction {opcode}": any(instruction.startswith(opcode) for instruction in code.opcodes),
    }
    return Report(
        kernel=row.kernel.fn.__name__,
        variant=row.name,
        even=row.even,
        target=target,
        shared=binary.metadata.shared,
        vector_loads=vector["load"],
        vector_stores=vector["store"],
        failures=[gate for gate, holds in gates.items() if not holds],
        **facts,
    )


def _compile(row: Row, target: str) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget

    names = row.kernel.arg_names
    types = {name: row.signature.get(name, "constexpr") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if re.match(r"\*|.*:16$", types[name])}
    signature = {name: kind.removesuffix(":16") for name, kind in types.items()}
    source = triton.compiler.ASTSource(fn=row.kernel, signature=signature, constexprs=row.constexprs, attrs=aligned)
    options = {"num_warps": row.num_warps, "enable_fp_fusion": row.fp_fusion}
    if row.num_stages is not None:
        options["num_stages"] = row.num_stages
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
