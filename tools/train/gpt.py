"""A character-level GPT: tokens, int64 [batch, sequence], to logits, float32 [batch, sequence, characters].

Pre-norm blocks as of GPT-2, with learned positions and the embedding as the output layer too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONTEXT = 128


class CausalAttention(nn.Module):
    """Multi-head self-attention to what came before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, sequence, width] to the same."""
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then two dense layers, each behind a layer normalization and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), CausalAttention(width, heads))
        dense = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.dense = nn.Sequential(nn.LayerNorm(width), *dense)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, sequence, width] to the same."""
        x = x + self.attention(x)
        return x + self.dense(x)  # type: ignore[no-any-return]


class CharacterGPT(nn.Module):
    """The next character, from up to ``CONTEXT`` before it."""

    def __init__(self, characters: int, width: int = 256, depth: int = 3, heads: int = 8) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.apply(initialize)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the character that follows each."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.norm(self.blocks(self.characters(tokens) + self.positions(places)))
        return nn.functional.linear(hidden, self.characters.weight)


def initialize(module: nn.Module) -> None:
    """Small normal weights, as GPT-2 begins."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
