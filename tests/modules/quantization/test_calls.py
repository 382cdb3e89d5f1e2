"""Which layers share an input."""

import torch
from torch import Tensor, nn

from lightning_weights.modules.quantization.calls import Group, find_groups, merge_groups
from lightning_weights.modules.quantization.targets import find_targets


class Net(nn.Module):
    """Layers called in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.twice = (nn.Linear(4, 4) for _ in range(5))
        self.relu = nn.ReLU(inplace=True)
        self.left, self.right = nn.Conv1d(4, 2, 3), nn.Conv1d(4, 2, 3, padding=1)
        self.third = nn.Conv1d(4, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return anything."""
        self.c(input=x)
        total = self.a(x) + self.b(x)
        x = self.relu(x)
        total = total + self.d(x) + self.twice(x) + self.twice(total)
        image = total.unsqueeze(-1).expand(-1, 4, 8)
        self.left(image), self.right(image), self.third(image)
        return total


def groups_of(module: nn.Module, run: object) -> list[Group]:
    return find_groups(find_targets(module, ".*", []), run)


def test_layers_share_an_input_if_it_is_the_same_tensor_with_the_same_values():
    net = Net()
    with torch.no_grad():
        found = groups_of(net, lambda: net(torch.randn(3, 4)))
    assert [group.names for group in found] == [["c", "a", "b"], ["d"], ["twice"], ["left", "third"], ["right"]]
    assert [group.enough for group in found] == [1, 1, None, 1, 1]


def test_equal_tensors_are_not_the_same_tensor():
    net = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    found = groups_of(net, lambda: [layer(torch.ones(2, 4)) for layer in net])
    assert [group.names for group in found] == [["0"], ["1"]]


def test_inference_tensors_have_no_version():
    net = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    with torch.inference_mode():
        x = torch.ones(2, 4)
        found = groups_of(net, lambda: [layer(x) for layer in net])
    assert [group.names for group in found] == [["0", "1"]]


def test_processes_agree_on_the_order_of_the_first_and_add_what_only_others_reach():
    targets = find_targets(nn.ModuleList(nn.Linear(4, 4) for _ in range(5)), ".*", [])
    plans = [[(["1"], 1), (["0", "2"], 2)], [(["2", "3"], 3), (["1"], 1)], [(["4"], 1)]]
    merged = merge_groups(plans, targets)
    assert [(group.names, group.uses) for group in merged] == [(["1"], 1), (["0", "2"], 2), (["3"], 3), (["4"], 1)]
