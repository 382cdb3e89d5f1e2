"""What this machine offers: versions, GPU, optional packages, and the path that each operator takes."""

import importlib.metadata
import os
import platform
import subprocess
import textwrap
from collections.abc import Iterator

import torch

from lightning_weights import __version__
from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels._aot import as_markdown, tabulate
from lightning_weights.kernels._op import ENVIRONMENT_VARIABLE, takes_triton
from lightning_weights.methods import METHODS

OPTIONAL_PACKAGES = (
    "triton",
    "peft",
    "e3nn",
    "bitsandbytes",
    "transformers",
    "gguf",
    "scikit-learn",
    "mnist1d",
    "pillow",
    "rdkit",
    "matplotlib",
    "rich",
    "shtab",
)


def examine() -> Iterator[str]:
    """Yield a report for terminals of 80 columns and for bug reports, part by part.

    The last part is the table of kernels compiled ahead of time for all GPU targets, which takes a minute or two,
    or the reason why it cannot be made here.

    Examples:
        >>> from lightning_weights.doctor import examine
        >>> next(examine()).splitlines()[0].split()[0]
        'lightning-weights'
    """
    yield _versions()
    yield _optional_packages()
    yield _operators()
    yield _compiled_kernels()


def _versions() -> str:
    facts = {
        "lightning-weights": __version__,
        "python": platform.python_version(),
        **{name: _version(name) or "not installed" for name in ("torch", "lightning", "torchmetrics", "jsonargparse")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "GPU": ", ".join(_gpus()) or "none",
    }
    return "\n".join(_line(name, fact) for name, fact in facts.items())


def _line(name: str, fact: str) -> str:
    return textwrap.fill(f"{name:<18} {fact}", 80, subsequent_indent=" " * 19, break_on_hyphens=False)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    if not torch.accelerator.is_available():
        return []
    device = torch.accelerator.current_accelerator()
    # not every backend names its devices
    name_of = getattr(torch.get_device_module(device), "get_device_name", lambda index: device.type)
    return [name_of(index) for index in range(torch.accelerator.device_count())]


def _optional_packages() -> str:
    rows = [_line(name, _version(name) or f"missing: pip install {name}") for name in OPTIONAL_PACKAGES]
    return "\n".join(["Optional packages", *rows])


def _operators() -> str:
    devices = ["cpu"]
    if torch.accelerator.is_available():
        devices.append(torch.accelerator.current_accelerator().type)
    rows = [
        _line(op, f"{device}: {_path(device)}")
        for op in dict.fromkeys(op for card in METHODS for op in card.ops)
        for device in devices
    ]
    mode = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    return "\n".join([textwrap.fill(f"Operators ({ENVIRONMENT_VARIABLE}={mode})", 80), *rows])


def _path(device: str) -> str:
    try:
        return "triton" if takes_triton(device, []) else "eager"
    except (KernelUnavailableError, ValueError) as error:
        return f"not available: {error}"


def _compiled_kernels() -> str:
    try:
        table = as_markdown(tabulate())
    except (KernelUnavailableError, ImportError, FileNotFoundError, subprocess.CalledProcessError) as error:
        table = textwrap.fill(f"not available here: {error}", 80)
    return f"Kernels compiled ahead of time\n\n{table}"
