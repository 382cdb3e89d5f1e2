"""The operations of PyTorch that interval propagation knows from the start."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lightning_weights.functional.intervals import rules
from lightning_weights.functional.intervals.registry import Rule, register_interval_rule

AFFINE: dict[Any, Rule] = {
    nn.Linear: rules.linear_layer,
    F.linear: rules.linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), rules.conv_layer),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), rules.conv),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), rules.batch_norm_layer),
    F.batch_norm: rules.batch_norm,
    **dict.fromkeys((operator.add, torch.add, "add", "add_"), rules.plus_or_minus),
    **dict.fromkeys((operator.sub, torch.sub, "sub", "sub_"), rules.plus_or_minus),
    **dict.fromkeys((operator.mul, torch.mul, "mul", "mul_"), rules.product),
    **dict.fromkeys((operator.truediv, torch.div, "div", "div_"), rules.quotient),
    **dict.fromkeys((operator.matmul, torch.matmul, "matmul"), rules.product),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), rules.negative),
    **dict.fromkeys((torch.cat, torch.stack), rules.concatenate),
    **dict.fromkeys((nn.Identity, "contiguous"), rules.fixed),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), rules.dropout),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), rules.dropout),
}
VIEWS = (  # which may share memory with what they look at
    *(nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, operator.getitem),
    *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute, torch.transpose),
    *("flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "unflatten", "expand"),
)
POSITIVE_LINEAR = (
    *VIEWS,
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, torch.mean, torch.sum, "mean", "sum"),
)
MONOTONE = (
    *(nn.Sigmoid, nn.Tanh, nn.SELU, nn.Hardtanh, nn.ReLU6, nn.LogSigmoid, nn.Softsign, nn.Hardsigmoid),
    *(F.selu, F.hardtanh, F.relu6, F.logsigmoid, F.softsign, F.hardsigmoid),
    *(torch.sigmoid, torch.tanh, torch.exp, "sigmoid", "tanh", "exp"),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d, F.pad),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, F.adaptive_max_pool1d, F.adaptive_max_pool2d),
)
RELU = (nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_")
SLOPED = (nn.LeakyReLU, nn.ELU, nn.CELU, F.leaky_relu, F.elu, F.celu)
SOFTPLUS = (nn.Softplus, F.softplus)

for operation, rule in AFFINE.items():
    register_interval_rule(operation, rule)
for operations, rule in (
    (POSITIVE_LINEAR, rules.positive_linear),
    (MONOTONE, rules.monotone),
    (RELU, rules.relu),
    (SLOPED, rules.sloped),
    (SOFTPLUS, rules.softplus),
):
    for operation in operations:
        register_interval_rule(operation, rule)
