"""A hypernetwork that turns a condition into a full set of LoRA matrices."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_weights.errors import check_number
from lightning_weights.functional.hy_wu import rotary_table
from lightning_weights.modules.factorized_attention import GeneratorBlock, WideRMSNorm
from lightning_weights.modules.generated_lora import GeneratedLoRA
from lightning_weights.modules.lora_targets import find_targets
from lightning_weights.modules.lora_tokenizer import ExpertGroup, LoRATokenizer


class WeightGenerator(nn.Module):
    r"""Turn the condition of every sample into LoRA matrices for all layers of a backbone.

    $$c \;\mapsto\; \{A_\ell \in \mathbb{R}^{r \times d_{in}},\; B_\ell \in \mathbb{R}^{d_{out} \times r}\}_\ell,
    \qquad \Delta W_\ell = \tfrac{\alpha}{r} B_\ell A_\ell$$

    The matrices of a backbone layer are cut into tokens (see `LoRATokenizer`), whose learned queries, the same for
    every sample, pass blocks of attention over the layers, within a layer and to the condition. Two heads turn them
    into numbers, one for A, one for B.

    Args:
        targets: Inputs and outputs of every target by its name within a backbone layer, or a group of experts, see
            `LoRATokenizer`. [`find_targets`][lightning_weights.modules.find_targets] finds them.
        num_layers: Number of backbone layers, each of which has all targets.
        cond_dim: Width of the condition.
        rank: Rank r of the matrices.
        alpha: α; the update is scaled by α / r.
        token_dim: Width of a token, the numbers that a head makes at once.
        dim: Width of the generator.
        head_dim: Width of a head of attention, a multiple of 4 that divides ``dim``.
        accumulation: Neighbouring ranks that make one token inside, a divisor of ``rank`` and ``dim``.
        depth: Number of blocks.
        zero_init: Whether all B are zero at first, so that training starts from the backbone as it is. Otherwise both
            heads start at random, which makes updates far larger than trained weights.
        checkpointing: Whether blocks are computed again in the backward pass instead of kept.
        prefix: What comes before the number of a backbone layer in names, such as ``model.layers``. With an empty one
            and one layer the targets' names are whole.
        layout: How matrices are cut into tokens, ``flat`` or ``rank``.

    Raises:
        ValueError: If an argument is out of range or doesn't fit the others.

    Source: Wu et al. 2026, arXiv:2603.07236. Differs from the released code: B starts at zero, which no code for
    training says; conditions may have a mask; widths of tokens and heads can't differ.

    Examples:
        >>> generator = WeightGenerator({"fc": (8, 6)}, num_layers=2, cond_dim=5, rank=4, token_dim=8)
        >>> adapters = generator(torch.randn(3, 7, 5))
        >>> adapters
        GeneratedLoRA(2 layers, 3 samples, r=4, scale=4)
        >>> [tuple(part.shape) for part in adapters["layers.1.fc"]]
        [(3, 4, 8), (3, 6, 4)]
    """

    def __init__(
        self,
        targets: dict[str, Any],
        num_layers: int,
        cond_dim: int,
        rank: int = 8,
        alpha: float = 16.0,
        token_dim: int = 64,
        dim: int = 128,
        head_dim: int = 32,
        accumulation: int = 2,
        depth: int = 2,
        zero_init: bool = True,
        checkpointing: bool = False,
        prefix: str = "layers",
        layout: Literal["flat", "rank"] = "flat",
    ) -> None:
        for name, value in (
            *(("num_layers", num_layers), ("cond_dim", cond_dim), ("dim", dim), ("head_dim", head_dim)),
            *(("accumulation", accumulation), ("depth", depth)),
        ):
            check_number(name, value, low=1, whole=True)
        check_number("alpha", alpha, low=0.0, low_allowed=False)
        tokenizer = LoRATokenizer(targets, rank, token_dim, layout)
        if rank % accumulation or dim % accumulation:
            raise ValueError(f"accumulation is {accumulation}; allowed is a divisor of rank {rank} and of dim {dim}")
        if dim % head_dim or head_dim % 4:
            raise ValueError(f"head_dim is {head_dim}; allowed is a multiple of 4 that divides dim {dim}")
        if num_layers > 1 and not prefix:
            raise ValueError(f"prefix is empty with {num_layers} layers, which would all have one name; give theirs")
        super().__init__()
        self.tokenizer, self.num_layers, self.cond_dim = tokenizer, num_layers, cond_dim
        self.rank, self.alpha, self.accumulation = rank, float(alpha), accumulation
        self.checkpointing, self.prefix = checkpointing, prefix
        share, sheets = dim // accumulation, sum(tokenizer.counts)
        self.condition_in, self.norm_condition = nn.Linear(cond_dim, dim), WideRMSNorm(dim, eps=1e-6)
        self.sheet_queries = nn.Parameter(torch.randn(sheets * rank, share))
        self.layer_queries = nn.Parameter(torch.randn(num_layers, share))
        self.norm_queries, self.norm_out = WideRMSNorm(dim, eps=1e-6), WideRMSNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList([GeneratorBlock(dim, head_dim) for _ in range(depth)])
        self.head_a, self.head_b = nn.Linear(share, token_dim), nn.Linear(share, token_dim)
        if zero_init:
            nn.init.zeros_(self.head_b.weight)
            nn.init.zeros_(self.head_b.bias)
        self._head_dim = head_dim

    @classmethod
    def for_backbone(
        cls, backbone: nn.Module, target_modules: str | Sequence[str], cond_dim: int, **options: Any
    ) -> "WeightGenerator":
        """Return a generator for the linear layers of a backbone that patterns name.

        What peft's ``LoraConfig`` says goes in as ``config.target_modules``, ``rank=config.r`` and
        ``alpha=config.lora_alpha``.

        Args:
            backbone: Network.
            target_modules: As of [`find_targets`][lightning_weights.modules.find_targets].
            cond_dim: Width of the condition.
            options: Further arguments of the generator.

        Raises:
            ValueError: If a pattern names nothing, or layers differ.

        Examples:
            >>> backbone = nn.ModuleDict({"blocks": nn.ModuleList([nn.Sequential(nn.Linear(8, 8)) for _ in range(3)])})
            >>> generator = WeightGenerator.for_backbone(backbone, "0", cond_dim=5)
            >>> generator.names
            ['blocks.0.0', 'blocks.1.0', 'blocks.2.0']
        """
        targets, num_layers, prefix = find_targets(backbone, target_modules)
        return cls(dict(targets), num_layers, cond_dim, prefix=prefix, **options)

    def rotary_tables(self, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the rotations of layers, of the tokens of a layer, of all queries, and of a condition's tokens.

        Args:
            length: Tokens of the condition.
        """
        # no buffers: those would be rounded with the weights, and be empty where weights come from the meta device
        device = self.sheet_queries.device
        sheets, groups = sum(self.tokenizer.counts), self.rank // self.accumulation
        layer, token = (torch.arange(size, device=device) for size in (self.num_layers, sheets * groups))
        both = [layer.repeat_interleave(len(token)), token.repeat(self.num_layers)]
        place = torch.arange(length, device=device) + max(sheets, groups)
        axes = ([layer], [token // groups, token % groups], both, [place, place])
        first, second, third, fourth = (rotary_table(positions, self._head_dim) for positions in axes)
        return first, second, third, fourth

    @property
    def scale(self) -> float:
        """Factor α / r of the updates."""
        return self.alpha / self.rank

    @property
    def numbers(self) -> int:
        """How many numbers are generated for a sample."""
        return self.num_layers * self.tokenizer.numbers

    @property
    def names(self) -> list[str]:
        """Names of the linear layers in the backbone."""
        return list(self.sizes)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers in the backbone by name."""
        empty = {name: torch.empty(shape, device="meta") for name, shape in self.tokenizer.shapes.items()}
        own = {name: (a.shape[-1], b.shape[-2]) for name, (a, b) in self.tokenizer.layers_of(empty).items()}
        return {self._name(layer, name): size for layer in range(self.num_layers) for name, size in own.items()}

    def _name(self, layer: int, name: str) -> str:
        return f"{self.prefix}.{layer}.{name}" if self.prefix else name

    def queries(self) -> Tensor:
        """Return the normalised queries of all tokens (1, layers, tokens of a layer, dim), the same for all samples."""
        summed = self.sheet_queries[None] + self.layer_queries[:, None]
        return self.norm_queries(summed.unflatten(1, (-1, self.accumulation)).flatten(-2))[None]

    def token_grid(self, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the tokens (B, layers, sheets, r, token width) of every sample.

        Args:
            condition: Tokens of the condition (B, L, cond_dim).
            mask: Which of them count (B, L), truth values. ``None``: all.

        Raises:
            ValueError: If shapes don't fit, or, on the CPU, the condition has NaN or a sample has no token that counts.
        """
        self._check(condition, mask)
        encoded = self.norm_condition(self.condition_in(condition.to(self.condition_in.weight.dtype)))
        tables, x = self.rotary_tables(condition.shape[1]), self.queries()
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, encoded, tables, mask, use_reentrant=False)
            else:
                x = block(x, encoded, tables, mask)
        x = self.norm_out(x).unflatten(-1, (self.accumulation, -1)).flatten(2, 3)
        sheets = x.unflatten(2, (-1, self.rank))
        first, second = sheets.split(self.tokenizer.counts, dim=2)
        return torch.cat([self.head_a(first), self.head_b(second)], dim=2)

    def forward(self, condition: Tensor, mask: Tensor | None = None) -> GeneratedLoRA:
        """Return the matrices of every sample; arguments as of ``token_grid``."""
        return self._matrices(self.token_grid(condition, mask))

    @torch.compiler.disable  # nothing but views, and a mapping, which graphs can't return
    def _matrices(self, grid: Tensor) -> GeneratedLoRA:
        found = {
            self._name(number, name): pair
            for number, tokens in enumerate(grid.unbind(1))
            for name, pair in self.tokenizer.layers_of(self.tokenizer.detokenize(tokens)).items()
        }
        experts = tuple(
            f"{name}." for name, target in self.tokenizer.targets.items() if isinstance(target, ExpertGroup)
        )
        starts = tuple(self._name(number, name) for number in range(self.num_layers) for name in experts)
        return GeneratedLoRA(found, self.scale, [name for name in found if name.startswith(starts)] if starts else ())

    def _check(self, condition: Tensor, mask: Tensor | None) -> None:
        if condition.dim() != 3 or condition.shape[2] != self.cond_dim or not condition.shape[1]:
            raise ValueError(
                f"condition has shape {tuple(condition.shape)}; allowed is (B, L, {self.cond_dim}) with L from 1: "
                f"a single vector per sample is condition[:, None]"
            )
        if mask is not None and (mask.shape != condition.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask has shape {tuple(mask.shape)} and {mask.dtype}; allowed are truth values of shape "
                f"{tuple(condition.shape[:2])}, true where a token counts"
            )
        # elsewhere looking would make the host wait, and what is traced has no values
        if condition.device.type == "cpu" and not torch.compiler.is_compiling():
            if bool(condition.isnan().any()):
                raise ValueError("condition has NaN; leave such samples out, or fill what is padded with zeros")
            if mask is not None and not bool(mask.any(1).all()):
                raise ValueError("mask leaves a sample without any token; allowed is one or more that count")
