"""The papers' equations: pure functions on tensors, for any training loop."""

from lightning_weights.functional.continual import average_accuracy, backward_transfer, forgetting

__all__ = ["average_accuracy", "backward_transfer", "forgetting"]
