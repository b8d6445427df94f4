"""Fashion-MNIST as arrays, and the small files of images that are committed beside the models."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
CALIBRATION_IMAGES = 1000
TEST_IMAGES = 2000

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images, float32 [n, 1, 28, 28] in 0…1, and labels, int64 [n] in 0…9."""

    images: Images
    labels: Labels


def load(folder: Path, split: str) -> Split:
    """The split `train` (60,000) or `t10k` (10,000) from the IDX files in `folder`."""
    pixels = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    return Split(pixels[:, None].astype(np.float32) / np.float32(255), labels.astype(np.int64))


def read_idx(file: Path) -> NDArray[np.uint8]:
    """Array in a gzipped IDX file: four bytes, the last of which is the rank, then dims, then data."""
    content = gzip.decompress(file.read_bytes())
    rank = content[3]
    dims: NDArray[Any] = np.frombuffer(content, ">i4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(dims)


def write_samples(train: Split, test: Split, folder: Path, seed: int) -> None:
    """Write 1,000 training images for calibration, and the first 2,000 test images with labels."""
    chosen = np.random.default_rng(seed).choice(len(train.images), CALIBRATION_IMAGES, replace=False)
    np.savez_compressed(folder / "fashion_calibration.npz", input=train.images[np.sort(chosen)])
    images, labels = test.images[:TEST_IMAGES], test.labels[:TEST_IMAGES]
    np.savez_compressed(folder / "fashion_test.npz", input=images, labels=labels)
