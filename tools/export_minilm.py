"""Export the encoder all-MiniLM-L6-v2 to ONNX: token ids → last hidden state [batch, sequence, 384].

Three exporters as people use them: `dynamo` (PyTorch's default), `dynamo-unoptimized` (without what that one
optimizes by itself) and `torchscript` (the exporter before it).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModel

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
OUTPUT = "last_hidden_state"
AXES = {0: "batch", 1: "sequence"}


class Encoder(torch.nn.Module):
    """The encoder with positional inputs and its hidden state as the only output."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.bert = AutoModel.from_pretrained(weights)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """Hidden state, float32 [batch, sequence, 384], of int64 [batch, sequence] inputs."""
        hidden: torch.Tensor = self.bert(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        return hidden


def export(weights: Path, target: Path, exporter: str) -> None:
    """Write the ONNX model of the encoder whose weights lie in the folder `weights`."""
    arguments = (
        torch.randint(0, 30522, (2, 16)),
        torch.ones(2, 16, dtype=torch.int64),
        torch.zeros(2, 16, dtype=torch.int64),
    )
    call = partial(torch.onnx.export, Encoder(weights).eval(), arguments, target)
    call = partial(call, input_names=INPUTS, output_names=[OUTPUT])
    if exporter == "torchscript":
        call(dynamo=False, opset_version=17, dynamic_axes={name: AXES for name in [*INPUTS, OUTPUT]})
        return
    dims = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("sequence", min=2, max=512)}
    call(optimize=exporter == "dynamo", dynamic_shapes=(dims, dims, dims), external_data=False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path, help="folder with config.json and model.safetensors")
    parser.add_argument("target", type=Path, help="ONNX file to write")
    parser.add_argument(
        "--exporter", choices=["dynamo", "dynamo-unoptimized", "torchscript"], default="dynamo"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    export(options.weights, options.target, options.exporter)


if __name__ == "__main__":
    main()
