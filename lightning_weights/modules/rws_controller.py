"""Signatures on a network, whose scales can be changed at any time."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_weights.errors import LightningWeightsWarning, check_choice
from lightning_weights.functional.rws import WEIGHTINGS, composition_scales
from lightning_weights.modules._patch_hold import Hold, holds_of
from lightning_weights.modules._patch_targets import find_targets, owners, warn_about_rounding
from lightning_weights.modules._signature_sums import Patch, check_scale, write_sums
from lightning_weights.modules.batch_norm_statistics import reestimate_batch_norm
from lightning_weights.modules.robust_weight_signature import RobustWeightSignature


class RWSController:
    """Adds signatures to a network's weights, changes their scales and takes them away.

    Weights are always computed from a copy of the clean ones, in one order of the signatures, in fp32 and rounded once.
    So the order in which signatures came and former scales leave no trace, and `restore` gives back every bit.

    Args:
        module: Network, or a module with it inside, as a LightningModule.
        weighting: How several signatures are added: ``sum`` with their scales α, or ``published`` with (α / K)² for K
            signatures, as the authors' code does.
        allow_train: Whether the patched network may be trained. What training changed then stays at `restore`, which
            subtracts the signatures: clean weights come back in every bit only where nothing was trained.

    Raises:
        ValueError: If ``weighting`` is unknown.

    Source: Cai, Zhang, Wang 2023, arXiv:2302.12480.

    Examples:
        >>> network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1))
        >>> values = {"0.weight": torch.tensor([[1.0, 2.0]])}
        >>> controller = RWSController(network)
        >>> controller.add(RobustWeightSignature.from_tensors(values, corruption="fog"))
        'fog'
        >>> before = network[0].weight.clone()
        >>> with controller:
        ...     controller.set_scale("fog", 0.5)
        ...     (network[0].weight - before).detach().round(decimals=4)
        tensor([[0.5000, 1.0000]])
        >>> bool((network[0].weight == before).all())
        True
    """

    def __init__(
        self, module: nn.Module, weighting: Literal["sum", "published"] = "sum", allow_train: bool = False
    ) -> None:
        check_choice("weighting", weighting, WEIGHTINGS)
        self.module = module
        self.weighting = weighting
        self.allow_train = allow_train
        self._patches: dict[str, Patch] = {}
        self._clean: dict[Tensor, Tensor] = {}  # by the network's tensors, which are hashed by identity
        self._put: dict[Tensor, Tensor] = {}
        self._statistics: dict[Tensor, Tensor] = {}
        self._hold: Hold | None = None

    @property
    def applied(self) -> bool:
        """Whether the signatures are in the weights."""
        return self._hold is not None

    @property
    def scales(self) -> dict[str, float]:
        """Scale of every signature by name."""
        return {name: patch.scale for name, patch in self._patches.items()}

    def add(self, signature: RobustWeightSignature, scale: float = 1.0, name: str | None = None) -> str:
        """Add a signature, to the weights at once if the others are applied.

        Args:
            signature: The signature; its own scale counts too.
            scale: Its scale α.
            name: What it is called; ``None``: its ``name``.

        Returns:
            The name.

        Raises:
            ValueError: If it doesn't fit the network, or it or its name is there already.
            ShardedParameterError: If the network is sharded.

        Warns:
            LightningWeightsWarning: If most of it is lost in the rounding of the network's weights.
        """
        check_scale(scale)
        name = signature.name if name is None else name
        if name in self._patches:
            raise ValueError(f"there is a signature {name!r} already; add this one under another name: name=...")
        with self._away():
            targets, digest = find_targets(self.module, signature), signature.digest
            if digest in {patch.digest for patch in self._patches.values()}:
                raise ValueError(f"{name!r} is there already under another name; use set_scale to have more of it")
            warn_about_rounding(targets, signature, scale * signature.scale)
            signature = signature.to(next(iter(targets.values())).device)
            parts = owners(self.module, targets.values())
            self._patches[name] = Patch(signature, float(scale), targets, parts, digest)
        return name

    def remove(self, name: str) -> None:
        """Take a signature away, from the weights at once if it is applied.

        Args:
            name: Its name.

        Raises:
            ValueError: If it was not added.
        """
        self._check_known(name)
        with self._away():
            del self._patches[name]

    def set_scale(self, name: str, scale: float) -> None:
        """Change the scale of a signature, in the weights at once if it is applied.

        Args:
            name: Its name.
            scale: The new scale α.

        Raises:
            ValueError: If it was not added, or the scale is not finite.
        """
        self._check_known(name)
        check_scale(scale)
        with self._away():
            self._patches[name] = replace(self._patches[name], scale=float(scale))

    def apply(self) -> None:
        """Add the signatures to the weights, of which a copy is kept.

        Raises:
            ValueError: If they are applied already, by this controller or another.
        """
        if self.applied:
            raise ValueError("the signatures are applied already; call restore first")
        patches = self._patches.values()
        parts = list(dict.fromkeys(part for patch in patches for part in patch.parts))
        known = {digest for part in parts for hold in holds_of(part) for digest in hold.digests}
        if twice := [name for name, patch in self._patches.items() if patch.digest in known]:
            raise ValueError(f"{', '.join(twice)} patched this network already; use set_scale of the first patch")
        targets = self.targets()
        with torch.inference_mode(False), torch.no_grad():
            self._clean = {tensor: tensor.detach().clone() for tensor in (*targets, *self._statistics)}
            self._hold = Hold(parts, targets, [patch.digest for patch in patches], self.allow_train)
            try:
                with self._hold.writing():
                    write_sums(patches, composition_scales(self._own_scales(), self.weighting), self._clean)
                    _copy(self._statistics)
                if self.allow_train:
                    self._put = {tensor: tensor.detach().clone() for tensor in targets}
            except BaseException:
                self._put = {}
                self.restore()
                raise
        torch.clear_autocast_cache()

    def restore(self) -> None:
        """Give the network back the weights and statistics that it had, in every bit.

        Raises:
            ValueError: If nothing is applied, or a later patch of the same layers is.

        Warns:
            LightningWeightsWarning: If somebody else has changed the weights meanwhile, which is lost.
        """
        hold = self._latest()
        lost = [] if self.allow_train else hold.changed()
        with torch.inference_mode(False), torch.no_grad(), hold.writing():
            for tensor, put in self._put.items():  # what was trained meanwhile stays
                trained = self._clean[tensor] + (tensor - put)
                self._clean[tensor] = torch.where(tensor == put, self._clean[tensor], trained)
            self._put = {}
            _copy(self._clean)
        torch.clear_autocast_cache()
        hold.release()
        self._clean, self._hold = {}, None
        if lost:
            warnings.warn(
                f"{len(lost)} patched tensors were changed by something else, as an optimizer, and are again what they "
                f"were before the patch; change weights outside of the patch, or use allow_train=True",
                LightningWeightsWarning,
                stacklevel=2,
            )

    def targets(self) -> list[Tensor]:
        """Return the network's tensors that signatures are added to."""
        return list(dict.fromkeys(tensor for patch in self._patches.values() for tensor in patch.targets.values()))

    def clean(self) -> dict[Tensor, Tensor]:
        """Return the clean values of what is patched, by the network's tensors; nothing if nothing is applied."""
        return dict(self._clean)

    def relative_change(self) -> float:
        """Return the norm of what is added to the patched weights by the norm of these; 0 if nothing is applied."""
        if not self.applied:
            return 0.0
        targets = self.targets()
        clean = [self._clean[target].to(torch.promote_types(target.dtype, torch.float32)) for target in targets]
        added = [target.detach() - then for target, then in zip(targets, clean, strict=True)]
        change, size = (float(torch.stack([part.norm().float() for part in parts]).norm()) for parts in (added, clean))
        return change / size if size else 0.0

    def reestimate(
        self,
        batches: Iterable[Any],
        max_batches: int | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        step: Callable[[Any], Any] | None = None,
    ) -> int:
        """Re-estimate the statistics of batch normalisations for the patched weights, until `restore`.

        Old and new statistics are mixed by the largest scale below 1. They are applied again with the weights until a
        signature or a scale changes.

        Args:
            batches: Batches of training data with the corruptions that the network is patched against.
            max_batches: Largest number of batches. ``None``: all.
            reduce: Averages a tensor over processes. ``None``: nothing is averaged.
            step: Runs a batch; ``None``: as in `reestimate_batch_norm`.

        Returns:
            The number of batches.

        Raises:
            ValueError: If nothing is applied, or a later patch is.
        """
        self._latest()
        norms = [part for part in self.module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
        buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        share = min(1.0, max((abs(factor) for factor in self._own_scales()), default=0.0))
        with torch.inference_mode(False), torch.no_grad():
            _copy({buffer: self._clean[buffer] for buffer in buffers if buffer in self._clean})
            self._clean |= {buffer: buffer.clone() for buffer in buffers if buffer not in self._clean}
            used = reestimate_batch_norm(self.module, batches, max_batches, step)
            for buffer in filter(torch.is_floating_point, buffers):
                new = buffer if reduce is None else reduce(buffer.clone())
                buffer.copy_(torch.lerp(self._clean[buffer], new, share))
            self._statistics = {buffer: buffer.clone() for buffer in buffers}
        return used

    def __enter__(self) -> "RWSController":
        self.apply()
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    @contextlib.contextmanager
    def _away(self) -> Iterator[None]:
        """Change something while the network is clean; if that fails nothing has changed."""
        applied, before = self.applied, dict(self._patches)
        if applied:
            self.restore()
        self._statistics = {}
        try:
            yield
            if applied:
                self.apply()
        except BaseException:
            self._patches = before
            if applied:
                self.apply()
            raise

    def _own_scales(self) -> list[float]:
        return [patch.scale * patch.signature.scale for patch in self._patches.values()]

    def _check_known(self, name: str) -> None:
        if name not in self._patches:
            raise ValueError(f"{name!r} was never added; there are {', '.join(map(repr, self._patches)) or 'none'}")

    def _latest(self) -> Hold:
        if self._hold is None:
            raise ValueError("no signature is applied; call apply first")
        if not self._hold.is_latest:
            raise ValueError("a later patch of this network is still there; take patches away in the reverse order")
        return self._hold


def _copy(values: Mapping[Tensor, Tensor]) -> None:
    for tensor, value in values.items():
        tensor.copy_(value)
