"""Rows of the battery for networks that begin with a learngene: see subjects.py."""

from pathlib import Path

from torch import nn

from tests.helpers.battery import Setup, Subject

# what extract_learngene gave for three_layers with share_stages(network, "1", (2, 1)) and torch.manual_seed(0)
LEARNGENE = Path(__file__).parent / "data" / "learngene.safetensors"

SUBJECTS: dict[str, Subject] = {
    "lightning_weights.callbacks.LearngeneInit": Subject(
        {
            "path": "learngene.safetensors",
            "layers": "1",
            "mapping": [0, 0, 1],
            "copy_head": False,
            "resize_positions": True,
            "network": "net",
        },
        wrong=("mapping", "all"),
    ),
}


def three_layers(dropout: float) -> nn.Module:
    """Return a network with 4 inputs, three layers of one kind, and 2 classes."""
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Dropout(dropout), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(nn.Linear(4, 8), nn.Sequential(*layers), nn.Linear(8, 2))


SETUPS: tuple[Setup, ...] = (
    Setup(
        "learngene_sws",
        ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9}),
        (
            ("lightning_weights.callbacks.LearngeneInit", {"path": str(LEARNGENE)}),
            ("lightning_weights.callbacks.ExactResume", {}),
        ),
        network=three_layers,
        refuses={"no matrices": ValueError},
    ),
)
