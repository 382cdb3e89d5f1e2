"""The folder of a run that may be interrupted: what is finished, one file for every group of layers."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.modules.quantization.targets import Target

SAMPLES = 4096
RUN = "run.json"


def fingerprint(values: Iterable[Any]) -> str:
    """Return a short text that tells data apart, from shapes and some entries of every tensor in it.

    Args:
        values: Tensors, in any nesting; numbers and texts count, too.
    """
    digest = hashlib.sha256()
    for leaf in tree_leaves(list(values)):
        if not isinstance(leaf, Tensor):
            digest.update(repr(leaf).encode() if isinstance(leaf, (int, float, str, bool)) else b"")
            continue
        entries = leaf.detach().reshape(-1)
        some = entries[:: max(1, len(entries) // SAMPLES)][:SAMPLES]
        digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
        digest.update(some.to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:32]


class Store:
    """Keeps solved groups of layers in a folder, each in a file that is there whole or not at all.

    Args:
        folder: The folder.
        settings: What results depend on: plain values by name.

    Raises:
        ValueError: If the folder holds a run with other settings.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]) -> None:
        self.folder = Path(folder)
        path = self.folder / RUN
        if path.exists():
            before = json.loads(path.read_text())
            changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
            if changed:
                raise ValueError(
                    f"{self.folder} holds a quantization that was begun with other {', '.join(changed)}. Go on with "
                    f"the same ones (a calibration loader must not shuffle anew, and the weights must be the original "
                    f"ones), give another folder, or remove this one"
                )
        else:
            with replacing_file(path) as part:
                part.write_text(json.dumps(settings, indent=1))

    def _path(self, targets: Sequence[Target]) -> Path:
        names = hashlib.sha256("\n".join(target.name for target in targets).encode()).hexdigest()[:16]
        return self.folder / f"{targets[0].name}-{names}.pt"

    def load(self, targets: Sequence[Target]) -> Any:
        """Return what was saved for a group, or ``None``.

        Args:
            targets: The group's targets.
        """
        path = self._path(targets)
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

    def save(self, targets: Sequence[Target], value: Any) -> None:
        """Save what a group has come to.

        Args:
            targets: The group's targets.
            value: Tensors, numbers and texts, in lists and dicts.
        """
        with replacing_file(self._path(targets)) as path:
            torch.save(value, path)
