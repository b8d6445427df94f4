"""Train and export the committed models, seeded and on one thread: a second run makes the same.

With `--only chargpt`: the character-level GPT, which is not committed, but goes to the cache of real models.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from tools import models
from tools.train import chargpt, data, networks, text

SEED = 0
BATCH = 128
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # with the epochs that each needs
    "fashion_mlp": (networks.mlp, 10),
    "fashion_cnn": (networks.cnn, 5),
    "fashion_residual": (networks.residual, 6),
    "fashion_vit": (networks.VisionTransformer, 8),
    "fashion_resnet": (networks.resnet, 4),
    "fashion_lstm": (networks.Recurrent, 5),
}


def train(network: nn.Module, split: data.Split, epochs: int) -> None:
    """Adam with a one-cycle learning rate on the cross entropy."""
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    optimizer = torch.optim.Adam(network.parameters())
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, split: data.Split) -> float:
    """Percentage of images whose largest logit is the label's."""
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    answers = torch.cat([network(part).argmax(1) for part in images.split(1000)])
    return 100 * float((answers == labels).double().mean())


def export(network: nn.Module, file: Path) -> None:
    """Write the network as ONNX, dynamic in its batch, with normalization and dropout left in."""
    sample: Tensor = torch.zeros(2, 1, 28, 28)
    program = torch.onnx.export(
        network,
        (sample,),
        dynamo=True,
        verbose=False,
        optimize=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
    )
    assert program is not None
    onnx.save(without_traces(program.model_proto, file.stem), file)


def without_traces(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """`model` under its own name, without the Python stack traces that the exporter records."""
    del model.metadata_props[:]
    model.graph.name = name
    for entry in [model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer]:
        del entry.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    return model


def main() -> None:
    """Write the models and their data, and print the numbers for models/README.md."""
    parser = argparse.ArgumentParser(prog="python -m tools.train", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=data.DEBIAN, help="folder with the IDX files of Fashion-MNIST"
    )
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder to write to")
    choices = [*NETWORKS, text.NAME]
    parser.add_argument("--only", nargs="+", choices=choices, default=list(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if text.NAME in options.only:
        file = models.cache_folder() / f"{text.NAME}.onnx"
        print(f"| {file.name} | {chargpt.make(file):.3f} |", flush=True)
    train_committed([name for name in options.only if name != text.NAME], options)


def train_committed(names: list[str], options: argparse.Namespace) -> None:
    """Write the data and these models of Fashion-MNIST, and print their accuracies."""
    if not names:
        return
    training, test = data.load(options.data, "train"), data.load(options.data, "t10k")
    data.write_samples(training, test, options.out, SEED)
    first = data.Split(test.images[: data.TEST_IMAGES], test.labels[: data.TEST_IMAGES])
    for name in names:
        make, epochs = NETWORKS[name]
        torch.manual_seed(SEED)
        network = make()
        train(network, training, epochs)
        export(network, options.out / f"{name}.onnx")
        print(
            f"| {name}.onnx | {accuracy(network, test):.2f} % | {accuracy(network, first):.2f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
