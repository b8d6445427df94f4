"""How models are judged on held-out samples: noise, decisions, labels, the user's function, budgets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

import graphopt
from graphopt.errors import DataError, UsageError, WorkerError
from graphopt.model import Model
from graphopt.proof.accuracy import OutputScore, Score, Tally
from graphopt.proof.budget import Budget
from graphopt.proof.classes import are_classes
from graphopt.proof.evaluation import HeldOut
from graphopt.proof.heldout import MOST_HELD_OUT, divide, gather
from graphopt.proof.labels import Labels
from graphopt.runtime.values import Tensor
from graphopt.runtime.worker import Worker
from graphopt.samples.inputs import inputs_of

MODELS = Path(__file__).parent.parent / "models"
CNN, MLP, TEST = (MODELS / name for name in ("fashion_cnn.onnx", "fashion_mlp.onnx", "fashion_test.npz"))


def tally(pairs):
    """The score of pairs of what is expected and what is found, each a dict of arrays."""
    total = Tally()
    for expected, found in pairs:
        total.add(*({name: Tensor.of(array) for name, array in side.items()} for side in (expected, found)))
    return total.score()


# --- noise and decisions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [[(4, 3)], [(1, 7), (1, 2), (1, 9)], [(2, 5, 6), (3, 5, 6)]])
@pytest.mark.parametrize("draw", ["standard_normal", "standard_cauchy"])
def test_sqnr_is_that_of_all_samples_together(shapes, draw):
    rng = np.random.default_rng(0)
    expected = [getattr(rng, draw)(shape).astype(np.float32) for shape in shapes]
    found = [one + 0.01 * rng.standard_normal(one.shape).astype(np.float32) for one in expected]
    score = tally(({"hidden": a}, {"hidden": b}) for a, b in zip(expected, found, strict=True))
    r, c = (np.concatenate([one.ravel() for one in side]).astype(np.float64) for side in (expected, found))
    assert score.sqnr_db == pytest.approx(10 * np.log10((r**2).sum() / ((r - c) ** 2).sum()))
    assert score.samples == len(shapes)
    assert score.agreement is None


def test_outputs_of_different_size_weigh_the_same():
    big, small = np.full((1, 3, 4), 1e6, np.float32), np.ones((1, 3, 4), np.float32)
    score = tally([({"big": big, "small": small}, {"big": big, "small": small * np.float32(0.9)})])
    assert {one.name: one.sqnr_db for one in score.outputs} == {"big": np.inf, "small": pytest.approx(20)}
    assert score.sqnr_db == pytest.approx(20 + 10 * np.log10(2))


def test_the_worst_sample_is_named():
    one = np.ones((1, 2, 4), np.float32)
    score = tally([({"y": one}, {"y": one * np.float32(factor)}) for factor in (0.99, 0.5, 0.9)])
    assert (score.worst_sample, score.worst_db) == (1, pytest.approx(6.0206, abs=1e-3))


def test_a_flipped_sample_moves_what_is_typical_by_its_share():
    one = np.ones((1, 2, 4), np.float32)
    factors = (0.99, 0.99, 0.99, -1.0)
    score = tally([({"y": one}, {"y": one * np.float32(factor)}) for factor in factors])
    alone = [-10 * np.log10(ratio + 1e-6) for ratio in (1e-4, 1e-4, 1e-4, 4.0)]
    assert score.typical_db == pytest.approx(np.mean(alone), abs=1e-3)
    assert score.sqnr_db < 0.001


@pytest.mark.parametrize(("factor", "typical"), [(1.0, 60), (np.nan, -20)])
def test_what_is_typical_is_bounded(factor, typical):
    one = np.ones((1, 2, 4), np.float32)
    assert tally([({"y": one}, {"y": one * np.float32(factor)})]).typical_db == pytest.approx(typical)


def test_samples_that_are_all_but_equal_do_not_outweigh_one_in_doubt():
    one = np.ones((1, 2, 4), np.float32)

    def typical(*errors):
        return tally([({"y": one}, {"y": one * np.float32(1 + error)}) for error in errors]).typical_db

    assert typical(1e-2, 1e-4, 1e-4) > typical(1e-1, 1e-6, 1e-6)


def test_agreement_counts_rows():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((2, 50, 5)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    other = probabilities.copy()
    other[0, :3] = np.roll(other[0, :3], 1, axis=-1)  # three rows decide otherwise
    score = tally([({"y": probabilities}, {"y": other})])
    assert (score.agreement, score.outputs[0].rows) == (0.97, 100)


def test_scores_may_keep_the_axes_of_pooling():
    pooled = _NORMAL[:, :, None, None]
    other = pooled.copy()
    other[0] = np.roll(other[0], 1, axis=0)
    score = tally([({"fc6": pooled}, {"fc6": other})])
    assert (score.agreement, score.outputs[0].rows) == (pytest.approx(5 / 6), 6)


def test_integers_agree_by_element_and_have_no_sqnr():
    score = tally([({"ids": np.arange(10)}, {"ids": np.array([*range(9), 0])})])
    assert (score.sqnr_db, score.agreement, score.worst_sample) == (None, 0.9, None)


def test_nan_is_endless_noise_and_another_shape_loses_the_signal():
    y = np.ones((1, 2, 4), np.float32)
    assert tally([({"y": y}, {"y": y * np.float32(np.nan)})]).sqnr_db == -np.inf
    assert tally([({"y": y}, {"y": y[:, :1]}), ({"y": y}, {"y": y})]).sqnr_db == pytest.approx(
        3.0103, abs=1e-3
    )
    assert tally([({"y": y * 0}, {"y": y})]).sqnr_db == -np.inf
    assert tally([({"y": y * 0}, {"y": y * 0})]).sqnr_db is None


def test_equal_infinities_are_no_noise():
    masked = np.array([[[-np.inf, 1.0, 2.0]]], np.float32)
    assert tally([({"hidden": masked}, {"hidden": masked})]).sqnr_db == np.inf


_NORMAL = np.random.default_rng(2).standard_normal((6, 8)).astype(np.float32)
_SOFTMAX = np.exp(_NORMAL) / np.exp(_NORMAL).sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("495", _NORMAL, True),
        ("495", _SOFTMAX.reshape(2, 3, 8), True),
        ("495", np.log(_SOFTMAX).reshape(6, 1, 8), True),
        ("logits", _NORMAL.reshape(2, 3, 8), True),
        ("495", _NORMAL.reshape(2, 3, 8), False),
        ("sentence_embedding", _NORMAL, False),
        ("495", _NORMAL / np.linalg.norm(_NORMAL, axis=1, keepdims=True), False),
        ("boxes", _NORMAL, False),
        ("prob", _NORMAL[:, :1], False),
        ("fc6", _NORMAL[:, :, None, None], True),
        ("prob", _NORMAL[:2, :1, None], False),
        ("prob", np.float32(1), False),
        ("logits", np.arange(6).reshape(2, 3), False),
        ("logits", np.zeros((0, 3), np.float32), False),
    ],
)
def test_what_looks_like_scores_of_classes(name, array, expected):
    assert are_classes(name, array) is expected


# --- labels ------------------------------------------------------------------------------------------------


def merits(values, samples, *outputs):
    labels = Labels(np.asarray(values), samples, "test.npz")
    found = [labels.merits(i, {"y": Tensor.of(output)}) for i, output in enumerate(outputs)]
    return labels, np.concatenate(found)


def test_accuracy_is_top_1_in_percent():
    scores = _NORMAL[:, None, :]
    best = _NORMAL.argmax(1)
    labels, found = merits(np.where(np.arange(6) < 4, best, (best + 1) % 8), 6, *scores)
    assert found.tolist() == [1, 1, 1, 1, 0, 0]
    assert (labels.name, labels.metric(found)) == ("top-1 accuracy (%)", pytest.approx(400 / 6))


def test_labels_of_rows_of_images_and_of_batches():
    rows = _NORMAL.reshape(2, 3, 8)
    assert merits(rows.argmax(-1), 2, rows[:1], rows[1:])[1].all()  # a sequence each
    assert merits(_NORMAL.argmax(-1), 2, _NORMAL[:3], _NORMAL[3:])[1].all()  # a batch of three each
    image = np.random.default_rng(3).standard_normal((2, 5, 4, 4)).astype(np.float32)
    assert merits(image.argmax(1), 2, image[:1], image[1:])[1].tolist() == [1] * 32
    assert merits([3, 4], 2, np.array([3]), np.array([5]))[1].tolist() == [1, 0]  # an output of classes


def test_negative_labels_are_skipped():
    labels, found = merits([int(_NORMAL[0].argmax()), -100], 2, _NORMAL[:1], _NORMAL[1:2])
    assert labels.metric(found) == 100
    with pytest.raises(DataError, match="all labels are negative"):
        Labels(np.array([-1, -100]), 2, "test.npz")


def test_float_labels_are_targets():
    labels, found = merits([1.0, 3.0], 2, np.array([[1.5]], np.float32), np.array([[2.0]], np.float32))
    assert (labels.name, labels.metric(found)) == ("negative mean squared error", -0.625)


@pytest.mark.parametrize("rows", [np.eye(4, dtype=np.float32)[[2, 0, 3]], np.eye(4)[[[2, 0], [3, 1]]]])
def test_one_hot_labels_are_classes(rows):
    labels = Labels.read(rows, len(rows), "test.npz")
    assert labels.are_classes
    np.testing.assert_array_equal(labels.values, rows.argmax(axis=-1))


@pytest.mark.parametrize(
    "rows",
    [
        np.array([[0.0, 1, 1], [1, 0, 0]]),  # several classes
        np.array([[0.0, 0.5, 0.5], [1, 0, 0]]),  # probabilities
        np.array([[1.0], [1]]),  # one target each
        np.array([[0, 1], [1, 0]]),  # classes of two steps each
    ],
)
def test_other_labels_stay_what_they_are(rows):
    np.testing.assert_array_equal(Labels.read(rows, 2, "test.npz").values, rows)


def test_labels_that_the_original_misses_judge_nothing():
    labels = Labels(np.tile(np.arange(10), 20), 200, "test.npz")
    labels.check(np.arange(200) % 7 == 0)
    for hits in (np.arange(200) == 7, np.arange(200) % 10 == 0):  # missed on purpose, and shuffled
        told = f"the original gives {hits.sum()} of the 200 labels, no more than guesses would"
        with pytest.raises(DataError, match=told):
            labels.check(hits)
    Labels(np.arange(30) % 3, 30, "test.npz").check(np.arange(30) % 3 == 0)  # too few to tell
    Labels(np.array([1, 2, 3]), 3, "test.npz").check(np.zeros(3))  # three labels may well be missed
    Labels(np.full(90, 4), 90, "test.npz").check(np.zeros(90))  # who knows of one class only cannot guess
    Labels(np.array([0.5]), 1, "test.npz").check(np.zeros(1))  # no error at all is the best of targets


def test_labels_take_the_output_that_they_fit():
    labels = Labels(np.array([2]), 1, "test.npz")
    outputs = {"features": np.zeros((1, 3, 4), np.float32), "y": np.array([[0, 0, 9]], np.float32)}
    assert labels.merits(0, {name: Tensor.of(one) for name, one in outputs.items()}).tolist() == [1]


@pytest.mark.parametrize(
    ("values", "samples"), [(["a", "b"], 2), ([1, 2, 3], 2), (5, 1), ([np.nan], 1), ([], 0)]
)
def test_labels_that_cannot_be_used(values, samples):
    with pytest.raises(DataError, match=r"test\.npz"):
        Labels(np.asarray(values), samples, "test.npz")


def test_numbers_in_one_hot_rows_get_a_hint():
    labels = Labels.read(np.eye(4, dtype=np.int64), 4, "test.npz")
    with pytest.raises(DataError, match="not rows of 0 and 1"):
        labels.merits(0, {"y": Tensor.of(np.zeros((1, 4), np.float32))})


@pytest.mark.parametrize(("label", "classes"), [(1, 1), (10, 10), (255, 3)])
def test_labels_that_fit_no_output_are_said(label, classes):
    told = rf"the largest {label}, fit no output \('y' \[1, {classes}\]\).*--eval module"
    with pytest.raises(DataError, match=rf"labels \[1\] of sample 0, {told}"):
        merits([label], 1, np.ones((1, classes), np.float32))


def test_what_was_lost_and_gained_is_counted_in_pairs():
    labels = Labels(np.zeros(98, np.int64), 98, "test.npz")
    before, after = np.ones(98, np.float32), np.ones(98, np.float32)
    before[:3], after[3:8] = 0, 0
    error, lost, gained = labels.compare(before, after)
    assert (lost, gained) == (5, 3)
    assert error == pytest.approx(np.sqrt(9 - 4 / 100))  # in points: n + 2 is 100
    assert labels.compare(before, before)[0] > 0  # that nothing changed on few labels is no proof


# --- budgets -----------------------------------------------------------------------------------------------


def score(metric=None, *outputs, **facts):
    return Score(100, None, None, outputs, metric=metric, **facts)


@pytest.mark.parametrize(
    ("text", "shown", "allowed"),
    [
        ("0.5%", "0.5 %", 0.45),
        ("0.5", "0.5", 0.5),
        (" 2 %", "2 %", 1.8),
        ("0", "0", 0.0),
        (".25", "0.25", 0.25),
        ("15dB", "15 dB", np.inf),
        ("7.5 db", "7.5 dB", np.inf),
    ],
)
def test_budgets_are_relative_or_absolute(text, shown, allowed):
    budget = Budget.parse(text)
    assert (str(budget), budget.allowed(score(90.0))) == (shown, pytest.approx(allowed))


@pytest.mark.parametrize("text", ["", "%", "-1%", "1e3", "101%", "half", "0.5 points", "nan"])
def test_a_budget_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="--max-drop"):
        Budget.parse(text)


def test_a_metric_decides_alone():
    budget, reference = Budget.parse("0.5"), score(90.0)
    noisy = OutputScore("y", -3.0, 0.5, 100)
    assert budget.holds(score(89.5, noisy), reference)[0]
    held, reason = budget.holds(score(89.4, noisy, metric_name="top-1 accuracy (%)"), reference)
    assert (held, reason) == (False, "top-1 accuracy (%) 90 -> 89.4, a drop of 0.6 (allowed 0.5)")
    assert [budget.margin(score(metric), reference) for metric in (90, 89.5, 89)] == [1, 0, -1]


def test_a_negative_metric_is_bounded_by_its_size():
    budget, reference = Budget.parse("10%"), score(-2.0)
    assert budget.holds(score(-2.2), reference)[0]
    assert not budget.holds(score(-2.21), reference)[0]


def test_without_a_metric_every_output_counts():
    budget, reference = Budget.parse("1%"), score()
    classes, vector = OutputScore("p", 11.0, 0.99, 1000), OutputScore("v", 21.0, None, 0)
    assert budget.holds(score(None, classes, vector), reference)[0]
    for worse, told in (
        (OutputScore("p", 11.0, 0.98, 1000), "'p' agrees on 98.00% of 1,000 rows (least 99.00%)"),
        (OutputScore("p", 9.0, 1.0, 1000), "'p' has 9.0 dB (least 10 dB)"),
        (OutputScore("v", 19.0, None, 0), "'v' has 19.0 dB (least 20 dB)"),
        (OutputScore("v", -np.inf, None, 0), "'v' has -inf dB (least 20 dB)"),
    ):
        bad = score(None, classes, vector, worse)
        assert budget.holds(bad, reference) == (False, told)
        assert budget.margin(bad, reference) < 0


def test_a_bound_in_decibels_is_for_noise_alone():
    budget, reference = Budget.parse("15dB"), score(90.0)
    assert budget.is_bounded
    budget.require_metric(False)
    loud, quiet = OutputScore("v", 14.9, None, 0), OutputScore("p", 15.0, 0.1, 10)
    assert budget.holds(score(10.0, quiet), reference) == (True, "'p' has 15.0 dB (least 15 dB)")
    assert budget.holds(score(90.0, loud, quiet), reference) == (False, "'v' has 14.9 dB (least 15 dB)")
    assert not budget.part(0.5).holds(score(90.0, quiet), reference)[0], "half of the noise power is 18 dB"
    told = "nothing to judge by: no output with numbers that vary"
    assert budget.holds(score(90.0), reference) == (False, told)


def test_nothing_to_judge_by_is_no_evidence():
    held, reason = Budget.parse("1%").holds(score(), score())
    assert not held
    assert "nothing to judge by" in reason


def test_a_bound_finer_than_one_row_is_said():
    few = Budget.parse("1%").holds(score(None, OutputScore("p", 30.0, 1.0, 50)), score())
    assert few == (True, "'p' agrees on 100.00% of 50 rows (least 99.00%, less than one of 50 rows)")
    _, reason = Budget.parse("0.5").holds(score(90.0, rows=100, lost=0, gained=0), score(90.0))
    assert "less than one of 100 labels" in reason


def test_an_amount_needs_a_metric():
    Budget.parse("1%").require_metric(False)
    with pytest.raises(UsageError, match="there is none"):
        Budget.parse("1").require_metric(False)


# --- which samples judge -----------------------------------------------------------------------------------


def model_of(text):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')


RELU = model_of("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }")


def divided(tmp_path, data, evaluation=None, **options):
    np.savez(tmp_path / "calib.npz", x=data)
    ir_model = Model.of(RELU).ir
    return divide(gather(ir_model, str(tmp_path / "calib.npz")), evaluation, inputs_of(ir_model), **options)


def firsts(samples):
    return [float(sample["x"].numpy()[0, 0]) for sample in samples]


def rows(start, stop):
    return np.repeat(np.arange(start, stop, dtype=np.float32)[:, None], 2, axis=1)


@pytest.mark.parametrize("count", [2, 3, 4, 9, 400, 700])
def test_every_fourth_sample_is_held_out(tmp_path, count):
    division = divided(tmp_path, rows(0, count))
    calibration, judging = firsts(division.calibration), firsts(division.evaluation)
    assert sorted(calibration + judging) == list(range(count))
    assert judging == ([count - 1] if count < 4 else list(range(3, count, 4))[:MOST_HELD_OUT])
    assert (division.calibration_count, division.evaluation_count) == (len(calibration), len(judging))
    assert firsts(division.calibration) == calibration  # the same again


def test_a_sample_that_comes_twice_stays_on_one_side(tmp_path):
    division = divided(tmp_path, np.concatenate([rows(0, 8), rows(0, 8)[::-1]]))
    assert not set(firsts(division.calibration)) & set(firsts(division.evaluation))


def test_one_sample_cannot_calibrate_and_judge(tmp_path):
    with pytest.raises(DataError, match=r"calib\.npz holds only one sample.*--eval"):
        divided(tmp_path, np.concatenate([rows(1, 2)] * 5))


def test_a_file_judges_alone_and_may_have_labels(tmp_path):
    np.savez(tmp_path / "test.npz", x=rows(10, 13), labels=np.array([0, 1, 0]))
    division = divided(tmp_path, rows(0, 5), str(tmp_path / "test.npz"))
    assert firsts(division.calibration) == [0, 1, 2, 3, 4]
    assert firsts(division.evaluation) == [10, 11, 12]
    assert division.metric.values.tolist() == [0, 1, 0]
    np.savez(tmp_path / "test.npz", x=rows(10, 13))
    assert divided(tmp_path, rows(0, 5), str(tmp_path / "test.npz")).metric is None


def test_overlap_is_refused_with_its_samples(tmp_path):
    np.savez(tmp_path / "test.npz", x=rows(3, 20), labels=np.zeros(17, np.int64))
    with pytest.raises(
        DataError, match=r"2 of 17 samples of .*test\.npz are in .*calib\.npz too .*3 = 0, 4 = 1\)"
    ):
        divided(tmp_path, rows(0, 5), str(tmp_path / "test.npz"))
    np.savez(tmp_path / "test.npz", x=rows(5, 20), labels=np.zeros(14, np.int64))
    with pytest.raises(DataError, match="15 samples"):
        divided(tmp_path, rows(0, 5), str(tmp_path / "test.npz"))


def test_labels_of_objects_are_refused(tmp_path):
    np.savez(tmp_path / "test.npz", x=rows(5, 7), labels=np.array([{}, None]))
    with pytest.raises(DataError, match="'labels' cannot be read"):
        divided(tmp_path, rows(0, 5), str(tmp_path / "test.npz"))


def test_a_function_that_shuffles_is_found_out(tmp_path, monkeypatch):
    (tmp_path / "shuffling.py").write_text(
        "import numpy as np\nrng = np.random.default_rng(0)\n"
        "def samples():\n    for i in rng.permutation(20):\n"
        "        yield {'x': np.full((1, 2), i, np.float32)}\n"
    )
    monkeypatch.chdir(tmp_path)
    ir_model = Model.of(RELU).ir
    division = divide(gather(ir_model, "shuffling:samples"), None, inputs_of(ir_model))
    with pytest.raises(DataError, match="shuffling:samples gives another sample"):
        list(division.calibration)


def test_without_calibration_all_samples_judge(tmp_path):
    division = divided(tmp_path, rows(0, 5), calibrate=False)
    assert (list(division.calibration), firsts(division.evaluation)) == ([], [0, 1, 2, 3, 4])


def test_synthetic_samples_are_divided_too():
    ir_model = Model.of(RELU).ir
    division = divide(gather(ir_model, "synthetic", ["x=50x2"]), None, inputs_of(ir_model))
    assert (division.calibration_count, division.evaluation_count) == (48, 16)
    assert "synthetic" in division.evidence


def test_no_such_evaluation(tmp_path):
    for text in ("none.npz", "a/b:c", "no.module:function"):
        with pytest.raises(UsageError):
            divided(tmp_path, rows(0, 5), text)


# --- the evaluator -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worker():
    with Worker(time_limit=60) as one:
        yield one


@pytest.fixture
def test_set(tmp_path):
    """60 labelled images and 8 others to calibrate on."""
    with np.load(TEST) as arrays:
        np.savez(tmp_path / "test.npz", input=arrays["input"][:60], labels=arrays["labels"][:60])
        np.savez(tmp_path / "calib.npz", input=arrays["input"][60:68])
    return tmp_path


def division_of(folder, evaluation):
    ir_model = Model.load(CNN).ir
    return divide(gather(ir_model, str(folder / "calib.npz")), evaluation, inputs_of(ir_model))


def logits(path, images):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input": image[None]})[0] for image in images])


@pytest.mark.parametrize("kept_bytes", [10**9, 1000, 0])
def test_a_model_is_scored_as_onnx_runtime_runs_it(worker, test_set, kept_bytes):
    division = division_of(test_set, str(test_set / "test.npz"))
    judge = HeldOut(worker, CNN, division.evaluation, division.metric, threads=1, kept_bytes=kept_bytes)
    found, again = judge.score(MLP), judge.score(MLP)
    with np.load(test_set / "test.npz") as arrays:
        images, labels = arrays["input"], arrays["labels"]
    before, after = logits(CNN, images), logits(MLP, images)
    right, still = before.argmax(1) == labels, after.argmax(1) == labels
    noise = np.square(before.astype(np.float64) - after).sum()
    assert judge.reference.metric == pytest.approx(100 * right.mean())
    assert found.metric == pytest.approx(100 * still.mean())
    assert (found.lost, found.gained) == ((right & ~still).sum(), (still & ~right).sum())
    assert found.agreement == pytest.approx((before.argmax(1) == after.argmax(1)).mean())
    assert found.sqnr_db == pytest.approx(10 * np.log10(np.square(before.astype(np.float64)).sum() / noise))
    assert (found.samples, found.rows) == (60, 60)
    assert again == found
    assert judge.score(CNN).sqnr_db == np.inf


def test_labels_of_something_else_are_refused(worker, test_set):
    with np.load(test_set / "test.npz") as arrays:
        images = arrays["input"]
    other = (logits(CNN, images).argmax(1) + 1) % 10
    np.savez(test_set / "test.npz", input=images, labels=other)
    division = division_of(test_set, str(test_set / "test.npz"))
    judge = HeldOut(worker, CNN, division.evaluation, division.metric, threads=1)
    with pytest.raises(DataError, match="gives 0 of the 60 labels"):
        judge.score(MLP)


def test_arrays_judge_as_their_file_does(test_set):
    with np.load(test_set / "test.npz") as arrays:
        given = dict(arrays)
    scores = []
    for evaluation in (str(test_set / "test.npz"), given):
        result = graphopt.optimize(
            MLP, precision="int8-weights", eval=evaluation, max_drop=0.5, measure=False, threads=1
        )
        scores.append(result.report.accuracy.after)
        assert result.report.accuracy.budget == "0.5"
    assert scores[0] == scores[1] and scores[0].rows == 60
    result.report.to_dict()


def test_arrays_that_do_not_fit_are_told_apart_from_data(test_set):
    with pytest.raises(DataError, match=r"eval: .*images"):
        graphopt.optimize(MLP, precision="int8-weights", eval={"images": np.zeros((3, 1, 28, 28))})
    for evaluation in ([np.zeros(3)], 3):
        with pytest.raises(UsageError, match="no such --eval"):
            graphopt.optimize(MLP, precision="int8-weights", eval=evaluation)


def test_unknown_options_are_told():
    with pytest.raises(UsageError, match="unknown option 'chanels'; did you mean 'channels'"):
        graphopt.optimize(MLP, chanels=0.3)


def test_what_fits_the_bound_is_computed_once(test_set):
    class Counting(Worker):
        runs = 0

        def run(self, session, feeds):
            self.runs += 1
            return super().run(session, feeds)

    division = division_of(test_set, str(test_set / "test.npz"))
    for kept_bytes, per_score in ((10**9, 60), (400, 110), (0, 120)):  # 40 bytes of logits a sample
        with Counting(time_limit=60) as worker:
            judge = HeldOut(worker, CNN, division.evaluation, kept_bytes=kept_bytes)
            assert judge.reference.metric is None
            before = worker.runs
            judge.score(MLP)
            assert (before, worker.runs - before) == (60, per_score)


def test_the_first_samples_for_quick_trials(worker, test_set):
    division = division_of(test_set, str(test_set / "test.npz"))
    head = HeldOut(worker, CNN, division.evaluation, division.metric).first(20)
    scored = head.score(MLP)
    assert (scored.samples, scored.outputs[0].rows) == (20, 20)
    assert (head.reference.metric, scored.metric) == (None, None)  # labels may all lie behind


def test_the_user_s_function_runs_the_model(worker, test_set):
    images = np.load(test_set / "test.npz")["input"]

    def spread(run):
        outputs = run({"input": images})
        return outputs["logits"].std()

    division = division_of(test_set, spread)
    judge = HeldOut(worker, CNN, division.evaluation, division.metric)
    assert division.evaluation_count == 2
    assert "cannot be checked" in division.evidence
    assert judge.reference.metric == pytest.approx(logits(CNN, images).std(), rel=1e-4)
    assert judge.score(MLP).metric == pytest.approx(logits(MLP, images).std(), rel=1e-4)
    assert judge.score(MLP).sqnr_db < 10


def _raises(run):
    raise KeyError("no such image")


def _exits(run):
    raise SystemExit(3)


def _feeds_wrongly(run):
    return run({"input": np.zeros((1, 28, 28), np.float32)})


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (_raises, "--eval _raises failed with KeyError: 'no such image'"),
        (_exits, "--eval _exits failed with SystemExit: 3"),
        (_feeds_wrongly, "--eval _feeds_wrongly: input 'input' has shape 1x28x28"),
        (lambda run: float("nan"), "returned nan; it must be finite"),
        (lambda run: None, "returned NoneType, not a number"),
    ],
)
def test_what_the_user_s_function_does_wrong_is_one_line(worker, test_set, function, told):
    division = division_of(test_set, function)
    with pytest.raises(DataError) as error:
        HeldOut(worker, CNN, division.evaluation, division.metric).reference  # noqa: B018
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_function_is_found_by_its_name(worker, test_set, monkeypatch):
    (test_set / "judging.py").write_text("def always(run):\n    return 7\n")
    monkeypatch.chdir(test_set)
    division = division_of(test_set, "judging:always")
    assert HeldOut(worker, CNN, division.evaluation, division.metric).reference.metric == 7
    assert division.metric.name == "judging:always"


def test_an_original_that_fails_on_a_sample_is_said(worker, tmp_path):
    text = "g (float[N, 2] x) => (float[1, 4] y) <int64[2] s = {1, 4}> { y = Reshape(x, s) }"
    onnx.save(model_of(text), tmp_path / "m.onnx")
    for index, count in enumerate((2, 2, 3)):
        np.savez(tmp_path / f"{index}.npz", x=np.full((1, count, 2), index, np.float32))
    ir_model = Model.load(tmp_path / "m.onnx").ir
    division = divide(gather(ir_model, str(tmp_path)), None, inputs_of(ir_model), calibrate=False)
    with pytest.raises(DataError, match="the original does not run on held-out sample 2"):
        HeldOut(worker, tmp_path / "m.onnx", division.evaluation).reference  # noqa: B018


def test_a_candidate_that_does_not_run_is_a_worker_error(worker, test_set, tmp_path):
    division = division_of(test_set, None)
    onnx.save(RELU, tmp_path / "other.onnx")
    with pytest.raises(WorkerError):
        HeldOut(worker, CNN, division.evaluation).score(tmp_path / "other.onnx")


def test_a_part_of_a_budget_allows_a_part_of_the_drop_and_of_the_noise() -> None:
    half = Budget.parse("1%").part(0.5)
    assert str(half) == "0.5 %"
    output = OutputScore("y", 21.0, None, 4)
    score, reference = Score(4, 21.0, None, (output,)), Score(4, math.inf, None, ())
    assert Budget.parse("1%").holds(score, reference)[0]
    holds, told = half.holds(score, reference)
    assert not holds and told == "'y' has 21.0 dB (least 23 dB)"
    assert half.holds(replace(score, outputs=(replace(output, sqnr_db=23.1),)), reference)[0]


def test_without_a_bound_the_cost_is_told() -> None:
    free = Budget.unbounded()
    assert not free.is_bounded and str(free) == "none" and not free.part(0.5).is_bounded
    score = Score(4, -3.0, 0.5, (OutputScore("y", -3.0, 0.5, 4),), metric=10.0, metric_name="top-1")
    reference = replace(score, metric=90.0)
    assert free.holds(score, reference) == (True, "top-1 90 -> 10, a drop of 80")
    agreed = replace(score, metric=None)
    assert free.holds(agreed, agreed) == (True, "'y' agrees on 50.00% of 4 rows; 'y' has -3.0 dB")
    assert free.holds(Score(4, None, None, ()), reference) == (True, "nothing to judge by")
