"""NNCF's post-training quantization with its defaults or one option changed.

python -m tools.bench.quantization.peer_nncf MODEL SAMPLES RESULT default|accurate|transformer
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import nncf
import onnx

from tools.bench.quantization import peer_model, samples

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "accurate": {"fast_bias_correction": False},
    "transformer": {"model_type": nncf.ModelType.TRANSFORMER},
}


def main() -> None:
    """Quantize one model."""
    source, folder, result = map(Path, sys.argv[1:4])
    calibration = list(samples.read(folder))  # nncf.Dataset asks for a sequence that can be read again
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch, "prepared.onnx")
        peer_model.preprocess(source, prepared)
        model = onnx.load(prepared)
    dataset = nncf.Dataset(calibration)
    onnx.save(nncf.quantize(model, dataset, subset_size=len(calibration), **SETTINGS[sys.argv[4]]), result)


if __name__ == "__main__":
    main()
