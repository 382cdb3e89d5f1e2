"""GPTQ, GPTAQ and ResComp: column by column, each with more of what an error leaves behind."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from lightning_weights.callbacks.compensation_quantization import CompensationQuantization
from lightning_weights.errors import check_choice
from lightning_weights.functional.column_solver import CompensationConfig


def _with_method(config: CompensationConfig | Mapping[str, Any], method: str) -> CompensationConfig:
    config = CompensationConfig(**config) if isinstance(config, Mapping) else config
    return replace(config, method=method)


class GPTQ(CompensationQuantization):
    r"""Quantize a trained network by GPTQ: later columns make up for every rounding error.

    $$W_{:,q+1:} \leftarrow W_{:,q+1:} - \frac{w_q - \hat w_q}{U_{qq}} U_{q,q+1:}, \qquad
    U^\top U = (X X^\top + \lambda I)^{-1}$$

    See `CompensationQuantization` for when it acts and what it needs.

    Args:
        config: Bits, group size and what else the solver takes; its ``method`` becomes ``gptq``.
        targets: Regular expression of the names of Linear and Conv layers, or of the last parts of them.
        ignore: Regular expressions of modules that are left out, with all that is inside.
        blocks: Name of a ModuleList or Sequential whose blocks follow each other; ``None``: all layers.
        num_samples: Number of calibration samples, of all processes together.
        when: When it happens: ``fit_end``, ``validate_start``, ``test_start`` or ``predict_start``.
        export: ``fake`` puts quantized values into the weights, ``packed`` puts ``QuantizedLinear`` layers into the
            network.
        cache_device: Where the inputs of blocks are kept.
        on_missing: What becomes of layers that no batch reaches: an error (``raise``), ``rtn``, or ``skip``.
        mask: Entry of a dict batch that is 0 at padding. ``None``: all tokens count.
        force_tied: Whether a weight is quantized that an embedding uses, too.
        measure_blocks: Whether the report has the error of every block, if the method needs no full-precision run.
        folder: Folder to keep finished layers in, with which an interrupted run goes on. ``None``: none is kept.
        calibration_dataloader: Calibration data, if they are not those of the module or its data module.

    Raises:
        ValueError: If an argument is out of range; when it acts, see ``modules.quantize``.
        ShardedParameterError: When it acts, if weights are sharded.

    Source: Frantar, Ashkboos, Hoefler, Alistarh, 2023, arXiv:2210.17323. Differs in its defaults, which are those of
    `CompensationConfig`: a symmetric grid, ends clipped for the smallest error, columns in order of their activations.

    Examples:
        >>> GPTQ().config.method
        'gptq'

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.GPTQ
              init_args: {config: {bits: 3, group_size: 64}, blocks: model.model.layers}
        ```
    """

    def __init__(
        self,
        config: CompensationConfig = CompensationConfig(method="gptq"),  # noqa: B008 (frozen)
        targets: str = ".*",
        ignore: Sequence[str] = ("lm_head",),
        blocks: str | None = None,
        num_samples: int = 128,
        when: Literal["fit_end", "validate_start", "test_start", "predict_start"] = "test_start",
        export: Literal["fake", "packed"] = "fake",
        cache_device: str = "cpu",
        on_missing: Literal["raise", "rtn", "skip"] = "raise",
        mask: str | None = "attention_mask",
        force_tied: bool = False,
        measure_blocks: bool = False,
        folder: str | None = None,
        calibration_dataloader: Iterable[Any] | None = None,
    ) -> None:
        super().__init__(
            targets=targets,
            ignore=ignore,
            blocks=blocks,
            config=_with_method(config, "gptq"),
            num_samples=num_samples,
            when=when,
            export=export,
            cache_device=cache_device,
            on_missing=on_missing,
            mask=mask,
            force_tied=force_tied,
            measure_blocks=measure_blocks,
            folder=folder,
            calibration_dataloader=calibration_dataloader,
        )


class GPTAQ(CompensationQuantization):
    r"""Quantize a trained network by GPTAQ: GPTQ, towards the outputs of the full-precision network.

    $$\min_{\Delta w} \lVert (w + \Delta w) X - w \tilde X \rVert^2$$

    X is what the quantized layers before have made, X̃ what they made at full precision; both networks are run. See
    `CompensationQuantization` for when it acts and what it needs.

    Args:
        config: Bits, group size and what else the solver takes; its ``method`` becomes ``gptaq``, and ``alpha`` is the
            weight of the correction.
        targets: Regular expression of the names of Linear and Conv layers, or of the last parts of them.
        ignore: Regular expressions of modules that are left out, with all that is inside.
        blocks: Name of a ModuleList or Sequential whose blocks follow each other; ``None``: all layers.
        num_samples: Number of calibration samples, of all processes together.
        when: When it happens: ``fit_end``, ``validate_start``, ``test_start`` or ``predict_start``.
        export: ``fake`` puts quantized values into the weights, ``packed`` puts ``QuantizedLinear`` layers into the
            network.
        cache_device: Where the inputs of blocks are kept.
        on_missing: What becomes of layers that no batch reaches: an error (``raise``), ``rtn``, or ``skip``.
        mask: Entry of a dict batch that is 0 at padding. ``None``: all tokens count.
        force_tied: Whether a weight is quantized that an embedding uses, too.
        measure_blocks: Whether the report has the error of every block, if the method needs no full-precision run.
        folder: Folder to keep finished layers in, with which an interrupted run goes on. ``None``: none is kept.
        calibration_dataloader: Calibration data, if they are not those of the module or its data module.

    Raises:
        ValueError: If an argument is out of range; when it acts, see ``modules.quantize``.
        ShardedParameterError: When it acts, if weights are sharded.

    Source: Li, Yin, Lee, Xiao, Panda, 2025, arXiv:2504.02692. α = 0.25 is that of the released code, the paper has 1.

    Examples:
        >>> GPTAQ().config.method
        'gptaq'

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.GPTAQ
              init_args: {config: {bits: 3, group_size: 64}, blocks: model.model.layers}
        ```
    """

    def __init__(
        self,
        config: CompensationConfig = CompensationConfig(method="gptaq"),  # noqa: B008 (frozen)
        targets: str = ".*",
        ignore: Sequence[str] = ("lm_head",),
        blocks: str | None = None,
        num_samples: int = 128,
        when: Literal["fit_end", "validate_start", "test_start", "predict_start"] = "test_start",
        export: Literal["fake", "packed"] = "fake",
        cache_device: str = "cpu",
        on_missing: Literal["raise", "rtn", "skip"] = "raise",
        mask: str | None = "attention_mask",
        force_tied: bool = False,
        measure_blocks: bool = False,
        folder: str | None = None,
        calibration_dataloader: Iterable[Any] | None = None,
    ) -> None:
        super().__init__(
            targets=targets,
            ignore=ignore,
            blocks=blocks,
            config=_with_method(config, "gptaq"),
            num_samples=num_samples,
            when=when,
            export=export,
            cache_device=cache_device,
            on_missing=on_missing,
            mask=mask,
            force_tied=force_tied,
            measure_blocks=measure_blocks,
            folder=folder,
            calibration_dataloader=calibration_dataloader,
        )


class ResComp(CompensationQuantization):
    r"""Quantize a trained network by ResComp: GPTAQ or GPTQ, towards the outputs of the original weights.

    $$\min_{\Delta w} \lVert (w + \Delta w) X - w^0 \tilde X \rVert^2$$

    The weights w that are still to be quantized have made up for earlier errors; what they have lost of the original
    w⁰ is added to what later columns have to make up for, with weight ``config.alpha_cae``. See
    `CompensationQuantization` for when it acts and what it needs.

    Args:
        config: Bits, group size and what else the solver takes; its ``method`` is set by ``base``.
        base: What the residual is added to: ``gptaq``, or ``gptq``, which needs no run at full precision.
        targets: Regular expression of the names of Linear and Conv layers, or of the last parts of them.
        ignore: Regular expressions of modules that are left out, with all that is inside.
        blocks: Name of a ModuleList or Sequential whose blocks follow each other; ``None``: all layers.
        num_samples: Number of calibration samples, of all processes together.
        when: When it happens: ``fit_end``, ``validate_start``, ``test_start`` or ``predict_start``.
        export: ``fake`` puts quantized values into the weights, ``packed`` puts ``QuantizedLinear`` layers into the
            network.
        cache_device: Where the inputs of blocks are kept.
        on_missing: What becomes of layers that no batch reaches: an error (``raise``), ``rtn``, or ``skip``.
        mask: Entry of a dict batch that is 0 at padding. ``None``: all tokens count.
        force_tied: Whether a weight is quantized that an embedding uses, too.
        measure_blocks: Whether the report has the error of every block, if the method needs no full-precision run.
        folder: Folder to keep finished layers in, with which an interrupted run goes on. ``None``: none is kept.
        calibration_dataloader: Calibration data, if they are not those of the module or its data module.

    Raises:
        ValueError: If an argument is out of range; when it acts, see ``modules.quantize``.
        ShardedParameterError: When it acts, if weights are sharded.

    Source: Li, Deng, Xu, Deng, Gu, Jiang, Shen, Huang, 2026, arXiv:2604.07955. Both weights are 0.25 as in the released
    code; clipping in lazy updates follows each column's own group.

    Examples:
        >>> ResComp().config.method
        'rescomp'

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.ResComp
              init_args: {config: {bits: 3, group_size: 64}, blocks: model.model.layers}
        ```
    """

    def __init__(
        self,
        config: CompensationConfig = CompensationConfig(),  # noqa: B008 (frozen)
        base: Literal["gptaq", "gptq"] = "gptaq",
        targets: str = ".*",
        ignore: Sequence[str] = ("lm_head",),
        blocks: str | None = None,
        num_samples: int = 128,
        when: Literal["fit_end", "validate_start", "test_start", "predict_start"] = "test_start",
        export: Literal["fake", "packed"] = "fake",
        cache_device: str = "cpu",
        on_missing: Literal["raise", "rtn", "skip"] = "raise",
        mask: str | None = "attention_mask",
        force_tied: bool = False,
        measure_blocks: bool = False,
        folder: str | None = None,
        calibration_dataloader: Iterable[Any] | None = None,
    ) -> None:
        check_choice("base", base, ("gptaq", "gptq"))
        self.base = base
        super().__init__(
            targets=targets,
            ignore=ignore,
            blocks=blocks,
            config=_with_method(config, "rescomp" if base == "gptaq" else "rescomp_gptq"),
            num_samples=num_samples,
            when=when,
            export=export,
            cache_device=cache_device,
            on_missing=on_missing,
            mask=mask,
            force_tied=force_tied,
            measure_blocks=measure_blocks,
            folder=folder,
            calibration_dataloader=calibration_dataloader,
        )
