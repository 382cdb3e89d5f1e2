"""FOEM: GPTQ that remembers the original weights."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from lightning_weights.callbacks.compensation_quantization import CompensationQuantization
from lightning_weights.functional.column_solver import FOEMConfig


class FOEM(CompensationQuantization):
    r"""Quantize a trained network by FOEM: GPTQ whose weights are pulled back to the original ones before rounding.

    $$e_q = \frac{(w_q - \hat w_q) - \beta (w_q - w^0_q)}{U_{qq}}, \qquad
    w_{q+1} \leftarrow w_{q+1} - \beta (w_{q+1} - w^0_{q+1})$$

    A weight that has made up for others is no longer at a minimum of the loss: the gradient there, estimated from how
    far it has come, pulls it back. With α > 0 the network is run at full precision, too, as for `GPTAQ`. See
    `CompensationQuantization` for when it acts and what it needs.

    Args:
        config: Bits, group size, β and what else the solver takes.
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

    Source: Zheng, Qin, Li, Chu, Wang, Guo, Magno, Liu, 2025, arXiv:2507.11017v2, as in its authors' library GPTQModel;
    the first version is ``config.variant='v1'``.

    Examples:
        >>> FOEM(FOEMConfig(bits=4, beta=0.2)).config.beta
        0.2

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.FOEM
              init_args: {config: {bits: 3, group_size: 64, beta: 0.1}, blocks: model.model.layers}
        ```
    """

    key = "foem"

    def __init__(
        self,
        config: FOEMConfig = FOEMConfig(),  # noqa: B008 (frozen)
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
            config=FOEMConfig(**config) if isinstance(config, Mapping) else config,
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
