"""What a kernel's machine code tells about it: registers, spills, widths of accesses and instructions."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Sequence
from itertools import islice
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


INSTRUCTION = 16  # bytes, on every NVIDIA GPU since compute capability 7.0


def read_nvidia(cubins: Sequence[bytes], target: str, folder: Path) -> list[MachineCode]:
    """Disassemble kernels for one kind of NVIDIA GPU.

    Args:
        cubins: Binaries.
        target: What they were compiled for: ``sm_90``.
        folder: Where to put them for the disassembler.

    Returns:
        What each contains. Copies into shared memory that bypass registers count as loads.
    """
    texts = [_text(cubin) for cubin in cubins]
    path = folder / "kernels.bin"
    path.write_bytes(b"".join(texts))
    # all at once: the disassembler takes far longer to start than to read a kernel
    sass = _run("nvdisasm", "--binary", target.replace("sm_", "SM"), str(path))
    found = iter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", sass))
    opcodes = [list(islice(found, len(text) // INSTRUCTION)) for text in texts]
    if sum(map(len, opcodes)) * INSTRUCTION != path.stat().st_size or next(found, None) is not None:
        raise ValueError(f"nvdisasm printed other instructions than the {path.stat().st_size} bytes of {path} hold")
    return [_machine_code(cubin, own, folder) for cubin, own in zip(cubins, opcodes, strict=True)]


def _text(cubin: bytes) -> bytes:
    """Return the instructions in a cubin, an ELF file of 64 bits: those of its sections named ``.text.*``."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, index = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + place * size) for place in range(count)]
    names = cubin[sections[index][4] :]
    return b"".join(
        cubin[start : start + length] for name, _, _, _, start, length in sections if names.startswith(b".text.", name)
    )


def _machine_code(cubin: bytes, opcodes: list[str], folder: Path) -> MachineCode:
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    usage = _run("cuobjdump", "--dump-resource-usage", str(path))
    resources = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    # The stack and its opcodes show spills; cuobjdump's LOCAL stays zero even with kilobytes of them.
    spills = resources["STACK"] + sum(opcode.startswith(("LDL", "STL")) for opcode in opcodes)
    return MachineCode(resources["REG"], spills, opcodes, r"LDG.*\.128", r"STG.*\.128")


def _run(tool: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True).stdout


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
