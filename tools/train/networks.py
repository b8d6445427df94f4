"""The committed networks: images, float32 [batch, 1, 28, 28], to logits, float32 [batch, 10]."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def cnn() -> nn.Module:
    """Two convolutions and two dense layers, as in a hundred tutorials."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 5 * 5, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def mlp() -> nn.Module:
    """Three dense layers, 784-128-64-10."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class Dropout(nn.Dropout):
    """Dropout that stays in the exported graph, in its inference form."""

    def forward(self, x: Tensor) -> Tensor:
        """`x`, or while training a random part of it."""
        if torch.onnx.is_in_onnx_export():
            kept: Tensor = torch.onnx.ops.symbolic("Dropout", [x], dtype=x.dtype, shape=x.shape)
            return kept
        return super().forward(x)


class Residual(nn.Module):
    """Depthwise and pointwise convolution beside a shortcut, each with batch normalization."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.depthwise = convolution(width_in, width_in, 3, stride, groups=width_in)
        self.pointwise = convolution(width_in, width, 1)
        same = width_in == width and stride == 1
        self.shortcut = nn.Identity() if same else convolution(width_in, width, 1, stride)
        self.dropout = Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width_in, h, w] to [batch, width, h / stride, w / stride]."""
        inner = self.pointwise(torch.relu(self.depthwise(x)))
        return torch.relu(self.dropout(inner) + self.shortcut(x))


def convolution(width_in: int, width: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """Convolution without bias, then batch normalization."""
    conv = nn.Conv2d(width_in, width, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


def residual() -> nn.Module:
    """A small residual CNN with depthwise convolutions."""
    return nn.Sequential(
        convolution(1, 16, 3),
        nn.ReLU(),
        Residual(16, 16, stride=1),
        Residual(16, 32, stride=2),
        Residual(32, 32, stride=1),
        Residual(32, 64, stride=2),
        Residual(64, 64, stride=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Dropout(0.2),
        nn.Linear(64, 10),
    )


class Basic(nn.Module):
    """Two 3×3 convolutions beside a shortcut, each with batch normalization (He et al., 2016)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(width_in, width, 3, stride)
        self.second = convolution(width, width, 3)
        same = width_in == width and stride == 1
        self.shortcut = nn.Identity() if same else convolution(width_in, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width_in, h, w] to [batch, width, h / stride, w / stride]."""
        inner = self.second(torch.relu(self.first(x)))
        return torch.relu(inner + self.shortcut(x))


def resnet() -> nn.Module:
    """A ResNet of three basic blocks, whose convolutions hold nearly all of its weights."""
    return nn.Sequential(
        convolution(1, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Basic(16, 16, stride=1),
        Basic(16, 32, stride=2),
        Basic(32, 64, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Recurrent(nn.Module):
    """An LSTM that reads an image row by row; its last state is classified."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        states, _ = self.lstm(x.squeeze(1))
        return self.head(states[:, -1])  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention, to all tokens or only to those before."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to the same."""
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then two dense layers, each behind a layer normalization and beside a shortcut.

    The dense layers are ``factor`` times as wide in between.
    """

    def __init__(self, width: int, heads: int, *, factor: int, causal: bool = False) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads, causal))
        dense = nn.Linear(width, factor * width), nn.GELU(), nn.Linear(factor * width, width)
        self.dense = nn.Sequential(nn.LayerNorm(width), *dense)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to the same."""
        x = x + self.attention(x)
        return x + self.dense(x)  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Patches of 4 × 4 pixels, learned positions, pre-norm blocks, mean over the tokens."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 49, width))
        self.blocks = nn.Sequential(*(Block(width, heads, factor=2) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.blocks(tokens).mean(1))  # type: ignore[no-any-return]
