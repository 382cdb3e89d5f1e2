"""Gradients of which only the selected entries are kept."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_weights.functional.lift import gather_entries

SPARSE_GRADIENT = "_lw_sparse_grad"  # attribute of a parameter: one number per selected entry, fp32 or wider
USED, STALE = "_lw_used", "_lw_stale"  # attributes of such a vector: a step has used it, and more was added then


class SparseGradients:
    """Gathers the selected entries of gradients into vectors and drops the rest.

    With hooks every gradient is dropped as soon as it is complete, so that no two of them are alive. Without, as
    where processes still have to reduce them, ``gather`` does it.
    """

    def __init__(self) -> None:
        self._owners: dict[int, Any] = {}
        self._params: list[nn.Parameter] = []
        self._handles: list[Any] = []
        self._shown = False

    def watch(self, owners: Mapping[nn.Parameter, Any], hooks: bool) -> None:
        """Begin with the parameters that are given, each with the optimizer that knows its selected entries."""
        self.stop()
        self._params = list(owners)
        self._owners = {id(param): optimizer for param, optimizer in owners.items()}
        if hooks:
            self._handles = [param.register_post_accumulate_grad_hook(self._gather) for param in self._params]

    def stop(self) -> None:
        """Take the hooks off and forget the parameters."""
        for handle in self._handles:
            handle.remove()
        for param in self._params:
            vars(param).pop(SPARSE_GRADIENT, None)
        self._params, self._handles, self._owners, self._shown = [], [], {}, False

    @torch.no_grad()
    def _gather(self, param: Tensor) -> None:
        optimizer = self._owners[id(param)]
        if optimizer.wants_dense_gradient(param):
            return
        selected = optimizer.selection(param)
        values = gather_entries(param.grad, selected).to(torch.promote_types(param.dtype, torch.float32))
        gathered = _vector(param)
        if gathered is None:
            setattr(param, SPARSE_GRADIENT, values)
        else:
            gathered += values
            setattr(gathered, STALE, hasattr(gathered, USED))
        param.grad = None

    def gather(self, optimizer: Any) -> None:
        """Gather what is dense still, before a step of this optimizer.

        Raises:
            RuntimeError: If the step would use a gradient again that an earlier one has used.
        """
        for param in self._params:
            if param.grad is not None and not self._shown:
                self._gather(param)
            if self._owners[id(param)] is optimizer and getattr(_vector(param), STALE, False):
                raise RuntimeError(
                    f"the gathered gradient of {param._lw_name} was not cleared after a step, and the next has been "
                    f"added to it: call zero_grad() of the optimizer, since that of a module reaches whole gradients "
                    f"alone, or use LIFTFinetuning(sparse_grads=False)"
                )

    def note_step(self, optimizer: Any) -> None:
        """Remember which vectors a step has used."""
        for param in self._params:
            if self._owners[id(param)] is optimizer and _vector(param) is not None:
                setattr(_vector(param), USED, True)

    def show(self) -> None:
        """Give vectors of hooks to a gradient scaler, which looks at ``grad``, as sparse tensors on their memory."""
        for param in self._params if self._handles else []:
            values = _vector(param)
            if values is not None:
                rows = torch.stack(torch.unravel_index(self._owners[id(param)].selection(param).long(), param.shape))
                param.grad = torch.sparse_coo_tensor(
                    rows, values.detach(), param.shape, is_coalesced=True, check_invariants=False
                )
        self._shown = bool(self._handles)

    def hide(self) -> None:
        """Take back what ``show`` gave."""
        if self._shown:
            for param in self._params:
                if _vector(param) is not None:  # a whole gradient, by which entries will be chosen, stays
                    param.grad = None
        self._shown = False


def _vector(param: Tensor) -> Tensor | None:
    return vars(param).get(SPARSE_GRADIENT)


@torch.no_grad()
def clip_gradients(params: Iterable[Tensor], limit: float, by_value: bool) -> None:
    """Clip vectors of selected entries together with whole gradients, as PyTorch clips those alone.

    Args:
        params: Parameters of one optimizer.
        limit: Largest norm of all gradients together, or largest size of an entry.
        by_value: Whether entries are clipped, each for itself.
    """
    found = [param.grad if (vector := _vector(param)) is None else vector for param in params]
    gradients = [gradient for gradient in found if gradient is not None]
    if by_value:
        for gradient in gradients:
            gradient.clamp_(-limit, limit)
    else:
        norm = nn.utils.get_total_norm(gradients)
        for gradient in gradients:
            gradient.mul_(torch.clamp(limit / (norm + 1e-6), max=1.0).to(gradient.device))


class ClipsVectors:
    """Makes a Trainer clip vectors of selected entries, too.

    It does so where all ways to clip that Lightning offers end: in its precision plugin.
    """

    def __init__(self, plugin: Any, gradients: SparseGradients) -> None:
        self._plugin, self._gradients = plugin, gradients
        self._clip_dense = plugin.clip_gradients
        plugin.clip_gradients = self._clip

    def remove(self) -> None:
        """Give the plugin its own method back."""
        del self._plugin.clip_gradients

    def _clip(self, optimizer: Any, clip_val: float = 0.0, gradient_clip_algorithm: str = "norm") -> None:
        self._gradients.gather(getattr(optimizer, "optimizer", optimizer))  # by hand it comes in a LightningOptimizer
        params = [param for group in optimizer.param_groups for param in group["params"]]
        if clip_val > 0 and any(_vector(param) is not None for param in params):
            clip_gradients(params, clip_val, by_value=gradient_clip_algorithm == "value")
        else:
            self._clip_dense(optimizer, clip_val, gradient_clip_algorithm)
