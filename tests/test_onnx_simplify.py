"""onnxsim before folding: constants are uncovered, no BatchNorm is folded behind our back."""

from __future__ import annotations

import sys
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, assert_as_accurate, ops, parse, proto, reasons

import bnfold
from bnfold.decision import Reason
from bnfold.frontends.onnx_simplify import simplified

#: A weight computed from constants by an operator that bnfold does not evaluate.
HIDDEN = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] v, {PARAMETERS}>
    {{ w = Tanh(v) c = Conv(x, w) b = BatchNormalization(c, {STATS}) y = Relu(b) }}"""


def test_constants_that_bnfold_does_not_evaluate_are_uncovered() -> None:
    model = parse(HIDDEN)
    plain = bnfold.fold(ir.from_proto(model), verify=False)
    assert reasons(plain)[0] is Reason.WEIGHTS_NOT_CONSTANT
    assert "--simplify" in plain.report.kept[0].remedy
    result = bnfold.fold(ir.from_proto(model), simplify=True)
    assert ops(result.model) == ["Conv", "Relu"]
    assert "onnxsim left 3 of 4 nodes" in result.report.notes
    assert_as_accurate(model, proto(result.model))
    onnx.checker.check_model(proto(result.model), full_check=True)


def test_onnxsim_folds_no_batchnorm_itself() -> None:
    simpler = simplified(ir.from_proto(parse(HIDDEN.replace("Tanh", "Identity"))))
    assert "BatchNormalization" in ops(simpler)


def test_what_onnxsim_does_is_checked_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxsim  # noqa: PLC0415

    def wrong(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, bool]:
        changed = parse(HIDDEN.replace("Tanh", "Identity"))
        return changed, True

    monkeypatch.setattr(onnxsim, "simplify", wrong)
    with pytest.raises(bnfold.VerificationError):
        bnfold.fold(ir.from_proto(parse(HIDDEN)), simplify=True)


def test_inputs_with_a_default_survive_where_they_are_to_be_kept() -> None:
    model = parse(HIDDEN.replace("Tanh", "Identity"))
    model.graph.input.append(onnx.helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, [4, 3, 3, 3]))
    result = bnfold.fold(ir.from_proto(model), simplify=True, keep_overridable=True, verify=False)
    assert not result.report.folded


def test_without_onnxsim_the_remedy_is_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    with pytest.raises(bnfold.MissingPackageError, match=r'pip install "bnfold\[sim\]"'):
        bnfold.inspect(ir.from_proto(parse(HIDDEN)), simplify=True)


def test_what_onnxsim_cannot_read_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxsim  # noqa: PLC0415

    def refuses(model: onnx.ModelProto, **options: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(onnxsim, "simplify", refuses)
    with pytest.raises(
        bnfold.ModelError, match=r"onnxsim cannot simplify the model \(RuntimeError\); leave out --simplify"
    ):
        bnfold.inspect(ir.from_proto(parse(HIDDEN)), simplify=True)
