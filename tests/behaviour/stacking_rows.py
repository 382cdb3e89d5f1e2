"""Rows of the battery for predictions on disk: a callback that changes nothing, and whose rows are one per sample."""

import tempfile
from pathlib import Path

from tests.helpers.battery import Setup, Subject

_EXACT = ("lightning_weights.callbacks.ExactResume", {})
_FILE = str(Path(tempfile.gettempdir(), "lightning_weights_battery", "oof.pt"))  # the same in every process

SUBJECTS: dict[str, Subject] = {
    "lightning_weights.callbacks.CollectOOF": Subject(
        {
            "path": "folds/fold_0.pt",
            "dataloader_idx": 1,
            "id_key": "id",
            "prediction_key": "logits",
            "target_key": "y",
            "monitor": "val/r2",
            "mode": "max",
        },
        wrong=("stage", "fit"),
    ),
}

SETUPS: tuple[Setup, ...] = (
    Setup(
        "regularized_stacking",
        ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9}),
        (("lightning_weights.callbacks.CollectOOF", {"path": _FILE, "dataloader_idx": 1}), _EXACT),
    ),
)
