"""NNCF's post-training quantization with its defaults or one option changed.

python -m tools.bench.quantization.peer_nncf MODEL SAMPLES RESULT default|accurate|transformer
"""

from __future__ import annotations

import sys
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
    model = nncf.quantize(
        peer_model.load(source),
        nncf.Dataset(calibration),
        subset_size=len(calibration),
        **SETTINGS[sys.argv[4]],
    )
    onnx.save(model, result)


if __name__ == "__main__":
    main()
