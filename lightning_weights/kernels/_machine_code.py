"""What a kernel's machine code tells about it: registers, spills, widths of accesses and instructions."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path
from typing import NamedTuple


class MachineCode(NamedTuple):
    """One compiled kernel.

    Args:
        registers: Registers per thread.
        spills: Spilled registers or stack bytes.
        opcodes: All instructions, in order.
        wide_load: Pattern of a 128-bit load from global memory.
        wide_store: Pattern of a 128-bit store.
    """

    registers: int
    spills: int
    opcodes: list[str]
    wide_load: str
    wide_store: str

    def facts(self) -> dict[str, int]:
        """Return the numbers that a report shows."""
        wide = (sum(bool(re.match(pattern, opcode)) for opcode in self.opcodes) for pattern in self[3:])
        return dict(
            zip(("registers", "spills", "wide_loads", "wide_stores"), (self.registers, self.spills, *wide), strict=True)
        )


@functools.cache
def _cuobjdump() -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def read_nvidia(cubin: bytes, folder: Path) -> MachineCode:
    """Disassemble a kernel for NVIDIA GPUs.

    Args:
        cubin: Binary.
        folder: Where to put it for the disassembler.

    Returns:
        What it contains. Copies into shared memory that bypass registers count as loads.
    """
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    usage, sass = (
        subprocess.run([_cuobjdump(), flag, str(path)], capture_output=True, text=True, check=True).stdout
        for flag in ("--dump-resource-usage", "-sass")
    )
    resources = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", sass)
    # The stack and its opcodes show spills; cuobjdump's LOCAL stays zero even with kilobytes of them.
    spills = resources["STACK"] + sum(opcode.startswith(("LDL", "STL")) for opcode in opcodes)
    return MachineCode(resources["REG"], spills, opcodes, r"LDG.*\.128", r"STG.*\.128")


def read_amd(amdgcn: str) -> MachineCode:
    """Read a kernel for AMD GPUs.

    Args:
        amdgcn: Assembly.

    Returns:
        What it contains.
    """
    names = (r"\.vgpr_count", r"\.vgpr_spill_count", r"\.sgpr_spill_count", "ScratchSize")
    registers, *spills = (int(re.findall(rf"{name}:\s+(\d+)", amdgcn)[-1]) for name in names)
    opcodes = re.findall(r"^\s*([a-z]\w+)", amdgcn, re.MULTILINE)
    return MachineCode(registers, sum(spills), opcodes, "(global|buffer)_load_dwordx4", "(global|buffer)_store_dwordx4")
