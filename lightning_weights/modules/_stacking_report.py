"""What a fitted stack says about itself."""

from typing import Any

import torch

from lightning_weights.functional.regularized_stacking import FittedStack
from lightning_weights.modules._stacking_inputs import StackingInputs
from lightning_weights.modules.stack_state import StackOutput


def stack_output(stack: FittedStack) -> StackOutput:
    """Return the numbers that predictions need, on the CPU.

    Args:
        stack: The fitted stack.
    """
    last = [(fit.penalty[-1], fit.l1_ratio[-1]) for fit in stack.fits.values()]
    condition = torch.tensor([stack.selection.condition_before, stack.selection.condition_after], dtype=torch.float64)
    parts = {
        "selected": stack.selection.columns,
        "mean": stack.mean,
        "scale": stack.scale,
        "coefficients": stack.coefficients,
        "intercepts": stack.intercepts,
        "blend": stack.blend,
        "penalties": torch.stack([penalty for penalty, _ in last]),
        "l1_ratios": torch.stack([ratio for _, ratio in last]),
        "condition": condition,
    }
    return StackOutput(**{name: part.cpu() for name, part in parts.items()})


def stack_report(stack: FittedStack, data: StackingInputs, output: int) -> dict[str, Any]:
    """Return selected and removed columns, condition numbers, errors and penalties, as plain values.

    Args:
        stack: The fitted stack.
        data: What it was fitted to.
        output: Number of the output.
    """
    error = stack.oof @ stack.blend - data.target[:, output]
    return {
        "rows": len(data.target),
        "rows_without_predictions": int(data.kept.logical_not().sum()),
        "rows_without_oof": int(error.isnan().sum()),
        "selected": [data.names[column] for column in stack.selection.columns.tolist()],
        "removed": [
            {
                **removal._asdict(),
                "name": data.names[removal.column],
                "alternative": None if removal.alternative is None else data.names[removal.alternative],
            }
            for removal in stack.selection.removed
        ],
        "risk": dict(zip(data.names, stack.selection.risk.tolist(), strict=True)),
        "condition_before": stack.selection.condition_before,
        "condition_after": stack.selection.condition_after,
        "learners": {name: _learner(stack, index, name) for index, name in enumerate(stack.fits)},
        "rmse": float(error.square().nanmean().sqrt()),
    }


def _learner(stack: FittedStack, index: int, name: str) -> dict[str, Any]:
    fit = stack.fits[name]
    return {
        "rmse": float(stack.rmse[index]),
        "fold_rmse": stack.fold_rmse[:, index].tolist(),
        "fold_penalties": fit.penalty[:-1].tolist(),
        "fold_l1_ratios": fit.l1_ratio[:-1].tolist(),
        "penalty": float(fit.penalty[-1]),
        "l1_ratio": float(fit.l1_ratio[-1]),
        "weight": float(stack.blend[index]),
        "duality_gap": float(fit.gap.max()),
    }
