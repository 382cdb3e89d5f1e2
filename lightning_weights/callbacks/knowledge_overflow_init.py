"""Starting a fit from weights that were predicted from how a network forgets."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_weights.callbacks._calibration import in_turn
from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.callbacks._shards import laid_out_like
from lightning_weights.callbacks._targets import name_matches
from lightning_weights.errors import LightningWeightsWarning, check_choice, check_number, name_list
from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.modules.batch_norm_statistics import reestimate_batch_norm
from lightning_weights.modules.knowledge_overflow import predict_overflowed
from lightning_weights.modules.known_bank import KNOWNBank
from lightning_weights.modules.predicted_weights import read_predicted
from lightning_weights.modules.snapshots import read_snapshots
from lightning_weights.modules.weight_kinds import normalisation_layers


class KnowledgeOverflowInit(LeanCallback):
    """Begin a fit with weights predicted from snapshots of forgetting, and train head and norms first.

    The weights come from a file that [`write_predicted`][lightning_weights.modules.write_predicted] has written, or are
    predicted from a folder of snapshots that
    [`ProgressiveForgetting`][lightning_weights.callbacks.ProgressiveForgetting] has filled. Tensors go by their names.
    A new head is what ``exclude`` names, and what has another shape than in the file or is not in it.

    During the first ``warmup_epochs`` all other weights stand still: their gradients are computed and dropped before
    the optimizer, which then leaves them, their momentum and their decay alone. So it may hold all parameters from the
    start, no flag ``requires_grad`` changes, and several processes agree. Learning rates and schedules are left as
    they are. Running statistics of batch normalisation belong to other weights, and are averaged anew over training
    batches before the fit.

    A fit that resumes a checkpoint, and a second fit of the same Trainer, is left as it is, which needs no file. It
    logs ``weights/know/trained``: the number of weights that are trained in an epoch.

    Args:
        path: File of predicted weights, or folder of snapshots.
        bank: Hyper-models that predict from snapshots: a name, such as ``digits``, or a file. Not used for a file of
            weights.
        recursions: How often they are applied, each time to a history that ends with the prediction before: n give the
            weights of 1/rⁿ times the data. 0: the newest snapshot. Not used for a file of weights.
        exclude: Modules that keep the weights they have: names or their last parts, with ``*`` and ``?``. ``None``:
            none that fit.
        strict: Whether every tensor that is not excluded must be in the file and fit, and the file must have no other.
        warmup_epochs: Epochs of the first phase.
        warmup_trainable: What is trained in it: ``head+norm``, the head and all normalisation layers, or ``all``.
        reestimate_batches: Training batches over which statistics of batch normalisation are averaged; 0: they stay
            those of the file.

    Raises:
        ValueError: If an argument is out of range; at the start of a fit, if the file is not there, fits nowhere or,
            with ``strict``, not everywhere, or there is neither head nor norm to train.

    Warns:
        LightningWeightsWarning: If statistics of batch normalisation are not averaged anew, or ``recursions`` is given
            for a file of weights.

    Source: Jang, Kim, Kim 2026, arXiv:2508.05059. The published code trains batch normalisation and head first, too,
    and begins with fresh norms; here all kinds of normalisation layers count and come from the file.

    Examples:
        >>> KnowledgeOverflowInit("predicted.safetensors", exclude=["head"], warmup_epochs=5).exclude
        ['head']

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.KnowledgeOverflowInit
              init_args: {path: snapshots, recursions: 3, exclude: [head]}
        ```
    """

    def __init__(
        self,
        path: str,
        bank: str = "digits",
        recursions: int = 1,
        exclude: list[str] | None = None,
        strict: bool = False,
        warmup_epochs: int = 10,
        warmup_trainable: Literal["head+norm", "all"] = "head+norm",
        reestimate_batches: int = 100,
    ) -> None:
        check_number("recursions", recursions, low=0, whole=True)
        check_choice("strict", strict, [True, False])
        check_number("warmup_epochs", warmup_epochs, low=0, whole=True)
        check_choice("warmup_trainable", warmup_trainable, ["head+norm", "all"])
        check_number("reestimate_batches", reestimate_batches, low=0, whole=True)
        self.path = str(path)
        self.bank = str(bank)
        self.recursions = recursions
        self.exclude = None if exclude is None else name_list("exclude", exclude, " or None")
        self.strict = strict
        self.warmup_epochs = warmup_epochs
        self.warmup_trainable = warmup_trainable
        self.reestimate_batches = reestimate_batches
        self._reset()

    def _reset(self) -> None:
        self._first: list[str] = []  # parameters that are trained from the start
        self._still: list[nn.Parameter] = []

    def state_dict(self) -> dict[str, Any]:
        """Return which parameters are trained from the start."""
        return {"first": list(self._first)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what a checkpoint's fit began with."""
        self._first = list(state_dict["first"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the weights, unless the fit goes on with what was trained before."""
        # not in setup: the Trainer tells later which checkpoint it resumes
        if trainer.ckpt_path is not None or trainer.global_step > 0:
            rank_zero_info(
                f"KnowledgeOverflowInit leaves the weights as they are: the fit goes on ({self.path} unread)"
            )
            return
        loaded = self._load(pl_module)
        self._first = self._trained_first(pl_module, loaded)
        norms = [part for part in pl_module.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]
        if norms and self.reestimate_batches:
            reestimate_batch_norm(pl_module, in_turn(trainer, self.reestimate_batches))
            statistics = [part.running_mean for part in norms] + [part.running_var for part in norms]
            # processes may have seen other batches
            for own, first in zip(statistics, trainer.strategy.broadcast(statistics), strict=True):
                own.copy_(first)
        elif norms and trainer.is_global_zero:
            warnings.warn(
                "reestimate_batches is 0: batch normalisation has statistics that belong to other weights until "
                "training has renewed them, and an evaluation before says nothing",
                LightningWeightsWarning,
                stacklevel=2,
            )

    def _predicted(self) -> Mapping[str, Tensor]:
        if not Path(self.path).is_dir():
            if self.recursions != 1:
                rank_zero_warn(
                    f"recursions is {self.recursions}, but {self.path} is a file of weights, which are taken as they "
                    f"are; give a folder of snapshots to predict from",
                    category=LightningWeightsWarning,
                )
            return read_predicted(self.path)[0]
        bank = KNOWNBank.from_pretrained(self.bank)
        return predict_overflowed(read_snapshots(self.path, last=bank.history), bank, self.recursions)

    def _load(self, pl_module: LightningModule) -> set[str]:
        """Load what fits, and return the names of these tensors in the state of the module."""
        predicted, state = self._predicted(), pl_module.state_dict()
        keys = _keys_by_name(pl_module)
        names = [*keys, *predicted]
        if lost := [p for p in self.exclude or () if not any(_inside(name, p) for name in names)]:
            raise ValueError(
                f"exclude has {lost}, which fit nothing: {type(pl_module).__name__} has {sorted(keys)[:5]} and so on; "
                f"give names of modules, or their last parts"
            )
        excluded = {key for name, key in keys.items() if self._excluded(name)}
        found = {name: keys[name] for name in predicted if name in keys and keys[name] not in excluded}
        fitting = {key: predicted[name] for name, key in found.items() if state[key].shape == predicted[name].shape}
        unused = sorted(n for n in predicted if keys.get(n) not in fitting and not self._excluded(n))
        kept = sorted(map(plain_name, state.keys() - fitting.keys() - excluded))
        if self.strict and (unused or kept):
            raise ValueError(
                f"strict is True, but {self.path} and {type(pl_module).__name__} differ: the file has no {kept} of the "
                f"module's shapes, and its {unused} are not used; exclude them, or give strict=False"
            )
        if not fitting:
            raise ValueError(
                f"nothing in {self.path} fits {type(pl_module).__name__}: there are {sorted(predicted)[:5]} and so on, "
                f"here {sorted(keys)[:5]} and so on; give the weights of a module with the same names"
            )
        pl_module.load_state_dict(state | {key: laid_out_like(state[key], value) for key, value in fitting.items()})
        rank_zero_info(f"KnowledgeOverflowInit: {len(fitting)} tensors from {self.path}, kept are {kept or 'none'}")
        return set(fitting)

    def _excluded(self, name: str) -> bool:
        """Tell whether a tensor belongs to a module that keeps its weights."""
        return any(_inside(name, pattern) for pattern in self.exclude or ())

    def _trained_first(self, pl_module: LightningModule, loaded: set[str]) -> list[str]:
        state = pl_module.state_dict(keep_vars=True)  # its names may be others than those of parameters
        from_file = {id(state[name]) for name in loaded}
        shapes = {name: param.shape for name, param in pl_module.named_parameters()}
        shapes |= {name: buffer.shape for name, buffer in pl_module.named_buffers()}
        norms = normalisation_layers(shapes)
        parameters = dict(pl_module.named_parameters())
        first = [n for n, param in parameters.items() if id(param) not in from_file or n.rpartition(".")[0] in norms]
        if not first and self.warmup_epochs and self.warmup_trainable == "head+norm":
            raise ValueError(
                "warmup_trainable is 'head+norm', but every weight comes from the file and there is no normalisation "
                "layer; exclude the head, or give warmup_epochs=0"
            )
        return [plain_name(name) for name in first]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the second phase when it is time; not called when a run resumes inside an epoch."""
        self._choose(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what stands still, in a resumed run, too."""
        self._choose(trainer, pl_module)

    def _choose(self, trainer: Trainer, pl_module: LightningModule) -> None:
        warm = trainer.current_epoch < self.warmup_epochs and self.warmup_trainable == "head+norm"
        first = set(self._first)  # empty where a run goes on that began without the callback
        named = pl_module.named_parameters()
        self._still = [param for name, param in named if plain_name(name) not in first] if warm and first else []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drop the gradients of what stands still."""
        for param in self._still:
            param.grad = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        still = {id(param) for param in self._still}
        trained = [p.numel() for p in pl_module.parameters() if p.requires_grad and id(p) not in still]
        pl_module.log("weights/know/trained", float(sum(trained)))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the weights."""
        self._still = []


def _inside(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(name_matches(".".join(parts[: end + 1]), pattern) for end in range(len(parts)))


def _keys_by_name(pl_module: LightningModule) -> dict[str, str]:
    """Return the key of every tensor in the module's state, by the names that it has there and in the module."""
    state = pl_module.state_dict(keep_vars=True)
    keys = {id(tensor): key for key, tensor in state.items()}
    named = [*pl_module.named_parameters(), *pl_module.named_buffers()]
    own = {plain_name(name): keys[id(tensor)] for name, tensor in named if id(tensor) in keys}
    return own | {plain_name(key): key for key in state}
