"""The tasks by name; each module is imported when its task runs, since each needs other packages."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.bench.quantization.task import Task

MODULES = {
    "fashion_cnn": "fashion",
    "fashion_mlp": "fashion",
    "fashion_residual": "fashion",
    "fashion_vit": "fashion",
    "ppocrv4_rec": "text_lines",
    "ppocrv4_det": "text_pages",
    "ddddocr_common": "captchas",
    "minilm": "sentences",
    "magika": "files",
    "silero_vad": "speech",
    "resnet50": "drawn",
    "vgg19": "drawn",
    "squeezenet": "drawn",
    "shufflenet": "drawn",
    "densenet121": "drawn",
}
PRUNING = {
    "fashion_cnn": "fashion",
    "fashion_mlp": "fashion",
    "fashion_resnet": "fashion",
    "fashion_vit": "fashion",
    "fashion_lstm": "fashion",
    "ppocrv4_rec": "text_lines",
    "minilm": "sentences",
    "magika": "files",
}
LANGUAGE = {"minilm": "sentences", "chargpt": "language"}  # the tasks of weight-only quantization


def load(name: str) -> Task:
    """The task `name`.

    Raises:
        ImportError: a package of the extra `bench` is missing.
    """
    module = importlib.import_module(f"{__name__}.{(MODULES | LANGUAGE | PRUNING)[name]}")
    task: Task = module.task(name)
    return task
