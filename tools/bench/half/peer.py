"""The other converters, as their documentation has it, with inputs and outputs that keep their types.

python -m tools.bench.half.peer MODEL SAMPLES RESULT onnxconverter|onnxconverter-auto|transformers|modelopt
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import onnx

from tools.bench.quantization import samples


def onnxconverter(source: Path, folder: Path) -> onnx.ModelProto:
    """onnxconverter-common with its defaults."""
    from onnxconverter_common import float16

    return float16.convert_float_to_float16(onnx.load(source), keep_io_types=True)


def onnxconverter_auto(source: Path, folder: Path) -> onnx.ModelProto:
    """onnxconverter-common's search, with the tolerances of its example, on one sample as it wants."""
    from onnxconverter_common import auto_mixed_precision

    sample = next(samples.read(folder))
    return auto_mixed_precision.auto_convert_mixed_precision(
        onnx.load(source), sample, rtol=0.01, atol=0.001, keep_io_types=True
    )


def transformers(source: Path, folder: Path) -> onnx.ModelProto:
    """The converter of onnxruntime.transformers with its defaults; its class also sorts the nodes."""
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = OnnxModel(onnx.load(source))
    model.convert_float_to_float16(keep_io_types=True)
    model.topological_sort()
    return model.model


def modelopt(source: Path, folder: Path) -> onnx.ModelProto:
    """ModelOpt's autocast with its defaults, calibrated on all samples."""
    from modelopt.onnx.autocast import convert_to_mixed_precision

    return convert_to_mixed_precision(str(source), keep_io_types=True, calibration_data=str(folder))


CONVERTERS: dict[str, Callable[[Path, Path], onnx.ModelProto]] = {
    "onnxconverter": onnxconverter,
    "onnxconverter-auto": onnxconverter_auto,
    "transformers": transformers,
    "modelopt": modelopt,
}


def main() -> None:
    """Convert one model."""
    source, folder, result = map(Path, sys.argv[1:4])
    onnx.save(CONVERTERS[sys.argv[4]](source, folder), result)


if __name__ == "__main__":
    main()
