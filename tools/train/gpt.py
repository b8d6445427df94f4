"""A character-level GPT: tokens, int64 [batch, sequence], to logits, float32 [batch, sequence, characters].

Pre-norm blocks as of GPT-2, with learned positions and the embedding as the output layer too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tools.train.networks import Block

CONTEXT = 128


class CharacterGPT(nn.Module):
    """The next character, from up to ``CONTEXT`` before it."""

    def __init__(self, characters: int, width: int = 256, depth: int = 3, heads: int = 8) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads, factor=4, causal=True) for _ in range(depth)))
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
