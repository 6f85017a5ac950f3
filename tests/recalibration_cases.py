"""Models with the order in which their BatchNorms can be recalibrated, for `test_recalibration.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bnfold.drift import Hindrance


def parameters(*names: str, channels: int = 4, dtype: str = "float") -> str:
    """The four parameters of BatchNorms of these names."""
    return ", ".join(
        f"{dtype}[{channels}] {kind}_{name}" for name in names for kind in ("gamma", "beta", "mean", "var")
    )


def bn(name: str, source: str, target: str, own: str = "") -> str:
    """A BatchNorm node with the parameters called `own`, by default like itself."""
    own = own or name
    return f"[{name}] {target} = BatchNormalization ({source}, gamma_{own}, beta_{own}, mean_{own}, var_{own})"


@dataclass(frozen=True)
class Case:
    """A model.

    Attributes:
        text: For `onnx_models.parse`.
        order: The nodes that share statistics, in an order in which these can be computed.
        inputs: The shape of one sample, by input.
        left: What must stay as it is, and why.
    """

    text: str
    order: Sequence[Sequence[str]]
    inputs: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"x": (4, 6, 6)})
    left: dict[str, Hindrance] = field(default_factory=dict)


IMAGE = "(float[n, 4, 6, 6] x) => (float[n, 4, h, w] y)"

CASES = {
    "a chain": Case(
        f"""{IMAGE} <float[4, 4, 3, 3] w1, float[4, 4, 3, 3] w2, {parameters("a", "b")}> {{
            c = Conv <pads = [1, 1, 1, 1]> (x, w1)
            {bn("a", "c", "d")}
            e = Relu (d)
            f = Conv <pads = [1, 1, 1, 1]> (e, w2)
            {bn("b", "f", "g")}
            y = Sigmoid (g)
        }}""",
        [["a"], ["b"]],
    ),
    "branches of other depths that meet": Case(
        f"""{IMAGE}
        <float[4, 4, 3, 3] w1, float[4, 4, 1, 1] w2, float[4, 4, 1, 1] w3, {parameters("a", "b", "c", "d", "e")}> {{
            s = Conv (x, w1)
            {bn("a", "s", "t")}
            r = Relu (t)
            u = Conv (r, w2)
            {bn("b", "u", "v")}
            p = Conv (r, w3)
            {bn("c", "p", "q")}
            k = Relu (q)
            m = Conv (k, w2)
            {bn("d", "m", "o")}
            z = Add (v, o)
            {bn("e", "z", "y")}
        }}""",
        [["a"], ["b"], ["c"], ["d"], ["e"]],
    ),
    "one module on two inputs": Case(
        f"""(float[n, 4, 5, 5] x, float[n, 4, 7] z) => (float[n, 4] y) <{parameters("a", "b")}> {{
            {bn("one", "x", "p", "a")}
            {bn("two", "z", "q", "a")}
            r = ReduceMean <axes = [2, 3], keepdims = 0> (p)
            s = ReduceMax <axes = [2], keepdims = 0> (q)
            v = Add (r, s)
            {bn("b", "v", "y")}
        }}""",
        [["one", "two"], ["b"]],
        {"x": (4, 5, 5), "z": (4, 7)},
    ),
    "one module at two depths": Case(
        f"""{IMAGE} <float[4, 4, 1, 1] w1, float[4, 4, 1, 1] w2, {parameters("a", "b", "c")}> {{
            d = Conv (x, w1)
            {bn("early", "x", "i", "a")}
            {bn("b", "d", "e")}
            f = Relu (e)
            g = Conv (f, w2)
            {bn("late", "g", "j", "a")}
            k = Mul (i, j)
            {bn("c", "k", "y")}
        }}""",
        [["b"], ["early", "late"], ["c"]],
    ),
    "one value that is observed at two levels": Case(
        f"""(float[n, 4, 6, 6] x) => (float[n, 4, h, w] y, float[n, 4, h, w] z) <{parameters("s", "a", "b")}> {{
            c = Neg (x)
            {bn("early", "c", "z", "s")}
            {bn("a", "c", "d")}
            {bn("b", "d", "e")}
            f = Relu (e)
            {bn("late", "f", "y", "s")}
        }}""",
        [["a"], ["b"], ["early", "late"]],
    ),
    "one module behind itself, and another one behind that": Case(
        f"""{IMAGE} <float[4, 4, 1, 1] w, {parameters("a", "b")}> {{
            {bn("first", "x", "d", "a")}
            e = Conv (d, w)
            {bn("second", "e", "f", "a")}
            g = Relu (f)
            {bn("b", "g", "y")}
        }}""",
        [["b"]],
        left={"first": Hindrance.SELF_DEPENDENT, "second": Hindrance.SELF_DEPENDENT},
    ),
    "two modules that cross": Case(
        f"""(float[n, 4, 6, 6] x) => (float[n, 4, h, w] y, float[n, 4, h, w] z) <{parameters("a", "b", "c")}> {{
            {bn("a1", "x", "p", "a")}
            {bn("b1", "p", "y", "b")}
            q = Neg (x)
            {bn("b2", "q", "r", "b")}
            {bn("a2", "r", "s", "a")}
            {bn("c", "s", "z")}
        }}""",
        [["c"]],
        left=dict.fromkeys(("a1", "a2", "b1", "b2"), Hindrance.SELF_DEPENDENT),
    ),
    "several inputs, whole numbers and shapes between the levels": Case(
        f"""(float[n, 4, 6, 6] x, int64[n, 2] k) => (float[n, 4] y)
        <float[4, 4, 3, 3] w, float[9, 4] table, {parameters("a", "b", "c")}> {{
            c0 = Conv (x, w)
            {bn("a", "c0", "d")}
            s = Shape (d)
            m = GlobalAveragePool (d)
            f = Flatten (m)
            t = Gather (table, k)
            axis = Constant <value = int64[1] {{1}}> ()
            u = ReduceSum <keepdims = 0> (t, axis)
            {bn("c", "u", "v")}
            g = Mul (f, v)
            two = Constant <value = int64 {{2}}> ()
            i = Gather (s, two)
            j = Cast <to = 1> (i)
            e = Div (g, j)
            {bn("b", "e", "y")}
        }}""",
        [["a"], ["c"], ["b"]],
        {"x": (4, 6, 6), "k": (2,)},
    ),
    "a sequence between the levels": Case(
        f"""(float[n, 4, 6, 6] x) => (float[n, 2, h, w] y) <{parameters("a")}, {parameters("b", channels=2)}> {{
            {bn("a", "x", "d")}
            m = ReduceMean <axes = [1, 2, 3]> (d)
            two = Constant <value = int64 {{2}}> ()
            zero = Constant <value = int64 {{0}}> ()
            one = Constant <value = int64 {{1}}> ()
            s = SplitToSequence <axis = 1> (x, two)
            p = SequenceAt (s, zero)
            q = Add (p, m)
            {bn("b", "q", "r")}
            t = SequenceAt (s, one)
            y = Mul (r, t)
        }}""",
        [["a"], ["b"]],
    ),
    "rank 2, 3 and 5": Case(
        f"""(float[n, 4] x, float[n, 4, 9] z, float[n, 4, 2, 3, 4] v)
        => (float[n, 4] y, float[n, 4, 9] p, float[n, 4, 2, 3, 4] q) <{parameters("a", "b", "c")}> {{
            {bn("a", "x", "y")}
            {bn("b", "z", "p")}
            {bn("c", "v", "q")}
        }}""",
        [["a"], ["b"], ["c"]],
        {"x": (4,), "z": (4, 9), "v": (4, 2, 3, 4)},
    ),
    "a body that captures a value": Case(
        f"""{IMAGE} <{parameters("a", "b", "c")}, bool yes = {{1}}> {{
            {bn("a", "x", "d")}
            e = If (yes) <
                then_branch = one () => (float[n, 4, h, w] t) {{ {bn("inner", "d", "k", "c")} t = Relu (k) }},
                else_branch = two () => (float[n, 4, h, w] o) {{ o = Neg (d) }}
            >
            {bn("b", "e", "y")}
        }}""",
        [["a"], ["b"]],
        left={"inner": Hindrance.INSIDE_BODY},
    ),
    "weights that nodes compute, read at two levels": Case(
        f"""{IMAGE} <float[4, 4, 1, 1] w, {parameters("a", "b")}, {parameters("s", channels=4)}> {{
            {bn("standardised", "w", "v", "s")}
            u = Neg (v)
            c = Conv (x, u)
            {bn("a", "c", "d")}
            e = Conv (d, u)
            {bn("b", "e", "y")}
        }}""",
        [["a"], ["b"]],
        left={"standardised": Hindrance.NORMALISES_CONSTANT},
    ),
}
