"""Write a GPT-2-like decoder with random weights in external data, tensor by tensor.

The default is 24 layers of d = 2048 with a vocabulary of 50,257: 5.3 GB that never lie in memory at once.

    python tools/make_decoder.py decoder.onnx
    python tools/make_decoder.py tiny.onnx --layers 2 --width 64 --heads 4 --vocabulary 100 --context 32
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import parser

_ALIGN = 4096

_HEAD = """
<ir_version: 8, opset_import: ["" : 17], producer_name: "make_decoder">
decoder (int64[batch, sequence] input_ids) => (float[batch, sequence, {vocabulary}] logits)
<int64[1] zero = {{0}}, int64 start = {{0}}, int64 step = {{1}}, int64[1] one = {{1}}, float far = {{-1e9}},
 float scale = {{{scale}}}, float half = {{0.5}}, float root = {{0.7978845608}}, float cubic = {{0.044715}},
 float unit = {{1}}, float three = {{3}}, int64[4] split_heads = {{0, 0, {heads}, {head_width}}},
 int64[3] join_heads = {{0, 0, {width}}}>
{{
    token = Gather(wte, input_ids)
    shape = Shape(input_ids)
    length = Gather(shape, step)
    position = Range(start, length, step)
    place = Gather(wpe, position)
    h0 = Add(token, place)
    row = Unsqueeze(position, one)
    column = Unsqueeze(position, zero)
    future = Less(row, column)
"""

_LAYER = """
    n{i} = LayerNormalization<axis = -1, epsilon = 1e-5>(h{i}, ln1_weight_{i}, ln1_bias_{i})
    qkv_product_{i} = MatMul(n{i}, qkv_weight_{i})
    qkv_{i} = Add(qkv_product_{i}, qkv_bias_{i})
    q_flat_{i}, k_flat_{i}, v_flat_{i} = Split<axis = -1>(qkv_{i})
    q_heads_{i} = Reshape(q_flat_{i}, split_heads)
    k_heads_{i} = Reshape(k_flat_{i}, split_heads)
    v_heads_{i} = Reshape(v_flat_{i}, split_heads)
    q_{i} = Transpose<perm = [0, 2, 1, 3]>(q_heads_{i})
    k_{i} = Transpose<perm = [0, 2, 3, 1]>(k_heads_{i})
    v_{i} = Transpose<perm = [0, 2, 1, 3]>(v_heads_{i})
    score_{i} = MatMul(q_{i}, k_{i})
    scaled_{i} = Mul(score_{i}, scale)
    masked_{i} = Where(future, far, scaled_{i})
    probability_{i} = Softmax<axis = -1>(masked_{i})
    mixed_heads_{i} = MatMul(probability_{i}, v_{i})
    mixed_order_{i} = Transpose<perm = [0, 2, 1, 3]>(mixed_heads_{i})
    mixed_{i} = Reshape(mixed_order_{i}, join_heads)
    attention_product_{i} = MatMul(mixed_{i}, attention_weight_{i})
    attention_{i} = Add(attention_product_{i}, attention_bias_{i})
    r{i} = Add(h{i}, attention_{i})
    m{i} = LayerNormalization<axis = -1, epsilon = 1e-5>(r{i}, ln2_weight_{i}, ln2_bias_{i})
    up_product_{i} = MatMul(m{i}, up_weight_{i})
    up_{i} = Add(up_product_{i}, up_bias_{i})
    up_cube_{i} = Pow(up_{i}, three)
    up_cubic_{i} = Mul(up_cube_{i}, cubic)
    up_sum_{i} = Add(up_{i}, up_cubic_{i})
    up_scaled_{i} = Mul(up_sum_{i}, root)
    up_tanh_{i} = Tanh(up_scaled_{i})
    up_gate_{i} = Add(up_tanh_{i}, unit)
    up_half_{i} = Mul(up_{i}, half)
    gelu_{i} = Mul(up_half_{i}, up_gate_{i})
    down_product_{i} = MatMul(gelu_{i}, down_weight_{i})
    down_{i} = Add(down_product_{i}, down_bias_{i})
    h{next} = Add(r{i}, down_{i})
"""

_TAIL = """
    last = LayerNormalization<axis = -1, epsilon = 1e-5>(h{layers}, lnf_weight, lnf_bias)
    head = Transpose<perm = [1, 0]>(wte)
    logits = MatMul(last, head)
}}
"""


@dataclass(frozen=True)
class Decoder:
    """The size of a decoder: layers, width d, attention heads, vocabulary and longest sequence."""

    layers: int = 24
    width: int = 2048
    heads: int = 16
    vocabulary: int = 50257
    context: int = 1024

    def graph(self) -> onnx.ModelProto:
        """The model without its weights."""
        head_width = self.width // self.heads
        sizes = {**self.__dict__, "head_width": head_width, "scale": head_width**-0.5}
        layers = "".join(_LAYER.format(i=i, next=i + 1) for i in range(self.layers))
        return parser.parse_model(_HEAD.format(**sizes) + layers + _TAIL.format(**sizes))

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every weight, all float32."""
        d = self.width
        shapes: dict[str, tuple[int, ...]] = {"wte": (self.vocabulary, d), "wpe": (self.context, d)}
        for i in range(self.layers):
            for name, shape in {
                "ln1": (d,),
                "qkv": (d, 3 * d),
                "attention": (d, d),
                "ln2": (d,),
                "up": (d, 4 * d),
                "down": (4 * d, d),
            }.items():
                shapes[f"{name}_weight_{i}"] = shape
                shapes[f"{name}_bias_{i}"] = shape[-1:]
        return {**shapes, "lnf_weight": (d,), "lnf_bias": (d,)}


def write_decoder(decoder: Decoder, path: Path, seed: int = 0) -> None:
    """Write the model to ``path`` and its weights to ``<path>.data``."""
    model = decoder.graph()
    random = np.random.default_rng(seed)
    with open(path.with_name(path.name + ".data"), "wb") as file:
        for name, shape in decoder.weights().items():
            values = random.standard_normal(shape, dtype=np.float32)
            values *= np.float32(0.02)
            if name.startswith("ln") and "weight" in name:
                values += np.float32(1)
            file.seek(-(-file.tell() // _ALIGN) * _ALIGN)
            tensor = model.graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT, dims=shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            entries = {"location": f"{path.name}.data", "offset": file.tell(), "length": values.nbytes}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(values.data)
    path.write_bytes(model.SerializeToString())


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("path", type=Path)
    default = Decoder()
    for name, value in default.__dict__.items():
        arguments.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    sizes = vars(arguments.parse_args())
    write_decoder(Decoder(**{name: sizes[name] for name in default.__dict__}), sizes["path"])


if __name__ == "__main__":
    main()
