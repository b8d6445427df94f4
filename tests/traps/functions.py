"""Model-local functions: their own opsets, parameters, scopes."""

from __future__ import annotations

import numpy as np
from onnx import helper

from tests.traps.kit import ROUNDING, Built, ints, model, normal, scalar, tensor, trap

HEAD = '<domain: "local", opset_import: ["" : 17]>'
NESTED = '<domain: "local", opset_import: ["" : 17, "local" : 1]>'


@trap()
def parameters_of_functions() -> Built:
    return model(
        """g (float[2,3] x) => (float[3,2] y, float[2,3] z) {
        y = local.F<p = [1, 0]> (x)
        z = local.F<p = [0, 1]> (x)
    }""",
        functions=f"{HEAD} F <p> (a) => (b) {{ c = Transpose<perm: ints = @p> (a) d = Identity(c) b = Neg(d) }}",
    )


@trap()
def parameter_of_a_constant() -> Built:
    return model(
        """g (float[2] x) => (float[2] y, float[2] z) {
        y = local.F<k = 2.0> (x)
        z = local.F<k = 3.0> (x)
    }""",
        functions=f"{HEAD} F <k> (a) => (b) {{ c = Constant<value_float: float = @k> () d = Add(c, c) b = Mul(a, d) }}",
    )


@trap()
def parameter_with_a_default() -> Built:
    return model(
        """g (float[2,2] x) => (float[2,2] y, float[2,2] z) {
        y = local.F(x)
        z = local.F<to = 0> (x)
    }""",
        functions=f"{HEAD} F <to: int = 1> (a) => (b) {{ c = Softmax<axis: int = @to> (a) b = Identity(c) }}",
    )


@trap()
def function_called_with_different_types() -> Built:
    return model(
        """g (float[2] x, double[3] d) => (float[2] y, double[3] z) {
        y = local.F(x)
        z = local.F(d)
    }""",
        functions=f"""{HEAD} F (a) => (b) {{
        c = Cast<to = 1> (a)
        s = Shape(c)
        e = Reshape(c, s)
        b = CastLike(e, a)
    }}""",
    )


@trap()
def function_that_ignores_and_repeats_inputs() -> Built:
    return model(
        "g (float[2] x, float[2] u) => (float[2] y, float[2] z) { y, z = local.F(x, u) }",
        functions=f"{HEAD} F (a, unused) => (b, c) {{ b = Identity(a) c = Identity(a) }}",
    )


@trap()
def function_with_an_omitted_input() -> Built:
    return model(
        "g (float[2] x) => (float[2] y, float[2] z) { y = local.F(x, , k) z = local.F(x) }",
        k=scalar(0.1),
        functions=f"{HEAD} F (a, low, high) => (b) {{ c = Clip(a, low, high) b = Neg(c) }}",
    )


@trap()
def nested_functions() -> Built:
    inner = f"{HEAD} F (a) => (b) {{ k = Constant<value_float = 2.0> () l = Mul(k, k) b = Mul(a, l) }}"
    outer = f"{NESTED} G (a) => (b) {{ c = local.F(a) d = local.F(c) b = Identity(d) }}"
    return model("g (float[2] x) => (float[2] y) { y = local.G(x) }", functions=f"{inner}\n{outer}")


@trap()
def function_with_its_own_opset() -> Built:
    proto = model(
        """g (float[N,1,3] x) => (float[A,B] y, float[C,D] z) {
        y = local.F(x)
        z = Squeeze(x, one)
    }""",
        functions=f"""{HEAD} F (a) => (b) {{
        c = Softmax<axis = 1> (a)
        d = Identity(c)
        k = Softmax<axis = 1> (d)
        e = Constant<value = int64[2] {{-1, 3}}> ()
        b = Reshape(k, e)
    }}""",
        one=ints(1),
    )
    proto.functions[0].opset_import[0].version = 11  # where Softmax flattens the axes behind its own
    return proto


@trap()
def function_with_a_constant_if() -> Built:
    proto = model(
        "g (float[2] x) => (float[2] y) { y = local.F(x) }",
        functions=f"""{HEAD} F (a) => (b) {{
        c = Constant<value = bool {{1}}> ()
        b = If(c) <
            then_branch = t () => (r) {{ r = Add(a, a) }},
            else_branch = e () => (r) {{ r = Neg(a) }}
        >
    }}""",
    )
    for attribute in proto.functions[0].node[1].attribute:
        attribute.g.initializer.append(tensor("s", np.array([3, 4], np.float32)))
        attribute.g.node[0].input[-1] = "s"
    return proto


