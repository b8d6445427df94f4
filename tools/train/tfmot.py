"""What pruning with training reaches: the committed CNN in Keras, then with half of its weights trained away.

python -m tools.train.tfmot OUT trains the CNN as `tools.train` does, then as long again: as it is, and under
TensorFlow's Model Optimization Toolkit, which keeps half of the weights of each layer at zero; with Adam as
the toolkit's guide has it, and with the first training's rates once more. All are written to the folder OUT
with tf2onnx, taking [batch, 1, 28, 28], and judged in ONNX Runtime on the 10,000 test images.

    pip install tensorflow tf-keras tensorflow-model-optimization tf2onnx onnxruntime

This is run by hand: it needs packages that nothing else here does. Its figures are in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # the toolkit knows no other Keras
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnxruntime as ort
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf2onnx
import tf_keras as keras

from tools.train import data

SEED = 0
EPOCHS, BATCH, RATE = 5, 128, 3e-3  # as tools.train has them
GUIDE_RATE = 1e-3  # Adam's default
SPARSITY = 0.5
OPSET = 17


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """PyTorch's OneCycleLR with its defaults: up from a 25th in 30 % of the steps, then down to nearly none.

    Both are halves of a cosine (Smith and Topin, 2018).
    """

    def __init__(self, steps: int) -> None:
        self.peak = 0.3 * steps - 1
        self.rest = steps - 1 - self.peak

    def __call__(self, step: Any) -> Any:
        """Learning rate of a step."""
        now = tf.cast(step, tf.float32)
        rising = between(RATE / 25, RATE, now / self.peak)
        falling = between(RATE, RATE / 25e4, (now - self.peak) / self.rest)
        return tf.where(now < self.peak, rising, falling)


def between(start: float, end: float, share: Any) -> Any:
    """Half a cosine from ``start`` to ``end``, at ``share`` of the way."""
    return end + (start - end) / 2 * (1 + tf.cos(math.pi * share))


def cnn() -> Any:
    """The committed CNN's layers; Keras has channels last."""
    return keras.Sequential(
        [
            keras.layers.Conv2D(32, 3, activation="relu", input_shape=(28, 28, 1)),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def train(model: Any, split: data.Split, rate: Any, callbacks: Sequence[Any] = ()) -> None:
    """Adam with this learning rate on the cross entropy."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(rate), loss=loss)
    images = split.images.transpose(0, 2, 3, 1)
    model.fit(images, split.labels, BATCH, EPOCHS, callbacks=list(callbacks), verbose=2)


def copied(model: Any) -> Any:
    """Another model with the same weights."""
    copy = cnn()
    copy.set_weights(model.get_weights())
    return copy


def longer(model: Any, split: data.Split, rate: Any) -> Any:
    """The model after as many epochs again."""
    copy = copied(model)
    train(copy, split, rate)
    return copy


def pruned(model: Any, split: data.Split, rate: Any) -> Any:
    """The model after as many epochs again with half of each layer's weights at zero."""
    schedule = tfmot.sparsity.keras.ConstantSparsity(SPARSITY, 0)
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(copied(model), pruning_schedule=schedule)
    train(wrapped, split, rate, [tfmot.sparsity.keras.UpdatePruningStep()])
    return tfmot.sparsity.keras.strip_pruning(wrapped)


def export(model: Any, file: Path) -> None:
    """Write the model as ONNX, channels first."""
    signature = [tf.TensorSpec((None, 28, 28, 1), tf.float32, name="input")]
    tf2onnx.convert.from_keras(model, signature, opset=OPSET, inputs_as_nchw=["input"], output_path=str(file))


def accuracy(file: Path, split: data.Split) -> float:
    """Percentage of images whose largest logit is the label's, in ONNX Runtime."""
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    parts = np.split(split.images, 10)
    answers = np.concatenate([session.run(None, {"input": part})[0].argmax(1) for part in parts])
    return 100 * float((answers == split.labels).mean())


def main() -> None:
    """Train, prune, export and judge."""
    parser = argparse.ArgumentParser(prog="python -m tools.train.tfmot", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=data.DEBIAN, help="folder with the IDX files")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(SEED)
    training, test = data.load(options.data, "train"), data.load(options.data, "t10k")
    options.out.mkdir(parents=True, exist_ok=True)
    cycle = OneCycle(EPOCHS * math.ceil(len(training.images) / BATCH))
    model = cnn()
    train(model, training, cycle)
    made = {"dense": model}
    for name, rate in {"guide": GUIDE_RATE, "cycle": cycle}.items():
        made[f"longer_{name}"] = longer(model, training, rate)
        made[f"pruned_{name}"] = pruned(model, training, rate)
    for name, network in made.items():
        export(network, options.out / f"{name}.onnx")
        print(f"{name}: {accuracy(options.out / f'{name}.onnx', test):.2f} %")


if __name__ == "__main__":
    main()
