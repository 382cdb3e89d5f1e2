"""A tokenizer for generated tasks: every symbol is a token."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Encoding(NamedTuple):
    """What a tokenizer returns, under the name that transformers gives it.

    Attributes:
        input_ids: Tokens.

    Examples:
        >>> Encoding([2, 3]).input_ids
        [2, 3]
    """

    input_ids: list[int]


class SymbolTokenizer:
    """Turn characters into tokens, behind the part of transformers' interface that training by reinforcement needs.

    Token 0 fills up, token 1 ends a text, and the symbols follow.

    Args:
        symbols: Characters, each once.

    Raises:
        ValueError: If a character occurs twice, or there is none.

    Examples:
        >>> tokenizer = SymbolTokenizer("abc")
        >>> tokenizer("cab").input_ids, tokenizer.decode([4, 2, 1]), len(tokenizer)
        ([4, 2, 3], 'ca', 5)
    """

    pad_token_id = 0
    eos_token_id = 1

    def __init__(self, symbols: str) -> None:
        if not isinstance(symbols, str) or not symbols or len(set(symbols)) < len(symbols):
            raise ValueError(f"symbols is {symbols!r}; allowed are characters, each once")
        self.symbols = symbols

    def __len__(self) -> int:
        return 2 + len(self.symbols)

    def __call__(self, text: str, add_special_tokens: bool = False, **options: Any) -> Encoding:
        """Return the tokens of a text.

        Raises:
            ValueError: If it has another character.
        """
        for character in text:
            if character not in self.symbols:
                raise ValueError(f"{text!r} has the character {character!r}; allowed are {self.symbols!r}")
        tokens = [2 + self.symbols.index(character) for character in text]
        return Encoding([*tokens, self.eos_token_id] if add_special_tokens else tokens)

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of tokens; special ones are left out."""
        return "".join(self.symbols[int(token) - 2] for token in tokens if int(token) >= 2)
