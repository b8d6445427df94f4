"""Targets that do not run here, and what CUDA is told where results are compared and measured."""

from __future__ import annotations

from pathlib import Path

import pytest

import graphopt
from graphopt.errors import UsageError, WorkerError
from graphopt.proof.compare import Conditions, bench, verify
from graphopt.proof.verify import Verifier
from graphopt.runtime.probe import missing, require
from graphopt.runtime.worker import Worker
from graphopt.samples.sampling import Samples
from graphopt.target import CPU, REFERENCE, Target
from tools import models

CUDA, TENSORRT = Target.named("cuda"), Target.named("tensorrt")


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime for GPUs on a machine without one: the providers are offered, and none starts."""

    def fails(self: Worker, model: object, target: Target = CPU, threads: int = 0) -> object:
        if target.providers != CPU.providers:
            raise WorkerError("CUDAExecutionProvider does not start on this machine")
        return opened(self, model, target, threads)

    opened = Worker.open
    monkeypatch.setattr(Worker, "providers", lambda self: list(TENSORRT.providers))
    monkeypatch.setattr(Worker, "open", fails)


def test_the_cpu_is_always_there():
    with Worker() as worker:
        assert missing(worker, CPU) == ""


def test_missing_provider_is_named(monkeypatch):
    monkeypatch.setattr(Worker, "providers", lambda self: ["CPUExecutionProvider"])
    with Worker() as worker:
        assert missing(worker, CUDA) == "CUDAExecutionProvider is not available here"


def test_provider_without_its_device_is_missing_too(monkeypatch):
    """A wheel for GPUs on a machine without one lists the provider, but no session gets it."""
    monkeypatch.setattr(Worker, "providers", lambda self: list(CUDA.providers))
    with Worker() as worker:
        assert "CUDA" in missing(worker, CUDA)


@pytest.mark.parametrize("command", [verify, bench])
def test_commands_that_only_run_models_refuse_a_target_that_does_not_start(command, listed) -> None:
    path = models.path("fashion_mlp")
    with pytest.raises(UsageError, match="'cuda' does not run here, CUDAExecutionProvider does not start"):
        command(path, path, Conditions(target="cuda"))


@pytest.mark.usefixtures("listed")
def test_optimize_runs_on_the_cpu_instead_and_says_so(tmp_path: Path) -> None:
    result = graphopt.optimize(models.path("fashion_mlp"), target="cuda", precision="fp16")
    assert result.report.accuracy is not None and result.report.accuracy.achieved
    told = "CUDAExecutionProvider does not start on this machine: run on the CPU instead, and not measured"
    assert told in result.report.notes


def test_any_absent_provider_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "providers", lambda self: ["TensorrtExecutionProvider"])
    with Worker() as worker:
        assert missing(worker, TENSORRT) == "CUDAExecutionProvider is not available here"
        with pytest.raises(UsageError, match="install graphopt"):
            require(worker, TENSORRT)


def test_results_are_compared_without_tf32_and_measured_with_it() -> None:
    with Worker() as worker:
        verifier = Verifier(worker, models.path("fashion_mlp"), Samples("none", lambda: iter(())), CUDA)
    assert verifier.target.provider_options == [{"use_tf32": "0"}, {}]
    assert CUDA.provider_options == [{}, {}]
    assert CPU.exact == CPU and REFERENCE.exact == REFERENCE
