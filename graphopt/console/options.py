"""The options that commands share, as types of their parameters: what typer reads names and help from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.console import completion
from graphopt.console.limits import positive


def flag(*names: str, panel: str | None = None, help: str) -> Any:
    """An option without a value; its type would only take room in the help."""
    return typer.Option(*names, help=help, metavar="", rich_help_panel=panel)


RESULT, EVIDENCE, OUTPUT, DEBUG = "Result", "Verification and measurement", "Output", "Debugging"
PRUNING, PRECISION, ACCURACY = "Pruning", "Precision", "Accuracy"

Input = Annotated[
    Path, typer.Argument(metavar="IN.onnx", show_default=False, help="The model to read; it stays as it is.")
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="SRC",
        rich_help_panel=EVIDENCE,
        help="Samples: an .npz (one array per input, leading axis = samples), a folder of .npz or of ONNX"
        " test_data_set_*, or package.module:function yielding dicts. Default: synthetic.",
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=1x3",
        rich_help_panel=EVIDENCE,
        help="Shape of an input, such as input=1x3x224x224; repeatable.",
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        rich_help_panel=EVIDENCE,
        help="ONNX Runtime's threads; 0 is its default, one per core.",
    ),
]
TargetName = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="NAME",
        autocompletion=completion.targets,
        help="Execution provider: cpu, cuda or tensorrt.",
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="N", min=0, rich_help_panel=EVIDENCE, help="Seed of the synthetic samples.")
]
CustomOps = Annotated[
    list[Path] | None,
    typer.Option("--custom-ops", metavar="LIB.so", help="Library of custom operators; repeatable."),
]
Json = Annotated[bool, flag("--json", panel=OUTPUT, help="Print one JSON object instead of text.")]
Debug = Annotated[bool, flag("--debug", panel=DEBUG, help="Show tracebacks.")]
TimeLimit = Annotated[
    float,
    typer.Option(
        metavar="S",
        callback=positive,
        rich_help_panel=EVIDENCE,
        help="Seconds that one call into ONNX Runtime may take.",
    ),
]
MemoryLimit = Annotated[
    float | None,
    typer.Option(
        metavar="GB",
        callback=positive,
        rich_help_panel=EVIDENCE,
        help="Data memory that ONNX Runtime may take; default: nine tenths of the machine's.",
    ),
]


Output = Annotated[Path, typer.Argument(metavar="OUT.onnx", help="Where the result appears, all at once.")]
Passes = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        autocompletion=completion.pass_names,
        rich_help_panel=RESULT,
        help="Instead of the default plan, such as 'fold-constants{max-growth=0},fuse-conv-bn'.",
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(metavar="OP|NODE", rich_help_panel=RESULT, help="Leave these nodes alone; repeatable."),
]
FreezeInitializers = Annotated[
    bool,
    flag("--freeze-initializers", panel=RESULT, help="Make weights that are also graph inputs constant."),
]
ExternalData = Annotated[
    bool,
    flag("--external-data", panel=RESULT, help="Store weights beside the model, as is done above 2 GB."),
]
Channels = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        rich_help_panel=PRUNING,
        help="Remove whole channels: a share such as 0.5 or 50%, or auto for as much as --max-drop allows.",
    ),
]
Rank = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        rich_help_panel=PRUNING,
        help="Split layers into two thinner ones, so that a share of the work goes; or auto.",
    ),
]
Sparsity = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        rich_help_panel=PRUNING,
        help="Make weights zero: a share, auto, 2:4, or a schedule such as PolynomialDecay(0, 0.8, 0, 100)."
        " ONNX Runtime gets no faster with it on CPUs.",
    ),
]
Cluster = Annotated[
    int | None,
    typer.Option(
        metavar="BITS",
        rich_help_panel=PRUNING,
        help="Let the weights of each layer share 16 (4) or 256 values (8), for a smaller file.",
    ),
]
Circulant = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=PRUNING,
        help="Make products block-circulant in blocks of 2, 4, 8 or 16 numbers: few weights, large errors.",
    ),
]
Objective = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=completion.objectives,
        rich_help_panel=PRUNING,
        help="What pruning is to gain: latency (else it is not kept), macs or size.",
    ),
]
Select = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=completion.selections,
        rich_help_panel=PRUNING,
        help="How channels and weights are chosen: obs (what the rest can make up for best), lasso, energy,"
        " l2 or l1.",
    ),
]
NoRefit = Annotated[
    bool,
    flag("--no-refit", panel=PRUNING, help="Do not fit what is left to make up for what was removed."),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=completion.precisions,
        rich_help_panel=PRECISION,
        help="int8 (calibrated on --data), int8-dynamic (needs no data), int8-weights or int4-weights (of"
        " weights alone), or fp16 or bf16 (for GPUs). Default: as it is.",
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=completion.stores,
        rich_help_panel=PRECISION,
        help="Store weights as fp16 or bf16 and compute on float32: half the file, the same speed. Works"
        " alone and after --precision.",
    ),
]
ConvertIo = Annotated[
    bool,
    flag("--convert-io/--keep-io", panel=PRECISION, help="With fp16 or bf16: inputs and outputs, too."),
]
Evaluation = Annotated[
    str | None,
    typer.Option(
        "--eval",
        metavar="SRC",
        rich_help_panel=ACCURACY,
        help="What judges: an .npz (one array per input, and 'labels'), a folder of samples, or"
        " package.module:function, which gets a function that runs the model and returns a number, higher"
        " is better. Default: samples of --data that are held out.",
    ),
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        metavar="N[%|dB]",
        rich_help_panel=ACCURACY,
        help="What may be lost: 0.5% of the original's metric (without one: of its decisions), 0.5 as an"
        " amount of the metric, or 15dB: outputs keep this ratio of signal to noise, whatever else is lost."
        " Default: 0.5%; what is pruned by a share, without this, at any cost.",
    ),
]
BlockSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=PRECISION,
        help="Numbers of a weight that share a scale in int8-weights and int4-weights: 16, 32, 64, 128 or"
        " 256. Default: 128 and 32.",
    ),
]
Rounding = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=completion.roundings,
        rich_help_panel=PRECISION,
        help="How these are rounded: nearest, hqq (without data), gptq or awq (fitted to --data), or auto.",
    ),
]
Ranges = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=completion.ranges,
        rich_help_panel=PRECISION,
        help="Ranges of activations: auto (the best for each consumer), minmax, percentile, kl or mse.",
    ),
]
CalibrationLimit = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, rich_help_panel=ACCURACY, help="Use only the first N samples of --data."
    ),
]
CalibrationMemory = Annotated[
    float,
    typer.Option(
        metavar="MB",
        callback=positive,
        rich_help_panel=ACCURACY,
        help="Memory for the statistics of calibration; tensors are taken in groups that fit.",
    ),
]
SaveCalibration = Annotated[
    Path | None,
    typer.Option(metavar="FILE.json", rich_help_panel=PRECISION, help="Save the statistics for later."),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json", rich_help_panel=PRECISION, help="Use saved statistics of the same --data."
    ),
]
InPlace = Annotated[bool, flag("--in-place", panel=RESULT, help="Allow OUT to be IN.")]
NoVerify = Annotated[bool, flag("--no-verify", panel=EVIDENCE, help="Do not compare with the original.")]
NoMeasure = Annotated[bool, flag("--no-measure", panel=EVIDENCE, help="Do not measure latency.")]
Strict = Annotated[
    bool,
    flag("--strict", panel=EVIDENCE, help="Write nothing, exit 4, unless the result is verified."),
]
ReportFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE.json", rich_help_panel=OUTPUT, help="Write the full report as JSON."),
]
Replay = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json", rich_help_panel=RESULT, help="Repeat the decisions of an earlier report."
    ),
]
VerifyEach = Annotated[
    bool,
    flag("--verify-each", panel=DEBUG, help="Compare with the original after every pass (slow)."),
]
BisectLimit = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", rich_help_panel=DEBUG, help="Allow only the first N rewrites."),
]
PrintAfter = Annotated[
    str | None,
    typer.Option(
        metavar="PASS",
        autocompletion=completion.pass_names,
        rich_help_panel=DEBUG,
        help="Print the graph as text to stderr after a pass, or after 'all'.",
    ),
]
DumpDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", rich_help_panel=DEBUG, help="Save the model after every pass that changed it."
    ),
]
TimePasses = Annotated[bool, flag("--time-passes", panel=OUTPUT, help="Show the time of each pass.")]
Statistics = Annotated[
    bool, flag("--stats", panel=OUTPUT, help="Show every rule's rewrites, refusals and their reasons.")
]
Quiet = Annotated[bool, flag("-q", "--quiet", panel=OUTPUT, help="Print nothing but errors.")]
Verbose = Annotated[
    int,
    typer.Option(
        "-v",
        "--verbose",
        count=True,
        metavar="",
        show_default=False,
        rich_help_panel=OUTPUT,
        help="Show every refusal.",
    ),
]