@trap()
def function_with_an_if_on_its_input() -> Built:
    return model(
        "g (float[2] x, bool c) => (float[2] y, float[2] z) { y = local.F(x, c) n = Not(c) z = local.F(x, n) }",
        functions=f"""{HEAD} F (a, c) => (b) {{
        k = Constant<value = float {{3.0}}> ()
        l = Add(k, k)
        b = If(c) <
            then_branch = t () => (r) {{ m = Mul(l, k) r = Add(a, m) }},
            else_branch = e () => (r) {{ m = Sub(l, k) r = Mul(a, m) }}
        >
    }}""",
    )


@trap()
def function_called_in_a_subgraph() -> Built:
    return model(
        """g (float[2] x, bool c) => (float[2] y) {
        y = If(c) <
            then_branch = t () => (float[2] r) { q = local.F(x) r = local.F(q) },
            else_branch = e () => (float[2] r) { r = local.F(w) }
        >
    }""",
        functions=f"{HEAD} F (a) => (b) {{ c = Identity(a) b = Exp(c) }}",
        w=normal(2),
    )


@trap()
def function_of_constants() -> Built:
    return model(
        "g (float[2] x) => (float[2] y) { k = local.F(w) y = Add(x, k) z = local.F(x) }",
        functions=f"{HEAD} F (a) => (b) {{ b = Exp(a) }}",
        w=normal(2),
    )


@trap()
def function_named_like_an_operator() -> Built:
    proto = model(
        """g (float[2] x) => (float[2] y) {
        i = local.Identity(x)
        d = local.Dropout(i)
        y = Relu(d)
    }""",
        functions=f"{HEAD} Identity (a) => (b) {{ b = Neg(a) }}\n{HEAD} Dropout (a) => (b) {{ b = Exp(a) }}",
    )
    return proto


@trap()
def overloads() -> Built:
    proto = model(
        "g (float[2] x) => (float[2] y, float[2] z) { y = local.F(x) z = local.F(x) }",
        functions=f"{HEAD} F (a) => (b) {{ b = Neg(a) }}\n{HEAD} G (a) => (b) {{ b = Exp(a) }}",
        ir_version=10,
    )
    for function, node, overload in zip(proto.functions, proto.graph.node, ("one", "two"), strict=True):
        function.name, function.overload, node.overload = "F", overload, overload
    return proto


@trap()
def functions_that_nobody_calls() -> Built:
    return model(
        "g (float[2] x) => (float[2] y) { y = Neg(x) }", functions=f"{HEAD} F (a) => (b) {{ b = Exp(a) }}"
    )


@trap(rtol=ROUNDING)
def fusion_inside_a_function() -> Built:
    return model(
        "g (float[1,1,3,3] x) => (float[1,1,2,2] y, float[1,1,2,2] z) { y = local.F(x) z = local.F(y2) "
        "y2 = Neg(x) }".replace("z = local.F(y2) y2 = Neg(x)", "y2 = Neg(x) z = local.F(y2)"),
        functions=f"""{HEAD} F (a) => (b) {{
        w = Constant<value = float[1,1,2,2] {{1.0, 2.0, 3.0, 4.0}}> ()
        k = Constant<value = float[1,1,1] {{0.5}}> ()
        c = Conv(a, w)
        b = Mul(c, k)
    }}""",
    )


@trap()
def training_dropout_inside_a_function() -> Built:
    return model(
        "g (float[4] x, bool t) => (float[4] y) { y = local.F(x, t) }",
        functions=f"""{HEAD} F (a, t) => (b) {{
        r = Constant<value = float {{0.0}}> ()
        b = Dropout(a, r, t)
    }}""",
    )


@trap()
def functions_keep_their_documents() -> Built:
    proto = model(
        "g (float[2] x) => (float[2] y) { y = local.F(x) }",
        functions=f"{HEAD} F (a) => (b) {{ c = Identity(a) b = Exp(c) }}",
        ir_version=10,
    )
    proto.functions[0].doc_string = "a function"
    proto.functions[0].metadata_props.add(key="k", value="v")
    proto.functions[0].value_info.append(helper.make_tensor_value_info("c", 1, [2]))
    return proto
