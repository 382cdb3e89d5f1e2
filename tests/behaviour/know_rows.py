"""Rows of the battery for forgetting, and for fits that begin with predicted weights."""

from pathlib import Path

from tests.helpers.battery import Setup, Subject

# what write_predicted wrote of two_layers under "net", drawn anew
PREDICTED = Path(__file__).parent / "data" / "predicted.safetensors"

_EXACT = ("lightning_weights.callbacks.ExactResume", {})
_SGD = ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9})
_FORGETTING = "lightning_weights.callbacks.ProgressiveForgetting"
_TWO_SESSIONS = {"rate": 0.5, "sessions": 2, "epochs_per_session": [2, 2], "subset_seed": 3}

SUBJECTS: dict[str, Subject] = {
    _FORGETTING: Subject(
        {
            "rate": 0.3,
            "sessions": 2,
            "epochs_per_session": [2, 1],
            "subset_seed": 3,
            "carry_optimizer": False,
            "snapshot_dir": "snapshots",
        },
        wrong=("sessions", "many"),
    ),
    "lightning_weights.callbacks.KnowledgeOverflowInit": Subject(
        {
            "path": "predicted.safetensors",
            "bank": "bank.safetensors",
            "recursions": 3,
            "exclude": ["head"],
            "strict": True,
            "warmup_epochs": 2,
            "warmup_trainable": "all",
            "reestimate_batches": 5,
        },
        wrong=("warmup_trainable", "norm"),
    ),
}

SETUPS: tuple[Setup, ...] = (
    Setup(
        "know",
        _SGD,
        (
            (_FORGETTING, {**_TWO_SESSIONS, "carry_optimizer": False}),
            (
                "lightning_weights.callbacks.KnowledgeOverflowInit",
                {"path": str(PREDICTED), "exclude": ["net.3"], "warmup_epochs": 1},
            ),
            _EXACT,
        ),
        epochs=4,
        refuses={"no matrices": ValueError},
    ),
)

VARIANTS: tuple[Setup, ...] = (Setup("know_carry", _SGD, ((_FORGETTING, _TWO_SESSIONS), _EXACT), epochs=4),)
