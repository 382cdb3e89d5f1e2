"""What only convolutions do: groups, and sets that do not mix."""

import torch

from lightning_weights.modules import MixtureConv2d, grow, set_mode


def test_depthwise_growth_has_no_blocks_between():
    layer = MixtureConv2d(4, 8, 3, groups=4)
    halves = []
    for member in ("member0", "member1"):
        set_mode(layer, member)
        halves.append((x := torch.randn(2, 2, 7, 6), layer(x)))
    grow(layer)
    torch.testing.assert_close(layer(torch.cat([x for x, _ in halves], 1)), torch.cat([y for _, y in halves], 1))


def test_member_0_knows_nothing_of_the_other_set():
    layer = MixtureConv2d(4, 6, 3)
    x = torch.randn(2, 2, 7, 6)
    before = layer(x)
    with torch.no_grad():
        for param in (layer.bank.sets[1], *list(layer.coefficients)[1:]):
            param.fill_(torch.nan)
    assert torch.equal(layer(x), before)
