"""How a network is run for its quantization: as a whole, or one block after another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from lightning_weights.modules.quantization.inputs import Enough
from lightning_weights.modules.quantization.steps import repeatable
from lightning_weights.modules.quantization.targets import Target

CACHES = ("past_key_values", "past_key_value", "layer_past", "cache", "cache_params")  # as transformers has named them


class OriginalWeights:
    """Keeps copies of weights, to put them back for runs of the full-precision network.

    Args:
        targets: Whose weights will change.
    """

    @torch.no_grad()
    def __init__(self, targets: Sequence[Target]) -> None:
        self._copies = [(target.weight, target.weight.detach().clone()) for target in targets]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Put the originals in place inside a ``with`` block."""
        present = [param.data for param, _ in self._copies]
        for param, original in self._copies:
            param.data = original
        torch.clear_autocast_cache()
        try:
            yield
        finally:
            for (param, _), data in zip(self._copies, present, strict=True):
                param.data = data
            torch.clear_autocast_cache()


class WholeNetwork:
    """Runs all of a network on every batch, in both streams with the same inputs.

    Args:
        run: Runs the network on a batch, by its number.
    """

    def __init__(self, run: Callable[[int], Any]) -> None:
        self._run = run

    def run(self, index: int, full: bool) -> None:
        """Run it on a batch; the weights that are in place say which stream this is."""
        self._run(index)


