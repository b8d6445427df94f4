"""Train the character-level GPT and export it, seeded, on one thread.

python -m tools.train.chargpt FILE
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from tools.train import text
from tools.train.gpt import CONTEXT, CharacterGPT

SEED = 0
BATCH = 16
STEPS = 1500
RATE = 2e-3


def train(network: nn.Module, tokens: Tensor, steps: int = STEPS) -> None:
    """AdamW with a one-cycle learning rate on the cross entropy of the next character."""
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps, pct_start=0.1)
    offsets = torch.arange(CONTEXT + 1)
    network.train()
    for _ in range(steps):
        starts = torch.randint(len(tokens) - CONTEXT, (BATCH, 1))
        optimizer.zero_grad()
        entropy(network, tokens[starts + offsets]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.eval()


def entropy(network: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross entropy in nats of all characters of [windows, length] but the first."""
    logits = network(windows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def perplexity(network: nn.Module, count: int = 512) -> float:
    """exp of the mean cross entropy on held-out text."""
    windows = torch.from_numpy(text.windows("test", count, CONTEXT + 1))
    return float(torch.stack([entropy(network, part) for part in windows.split(32)]).mean().exp())


def export(network: nn.Module, file: Path) -> None:
    """Write the network as ONNX as PyTorch does by default, dynamic in batch and sequence."""
    dims = {
        0: torch.export.Dim("batch", min=1, max=4096),
        1: torch.export.Dim("sequence", min=2, max=CONTEXT),
    }
    torch.onnx.export(
        network,
        (torch.zeros(2, 16, dtype=torch.int64),),
        file,
        dynamo=True,
        verbose=False,
        input_names=["tokens"],
        output_names=["logits"],
        dynamic_shapes=(dims,),
        external_data=False,
    )


def make(file: Path, steps: int = STEPS) -> float:
    """Train, write the model, and tell its perplexity on held-out text."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    network = CharacterGPT(len(text.alphabet()))
    train(network, torch.from_numpy(text.tokens("train")), steps)
    export(network, file)
    return perplexity(network)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.train.chargpt", description=__doc__)
    parser.add_argument("file", type=Path, help="ONNX file to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    print(f"held-out perplexity {make(options.file, options.steps):.3f}")


if __name__ == "__main__":
    main()
