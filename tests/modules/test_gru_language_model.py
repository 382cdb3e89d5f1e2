import pytest
import torch

from lightning_weights.modules import GRULanguageModel


def test_a_state_stands_for_what_came_before():
    model, tokens = GRULanguageModel(9), torch.randint(9, (3, 7))
    whole = model(tokens).logits
    first = model(tokens[:, :4], torch.ones(3, 4), use_cache=True)
    rest = model(tokens[:, 4:], torch.ones(3, 7), past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], dim=1), whole)
    assert rest.past_key_values is None


def test_padding_on_the_left_changes_nothing():
    model, tokens = GRULanguageModel(9), torch.randint(9, (2, 5))
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), tokens], dim=1)
    mask = torch.cat([torch.zeros(2, 3), torch.ones(2, 5)], dim=1)
    whole, found = model(tokens, use_cache=True), model(padded, mask, use_cache=True)
    torch.testing.assert_close(found.logits[:, 3:], whole.logits)
    torch.testing.assert_close(found.past_key_values, whole.past_key_values)


@pytest.mark.parametrize("name", ["vocabulary", "hidden", "embedding"])
def test_bad_sizes(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        GRULanguageModel(**{"vocabulary": 9, name: 0})