class _Call(NamedTuple):
    """What a block was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Blocks:
    """Runs a network's blocks one at a time, on what came out of the block before, which is kept between them.

    Args:
        blocks: The blocks by name, each of which gets what the one before returns.
        run: Runs the network on a batch, by its number.
        batches: Number of batches.
        two_streams: Whether what the full-precision network computes is kept, too.
        cache_device: Where inputs are kept.
    """

    def __init__(
        self,
        blocks: Mapping[str, nn.Module],
        run: Callable[[int], Any],
        batches: int,
        two_streams: bool,
        cache_device: torch.device,
    ) -> None:
        self.names, self._blocks = list(blocks), list(blocks.values())
        self._device = next(param.device for block in self._blocks for param in block.parameters())
        self._cache_device, self._draw_alike = cache_device, repeatable(self._device)
        self._slot: int | str | None = None
        self._pick: int | str | None = None
        self._calls: list[list[_Call]] = []  # what else goes into the blocks, per batch; one entry if all get the same
        self._hidden: list[Tensor] = []
        self._current = 0
        for index in range(batches):
            self._capture(lambda index=index: run(index))
        self._full = list(self._hidden) if two_streams else None

    def _capture(self, run: Callable[[], Any]) -> None:
        """Run the network on a batch, up to its first block if that tells everything."""
        first = not self._calls
        all_alike = not first and len(self._calls[0]) == 1
        given, calls, hidden = _record(self._blocks, run, only_first=all_alike)
        if first:
            self._slot, self._pick = _find_chain(self.names, calls, hidden)
        for name, call in zip(self.names, calls, strict=False):
            _check_slot(name, call, self._slot)
        if not all_alike:
            _check_chain(self.names, calls, hidden, self._slot, self._pick)
        self._hidden.append(self._store(_at(given, self._slot)))
        rest = [self._without_hidden(call) for call in calls]
        if all(_same(rest[0], other) for other in rest[1:]):
            rest = rest[:1]
        previous = self._calls[-1] if self._calls else rest
        self._calls.append(previous if len(previous) == len(rest) and _same(previous, rest) else rest)

    def _store(self, value: Any) -> Any:
        return tree_map_only(Tensor, lambda x: x.detach().to(self._cache_device), value)

    def _without_hidden(self, call: _Call) -> _Call:
        args = tuple(None if index == self._slot or _is_cache(v) else v for index, v in enumerate(call.args))
        kwargs = {name: None if name == self._slot or _is_cache(v, name) else v for name, v in call.kwargs.items()}
        if "use_cache" in kwargs:
            kwargs["use_cache"] = False
        return self._store(_Call(args, kwargs))

    def enter(self, name: str) -> None:
        """Go to a block, whose inputs are there once the one before was left.

        Args:
            name: Its name.
        """
        self._current = self.names.index(name)

    def run(self, index: int, full: bool) -> None:
        """Run the block on a batch; ``full`` chooses the inputs, and the weights in place are to fit them."""
        self._output(index, full)

    def _output(self, index: int, full: bool) -> Tensor:
        calls = self._calls[index]
        args, kwargs = calls[self._current if len(calls) > 1 else 0]
        hidden = (self._full if full and self._full is not None else self._hidden)[index]
        if isinstance(self._slot, str):
            kwargs = {**kwargs, self._slot: hidden}
        else:
            args = (*args[: self._slot], hidden, *args[self._slot + 1 :])
        args, kwargs = tree_map_only(Tensor, lambda x: x.to(self._device, copy=True), (args, kwargs))
        self._draw_alike(index)
        return _picked(self._blocks[self._current](*args, **kwargs), self._pick)

    def leave(self, originals: OriginalWeights) -> tuple[float, float]:
        """Compute what goes into the next block.

        Args:
            originals: The block's weights as they were.

        Returns:
            Sum of the squares by which the two streams have come apart, and that of the full-precision stream; zeros
            with one stream.
        """
        error = norm = 0.0
        if self._full is None and self._current == len(self.names) - 1:
            return error, norm  # nothing comes after
        for index in range(len(self._hidden)):
            hidden = self._output(index, full=False)
            if self._full is not None:
                with originals():
                    full = self._output(index, full=True)
                error += float((hidden.float() - full.float()).square().sum())
                norm += float(full.float().square().sum())
                self._full[index] = self._store(full)
            self._hidden[index] = self._store(hidden)
        return error, norm


def _record(
    blocks: Sequence[nn.Module], run: Callable[[], Any], only_first: bool
) -> tuple[_Call, list[_Call], list[tuple[Any, Any]]]:
    """Return what blocks were called with, and pairs of what one returned and the next was called with.

    Before all of it comes a copy of what the first was called with, as it was: a block may change its input.
    """
    calls: list[_Call] = []
    given: list[_Call] = []
    outputs: list[Any] = []
    order: list[nn.Module] = []
    pairs = []

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        order.append(block)
        if not calls:
            given.append(_Call(tuple(map(_copied, args)), {name: _copied(value) for name, value in kwargs.items()}))
        calls.append(_Call(args, kwargs))
        if outputs:
            pairs.append((outputs.pop(), calls[-1]))
        if only_first:
            raise Enough

    def after(block: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output)
        if block is blocks[-1]:
            raise Enough

    handles = []
    try:
        for block in blocks:
            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(block.register_forward_hook(after))
        run()
    except Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if order != list(blocks[: len(order)]) or len(order) != (1 if only_first else len(blocks)):
        raise ValueError(
            f"{len(order)} of {len(blocks)} blocks were called in their order; give blocks that are all called, one "
            f"after another and once each, or leave blocks out"
        )
    return given[0], calls, pairs


def _is_cache(value: Any, name: str = "") -> bool:
    """Tell whether an argument keeps keys and values between runs: every run would see, and lengthen, those before."""
    return name in CACHES or hasattr(value, "get_seq_length")


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _find_chain(
    names: Sequence[str], calls: Sequence[_Call], pairs: Sequence[tuple[Any, _Call]]
) -> tuple[int | str, int | str | None]:
    """Return which argument is the output of the block before, and which part of that output."""
    for output, call in pairs[:1]:
        parts = {None: output} if isinstance(output, Tensor) else dict(_entries(output))
        for slot, value in [*enumerate(call.args), *call.kwargs.items()]:
            for pick, part in parts.items():
                if isinstance(value, Tensor) and value is part:
                    return slot, pick
        raise ValueError(_broken(names[0], names[1]))
    only = calls[0]
    for slot, value in [*enumerate(only.args), *only.kwargs.items()]:
        if isinstance(value, Tensor):
            return slot, None
    raise ValueError(f"{names[0]} is called without a tensor; leave blocks out")


def _broken(before: str, after: str) -> str:
    return f"what goes into {after} is not what comes out of {before}; leave blocks out, so that the whole network runs"


def _entries(output: Any) -> list[tuple[Any, Any]]:
    return list(output.items()) if isinstance(output, Mapping) else list(enumerate(output))


def _check_slot(name: str, call: _Call, slot: int | str) -> None:
    if slot not in call.kwargs if isinstance(slot, str) else slot >= len(call.args):
        raise ValueError(f"{name} is called with other arguments than the other blocks; leave blocks out")


def _check_chain(names: Sequence[str], calls: Any, pairs: Any, slot: int | str, pick: int | str | None) -> None:
    for index, (output, call) in enumerate(pairs):
        if _picked(output, pick) is not _at(call, slot):
            raise ValueError(_broken(names[index], names[index + 1]))


def _at(call: _Call, slot: int | str) -> Any:
    return call.kwargs[slot] if isinstance(slot, str) else call.args[slot]


def _picked(output: Any, pick: int | str | None) -> Any:
    if isinstance(output, Tensor):
        return output
    # a single block: nothing tells which part the next would get
    return next(value for _, value in _entries(output) if isinstance(value, Tensor)) if pick is None else output[pick]


def _same(a: Any, b: Any) -> bool:
    left, left_form = tree_flatten(a)
    right, right_form = tree_flatten(b)
    return left_form == right_form and all(map(_same_value, left, right))


def _same_value(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
    return a is b or bool(type(a) is type(b) and a == b)
