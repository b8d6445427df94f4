"""ONNX Runtime's MatMulNBitsQuantizer with one of its algorithms.

python -m tools.bench.weights.peer MODEL SAMPLES RESULT default|level4|rtn|hqq|gptq|kquant BITS BLOCK
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization import matmul_nbits_quantizer as nbits

from tools.bench.quantization import samples

NODE = "MatMul_{}"


class Reader(CalibrationDataReader):
    """Feeds the samples of a folder; all of them at once, since the algorithm copies the reader."""

    def __init__(self, folder: Path) -> None:
        self._all = list(samples.read(folder))

    def get_next(self) -> Any:
        """The next sample, or None."""
        return self._all.pop(0) if self._all else None


def default(folder: Path, bits: int, block: int, level: int | None = None) -> Any:
    """Blocks with zero points, rounded to nearest by ONNX Runtime's own kernel."""
    return nbits.DefaultWeightOnlyQuantConfig(block_size=block, bits=bits, accuracy_level=level)


def level4(folder: Path, bits: int, block: int) -> Any:
    """The same, computed with activations of 8 bits."""
    return default(folder, bits, block, level=4)


def rtn(folder: Path, bits: int, block: int) -> Any:
    """Rounding to nearest as Neural Compressor does it."""
    return nbits.RTNWeightOnlyQuantConfig()


def hqq(folder: Path, bits: int, block: int) -> Any:
    """Half-quadratic quantization."""
    return nbits.HQQWeightOnlyQuantConfig(block_size=block, bits=bits)


def gptq(folder: Path, bits: int, block: int) -> Any:
    """GPTQ as Neural Compressor does it, on the samples."""
    return nbits.GPTQWeightOnlyQuantConfig(calibration_data_reader=Reader(folder))


def kquant(folder: Path, bits: int, block: int) -> Any:
    """The scales of llama.cpp's k-quants."""
    return nbits.KQuantWeightOnlyQuantConfig()


SETTINGS: dict[str, Callable[[Path, int, int], Any]] = {
    "default": default,
    "level4": level4,
    "rtn": rtn,
    "hqq": hqq,
    "gptq": gptq,
    "kquant": kquant,
}


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a name for every node, by which these algorithms know them."""
    found = copy.deepcopy(model)
    for index, node in enumerate(found.graph.node):
        node.name = node.name or NODE.format(index)
    return found


def main() -> None:
    """Quantize one model."""
    source, folder, result = map(Path, sys.argv[1:4])
    bits, block = map(int, sys.argv[5:7])
    config = SETTINGS[sys.argv[4]](folder, bits, block)
    quantizer = nbits.MatMulNBitsQuantizer(
        named(onnx.load(source)), bits=bits, block_size=block, algo_config=config
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(result))


if __name__ == "__main__":
    main()
