"""Generated matrices of one sample as a folder that peft reads."""

import json
import re
from pathlib import Path

from lightning_weights.functional._safetensors import safetensors
from lightning_weights.functional.whole_files import replacing_file
from lightning_weights.modules.generated_lora import GeneratedLoRA


def export_lora(adapters: GeneratedLoRA, index: int, folder: str | Path, base_model: str | None = None) -> None:
    """Write the matrices of one sample as an ordinary LoRA, for ``peft.PeftModel.from_pretrained``.

    Args:
        adapters: What a generator returned.
        index: Number of the sample.
        folder: Where ``adapter_config.json`` and ``adapter_model.safetensors`` go; made if it is not there.
        base_model: Name or path of the base model, for peft's ``base_model_name_or_path``.

    Raises:
        IndexError: If there is no such sample.
        MissingDependencyError: If the package safetensors is not installed.

    Examples:
        >>> import tempfile, torch
        >>> lora = GeneratedLoRA({"fc": (torch.ones(3, 2, 4), torch.ones(3, 5, 2))}, scale=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_lora(lora, 2, folder)
        ...     json.loads(Path(folder, "adapter_config.json").read_text())["lora_alpha"]
        1.0
    """
    if not 0 <= index < adapters.batch_size:
        raise IndexError(f"index is {index}; allowed are 0 to {adapters.batch_size - 1}")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "task_type": None,
        "r": adapters.rank,
        "lora_alpha": adapters.scale * adapters.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        # a regular expression: as a list, the name "0" would also find "head.0"
        "target_modules": "|".join(map(re.escape, adapters)),
    }
    tensors = adapters.to_peft_state_dict(index)
    save_file = safetensors("peft", "Writing adapters").save_file
    with replacing_file(Path(folder, "adapter_model.safetensors")) as path:
        save_file(tensors, path, metadata={"format": "pt"})
    with replacing_file(Path(folder, "adapter_config.json")) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
