"""ONNX Runtime's quantize_static as its documentation has it: pre-process, then quantize.

python -m tools.bench.quantization.peer_onnxruntime MODEL SAMPLES RESULT default|minmax|entropy
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

from tools.bench.quantization import peer_model, samples

PER_CHANNEL = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "minmax": {**PER_CHANNEL, "calibrate_method": CalibrationMethod.MinMax},
    "entropy": {**PER_CHANNEL, "calibrate_method": CalibrationMethod.Entropy},
}


class Reader(CalibrationDataReader):
    """Feeds the samples of a folder, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._samples = samples.read(folder)

    def get_next(self) -> Any:
        """The next sample, or None."""
        return next(self._samples, None)


def main() -> None:
    """Quantize one model."""
    source, folder, result = map(Path, sys.argv[1:4])
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch, "prepared.onnx")
        peer_model.preprocess(source, prepared)
        quantize_static(prepared, result, Reader(folder), **SETTINGS[sys.argv[4]])
    onnx.checker.check_model(result)


if __name__ == "__main__":
    main()
