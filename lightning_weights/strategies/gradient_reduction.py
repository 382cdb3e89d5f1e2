"""What DDP does with a bucket of gradients when only a part of each has to travel."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer


class GradientReduction(ABC):
    """Averages gradients over processes, those of some parameters in a shorter form that their optimizer works with.

    A subclass says what travels for a parameter and how a gradient is made of it; `needs` names the class of optimizers
    it is for, and `method` a method that only these have. What a bucket of DDP has to send goes in one message, and
    gradients that travel whole are averaged as DDP does. ``sent_bytes`` counts what this process gave to be sent,
    gradients and bases, and ``dense_bytes`` what DDP would have; ``failure`` is the error of a message that failed.

    Args:
        optimizers: An optimizer or several. Parameters of other classes of optimizers, or of none, travel whole.

    Raises:
        ValueError: If none is of the class that the subclass needs.

    Examples:
        >>> class Signs(GradientReduction):
        ...     needs, method = "SGD", "step"
        ...
        ...     def basis(self, optimizer, param):
        ...         return (param,)
        ...
        ...     def compress(self, gradient, basis):
        ...         return gradient.sign().sum(dim=0)
        ...
        ...     def restore(self, gradient, values, basis):
        ...         gradient.copy_(values)
        >>> reduction = Signs(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))]))
        >>> reduction.sent_bytes
        0
    """

    needs: str
    method: str

    def __init__(self, optimizers: Optimizer | Sequence[Optimizer]) -> None:
        given = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        self.optimizers = [optimizer for optimizer in given if hasattr(optimizer, self.method)]
        if not self.optimizers:
            names = ", ".join(type(optimizer).__name__ for optimizer in given) or "none"
            raise ValueError(f"{type(self).__name__} needs an optimizer of the class {self.needs}, and finds {names}")
        self.sent_bytes = 0
        self.dense_bytes = 0
        self.failure: Exception | None = None
        self._group: Any = None
        self._owners: dict[int, Optimizer] = {}
        self._known: dict[int, tuple[Any, ...]] = {}

    def register(self, model: DistributedDataParallel) -> "GradientReduction":
        """Make a wrapped model reduce its gradients this way, before its first backward pass.

        Args:
            model: The model, whose parameters are those of the optimizers.

        Returns:
            This object.
        """
        self._group = model.process_group
        model.register_comm_hook(None, self._reduce)
        return self

    @abstractmethod
    def basis(self, optimizer: Any, param: Tensor) -> tuple[Any, ...]:
        """Return the tensors that say what travels for a parameter in the coming step; none: all of it does.

        They have to be equal on all processes, and others once they change.

        Args:
            optimizer: The optimizer of the parameter.
            param: The parameter.
        """

    @abstractmethod
    def compress(self, gradient: Tensor, basis: tuple[Any, ...]) -> Tensor:
        """Return what travels.

        Args:
            gradient: A whole gradient.
            basis: What `basis` returned.
        """

    @abstractmethod
    def restore(self, gradient: Tensor, values: Tensor, basis: tuple[Any, ...]) -> None:
        """Write a whole gradient.

        Args:
            gradient: Where to.
            values: The average of what travelled, flat.
            basis: What `basis` returned.
        """

    def announce(self, optimizer: Any, param: Tensor, short: bool) -> None:  # noqa: B027  most have nothing to tell
        """Tell an optimizer in what form the gradient of a parameter comes, where it has to know; here nothing.

        Args:
            optimizer: The optimizer of the parameter.
            param: The parameter.
            short: Whether `restore` writes it.
        """

    @torch.no_grad()
    def _reduce(self, state: object, bucket: dist.GradBucket) -> Future[Tensor]:
        if bucket.index() == 0:
            groups = [(optimizer, group) for optimizer in self.optimizers for group in optimizer.param_groups]
            self._owners = {id(param): optimizer for optimizer, group in groups for param in group["params"]}
        gradients, buffer = bucket.gradients(), bucket.buffer()
        bases = [self._agreed_basis(param) for param in bucket.parameters()]
        for param, basis in zip(bucket.parameters(), bases, strict=True):
            if id(param) in self._owners:
                self.announce(self._owners[id(param)], param, bool(basis))
        parts = [
            (self.compress(gradient, basis) if basis else gradient).to(buffer.dtype).reshape(-1)
            for gradient, basis in zip(gradients, bases, strict=True)
        ]
        # with nothing to shorten, the bucket itself is the message
        message = torch.cat(parts) if any(bases) else buffer
        message.div_(dist.get_world_size(self._group))
        self.sent_bytes += _bytes(message)
        self.dense_bytes += _bytes(buffer)
        sizes = [part.numel() for part in parts]

        @torch.no_grad()
        def receive(future: Future[list[Tensor]]) -> Tensor:
            with self._noting_failure():
                (average,) = future.value()
            if average is not buffer:
                for gradient, basis, values in zip(gradients, bases, average.split(sizes), strict=True):
                    if basis:
                        self.restore(gradient, values, basis)
                    else:
                        gradient.copy_(values.view_as(gradient))
            return buffer

        with self._noting_failure():
            return dist.all_reduce(message, group=self._group, async_op=True).get_future().then(receive)

    def _agreed_basis(self, param: Tensor) -> tuple[Any, ...]:
        """Return the basis of a parameter; a new one, which libraries may compute otherwise, is the first process's."""
        owner = self._owners.get(id(param))
        basis = () if owner is None else self.basis(owner, param)
        known = self._known.get(id(param), ())
        if basis and not (len(known) == len(basis) and all(a is b for a, b in zip(known, basis, strict=True))):
            for tensor in owner.state[param].values():
                if isinstance(tensor, Tensor):
                    with self._noting_failure():
                        dist.broadcast(tensor, dist.get_global_rank(self._group, 0), group=self._group)
                    self.sent_bytes += _bytes(tensor)
            self._known[id(param)] = basis
        return basis

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = error  # what comes out of the backward pass has its text alone
            raise


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
