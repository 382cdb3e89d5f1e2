"""Linear layers that take LoRA matrices from outside, for as long as a ``with`` block lasts."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lightning_weights.kernels.per_sample_lora import per_sample_lora
from lightning_weights.modules.generated_lora import GeneratedLoRA


@dataclass(frozen=True)
class _Injection:
    """What is injected: matrices by layer, and which layers have used theirs."""

    layers: dict[nn.Module, tuple[Tensor, Tensor]]
    names: dict[nn.Module, str]
    scale: float
    optional: frozenset[str]
    used: set[nn.Module] = field(default_factory=set)


_injections: ContextVar[tuple[_Injection, ...]] = ContextVar("lightning_weights_generated_lora", default=())
_samples: ContextVar[Tensor | None] = ContextVar("lightning_weights_samples", default=None)


class GeneratedLinear(nn.Module):
    r"""A frozen linear layer that adds the low-rank update which is injected for each sample.

    $$y_n = W x_n + c + s \, B_n A_n x_n$$

    Outside of [`inject`][lightning_weights.modules.inject] it is the layer itself in every bit. The layer is called,
    never changed, so it may be quantized.

    Args:
        base: Layer to adapt; its parameters are frozen.

    Raises:
        ValueError: If it is no linear layer, or one that others read past.

    Source: Wu et al. 2026, arXiv:2603.07236.

    Examples:
        >>> layer = GeneratedLinear(nn.Linear(4, 3))
        >>> layer(torch.ones(2, 5, 4)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(self, base: nn.Module) -> None:
        kind = type(base).__name__
        if not isinstance(base, nn.Linear):
            raise ValueError(f"base is a {kind}; allowed is nn.Linear or what derives from it")
        if isinstance(base, NonDynamicallyQuantizableLinear):
            raise ValueError(f"base is a {kind}, whose weight nn.MultiheadAttention reads past the layer; leave it out")
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """Weight of the layer itself."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """Bias of the layer itself."""
        return self.base_layer.bias

    @torch.compiler.disable  # context variables can't be part of a graph
    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, with what is injected."""
        outputs = self.base_layer(x)
        found = _injected(self)
        if found is None:
            return outputs
        a, b, scale = found
        inputs, a, b = (tensor.to(outputs.dtype) for tensor in (x, a, b))
        samples = _samples.get()
        if samples is not None and len(a) > 1:
            return _row_by_row(outputs, inputs, a, b, scale, samples)
        if len(a) not in (1, len(x)) or x.dim() < 2:
            raise ValueError(
                f"the matrices are of {len(a)} samples and the inputs of shape {tuple(x.shape)}; allowed are inputs "
                f"(N, ..., {self.in_features}) with N samples or matrices of one. Where tokens of several samples come "
                f"in rows, as to experts, say which are whose: with samples_of_rows(index)"
            )
        flat = per_sample_lora(
            outputs.reshape(len(a), -1, self.out_features), inputs.reshape(len(a), -1, self.in_features), a, b, scale
        )
        return flat.view(outputs.shape)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _row_by_row(outputs: Tensor, inputs: Tensor, a: Tensor, b: Tensor, scale: float, samples: Tensor) -> Tensor:
    """Adapt rows whose samples are known, sample by sample."""
    if samples.shape != inputs.shape[:-1]:
        raise ValueError(
            f"samples_of_rows has samples of shape {tuple(samples.shape)} for inputs of shape {tuple(inputs.shape)}; "
            f"allowed is one for each row"
        )
    if not samples.numel():
        return outputs
    order = samples.flatten().argsort(stable=True)  # the rows of a sample side by side
    counts = samples.flatten().bincount().tolist()
    if len(counts) > len(a):
        raise ValueError(f"samples_of_rows has sample {len(counts) - 1}, but the matrices are of {len(a)} samples")
    rows, seen = (tensor.flatten(0, -2)[order].split(counts) for tensor in (outputs, inputs))
    parts = []
    for sample in [sample for sample, count in enumerate(counts) if count]:
        own = slice(sample, sample + 1)
        parts.append(per_sample_lora(rows[sample][None], seen[sample][None], a[own], b[own], scale)[0])
    flat = outputs.flatten(0, -2).index_copy(0, order, torch.cat(parts))
    return flat.view(outputs.shape)


def _injected(layer: nn.Module) -> tuple[Tensor, Tensor, float] | None:
    for injection in _injections.get():
        if layer in injection.layers:
            injection.used.add(layer)
            return *injection.layers[layer], injection.scale
    return None


@contextlib.contextmanager
def inject(model: nn.Module, adapters: GeneratedLoRA) -> Iterator[None]:
    """Let layers of a model use generated matrices inside a ``with`` block.

    What is injected belongs to the thread or task that entered the block: others that use the same model at the same
    time don't see it. Leaving the block, also by an exception, gives the model back as it was. Layers may be called
    several times, as in the steps of a diffusion.

    Args:
        model: Network whose layers are `GeneratedLinear`, see [`adapt_layers`][lightning_weights.modules.adapt_layers].
        adapters: Matrices by the name of the layer in the model; of N samples, or of one for all.

    Raises:
        ValueError: If a name is no such layer, a shape doesn't fit, layers have matrices already, or, at the end of the
            block, if a layer was never called that isn't optional.

    Examples:
        >>> model = nn.Sequential(GeneratedLinear(nn.Linear(4, 3)))
        >>> adapters = GeneratedLoRA({"0": (torch.ones(2, 1, 4), torch.ones(2, 3, 1))}, scale=1.0)
        >>> with inject(model, adapters):
        ...     adapted = model(torch.ones(2, 4))
        >>> (adapted - model(torch.ones(2, 4))).round()
        tensor([[4., 4., 4.],
                [4., 4., 4.]])
    """
    injection = _checked(model, adapters)
    token = _injections.set((*_injections.get(), injection))
    try:
        yield
    finally:
        _injections.reset(token)
    needed = {layer: name for layer, name in injection.names.items() if name not in injection.optional}
    if missed := [name for layer, name in needed.items() if layer not in injection.used]:
        raise ValueError(
            f"matrices were injected for {', '.join(missed)}, but the model never called these layers; leave them out "
            f"of the targets"
        )


@torch.compiler.disable
def _checked(model: nn.Module, adapters: GeneratedLoRA) -> _Injection:
    layers, names = {}, {}
    for name, (a, b) in adapters.items():
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            layer = None
        if not isinstance(layer, GeneratedLinear):
            there = [name for name, part in model.named_modules() if isinstance(part, GeneratedLinear)]
            raise ValueError(
                f"the adapters have {name!r}, which is no layer of the model that takes any; there are "
                f"{', '.join(there) or 'none: call adapt_layers(model, names) first'}"
            )
        if (a.shape[2], b.shape[1]) != (layer.in_features, layer.out_features):
            raise ValueError(
                f"the matrices of {name} are for {a.shape[2]} inputs and {b.shape[1]} outputs, but the layer has "
                f"{layer.in_features} and {layer.out_features}"
            )
        layers[layer], names[layer] = (a, b), name
    if any(layer in other.layers for other in _injections.get() for layer in layers):
        raise ValueError("the model has injected matrices already; leave the block of the first before the second")
    return _Injection(layers, names, adapters.scale, adapters.optional)


@contextlib.contextmanager
def samples_of_rows(samples: Tensor) -> Iterator[None]:
    """Say which sample every row belongs to, around layers that get tokens of several samples as one matrix.

    A mixture of experts gathers the tokens of a whole batch that go to an expert: wrap the call of each.

    Args:
        samples: Number of the sample of every row, from 0, of the shape of the inputs without their last dimension.

    Examples:
        >>> with samples_of_rows(torch.tensor([0, 0, 1])):
        ...     GeneratedLinear(nn.Linear(4, 3))(torch.ones(3, 4)).shape
        torch.Size([3, 3])
    """
    token = _samples.set(samples)
    try:
        yield
    finally:
        _samples.reset(token)


def keep_injected() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Return the contexts in which a checkpointed part of a backbone finds its matrices again in the backward pass.

    To be given to ``torch.utils.checkpoint.checkpoint`` with ``use_reentrant=False``, as ``context_fn``; models of
    transformers take both in ``gradient_checkpointing_enable``, and checkpoint the layers that are in training mode.
    Without it the part is computed without matrices.

    Returns:
        The context of the forward pass and that of the one that is repeated.

    Examples:
        >>> forward, again = keep_injected()
        >>> with forward, again:
        ...     pass
    """
    return contextlib.nullcontext(), _with_injections(_injections.get(), _samples.get())


@contextlib.contextmanager
def _with_injections(injections: tuple[_Injection, ...], samples: Tensor | None) -> Iterator[None]:
    tokens = _injections.set(injections), _samples.set(samples)
    try:
        yield
    finally:
        _injections.reset(tokens[0])
        _samples.reset(tokens[1])
