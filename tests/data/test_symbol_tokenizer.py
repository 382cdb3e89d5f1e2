import pytest

from lightning_weights.data import SymbolTokenizer


def test_texts_come_back():
    tokenizer = SymbolTokenizer("0123S.")
    tokens = tokenizer("3S.0").input_ids
    assert tokenizer.decode([0, *tokens, tokenizer.eos_token_id, 0]) == "3S.0"
    assert max(tokens) < len(tokenizer) == 8
    assert tokenizer("3", add_special_tokens=True).input_ids == [5, 1]


def test_bad_input():
    for symbols in ("", "aa", None):
        with pytest.raises(ValueError, match="symbols is"):
            SymbolTokenizer(symbols)
    with pytest.raises(ValueError, match="'b' has the character 'b'; allowed are 'a'"):
        SymbolTokenizer("a")("b")
