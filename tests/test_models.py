"""The committed models and their data, and the recipes of the real ones."""

import re

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tools import models

FOLDER = models.RECIPES.parent
COMMITTED = [name for name, recipe in models.recipes().items() if recipe.package is None]
VERBATIM = [name for name, recipe in models.recipes().items() if recipe.is_verbatim]
FETCHED = [name for name, recipe in models.recipes().items() if recipe.package is not None]


def _session(name):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(models.path(name), options, providers=["CPUExecutionProvider"])


def _promised_accuracy(name):
    row = re.search(
        rf"^\| {name}\.onnx \|.*\| ([\d.]+) % \|$", (FOLDER / "README.md").read_text(), re.MULTILINE
    )
    return float(row[1])


@pytest.mark.parametrize("name", COMMITTED)
def test_accuracy_is_what_the_readme_says(name):
    data = np.load(FOLDER / "fashion_test.npz")
    (logits,) = _session(name).run(["logits"], {"input": data["input"]})
    accuracy = 100 * np.mean(logits.argmax(axis=1) == data["labels"])
    assert accuracy == pytest.approx(_promised_accuracy(name), abs=0.06)  # one image of 2,000 and rounding


@pytest.mark.parametrize("name", COMMITTED)
def test_batch_is_dynamic_and_no_metadata_is_carried(name):
    model = onnx.load(models.path(name))
    for value in [*model.graph.input, *model.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not model.metadata_props
    assert not any(node.metadata_props for node in model.graph.node)


@pytest.mark.parametrize(("file", "count"), [("fashion_calibration.npz", 1000), ("fashion_test.npz", 2000)])
def test_images_fit_the_models(file, count):
    images = np.load(FOLDER / file)["input"]
    assert images.shape == (count, 1, 28, 28)
    assert images.dtype == np.float32
    assert images.min() == 0
    assert images.max() == 1


def test_labels_are_ten_classes():
    labels = np.load(FOLDER / "fashion_test.npz")["labels"]
    assert labels.shape == (2000,)
    assert set(labels) == set(range(10))


def test_residual_keeps_normalization_and_dropout_in_inference_form():
    nodes = onnx.load(models.path("fashion_residual")).graph.node
    dropouts = [node for node in nodes if node.op_type == "Dropout"]
    norms = [node for node in nodes if node.op_type == "BatchNormalization"]
    depthwise = [a for node in nodes for a in node.attribute if a.name == "group" and a.i > 1]
    assert dropouts and norms and depthwise
    assert all(len(node.input) == 1 for node in dropouts)  # no training_mode
    assert not any(a.name == "training_mode" and a.i for node in norms for a in node.attribute)


def test_folder_stays_below_eight_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.iterdir() if file.is_file()) < 8_000_000


@pytest.mark.parametrize("name", FETCHED)
def test_recipe_is_complete(name):
    recipe = models.recipes()[name]
    assert re.fullmatch(r"[0-9a-f]{64}", recipe.sha256)
    assert re.fullmatch(r"[\w-]+(==|@)[\d.]+", recipe.package.requirement)
    assert recipe.shapes


@pytest.mark.parametrize("name", VERBATIM)
def test_cached_model_is_the_recorded_one(name):
    file = models.cache_folder() / f"{name}.onnx"
    if not file.exists():
        pytest.skip("not in the cache")
    models.check(file.read_bytes(), models.recipes()[name])


def test_wrong_checksum_is_refused():
    with pytest.raises(models.FetchError, match="SHA-256"):
        models.check(b"not the model", models.recipes()["magika"])


def test_unknown_name_is_refused():
    with pytest.raises(models.FetchError, match="no model 'resnet'"):
        models.path("resnet")


def _dims(value):
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", COMMITTED)
@pytest.mark.parametrize("variant", ["shapes", "varied"])
def test_recipe_shapes_fit_the_model(name, variant):
    graph = onnx.load(models.path(name)).graph
    declared = {value.name: _dims(value) for value in graph.input}
    recipe = models.recipes()[name]
    for key, shape in (recipe.shapes | getattr(recipe, variant)).items():
        fixed = [(dim, size) for dim, size in zip(declared[key], shape, strict=True) if dim]
        assert all(dim == size for dim, size in fixed)
