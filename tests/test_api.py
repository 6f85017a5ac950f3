"""The Python functions: fold, inspect, verify, load, save."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import PARAMETERS, STATS, as_bytes, ops, parse, reasons

import bnfold
from bnfold import api
from bnfold.decision import Folded, Kept, Reason
from bnfold.frontends.onnx_graph import OnnxGraph
from bnfold.frontends.onnx_linear import ConvSite
from bnfold.linear import LinearParams
from bnfold.views import Same

STATS2 = "gamma2, beta2, mean2, var2"
SECOND = PARAMETERS.replace("gamma", "gamma2").replace("beta", "beta2").replace("mean", "mean2").replace("var", "var2")
TWO = f"""(float[N,3,8,8] x) => (float[N,4,4,4] y) <float[4,3,3,3] w, float[4,4,3,3] v, {PARAMETERS}, {SECOND}>
    {{ [conv1] c = Conv(x, w) [bn1] b = BatchNormalization(c, {STATS}) [relu1] r = Relu(b)
       [conv2] d = Conv(r, v) [bn2] e = BatchNormalization(d, {STATS2}) [relu2] y = Relu(e) }}"""


@pytest.fixture
def two() -> ir.Model:
    model = parse(TWO.replace("[conv1]", "").replace("[bn1]", "").replace("[relu1]", "").replace("[conv2]", "")
                  .replace("[bn2]", "").replace("[relu2]", ""))  # fmt: skip
    for node, name in zip(model.graph.node, ("conv1", "bn1", "relu1", "conv2", "bn2", "relu2"), strict=True):
        node.name = name
    return ir.from_proto(model)


def test_a_path_and_a_model_are_taken_alike(two: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    bnfold.save(two, path)
    for given in (path, str(path)):
        result = bnfold.fold(given)
        assert as_bytes(result.model) == as_bytes(bnfold.fold(two).model)
        assert result.report.model == "net.onnx"
    assert bnfold.fold(two).report.model == "main"


def test_inspect_says_what_fold_does_and_changes_nothing(two: ir.Model) -> None:
    before = as_bytes(two)
    report = bnfold.inspect(two)
    assert as_bytes(two) == before
    assert report.decisions == bnfold.fold(two, verify=False).decisions
    assert (report.after, report.verification) == (None, None)


def test_the_report_holds_decisions_sizes_and_the_check(two: ir.Model) -> None:
    result = bnfold.fold(two)
    assert [(d.subject.name, d.into) for d in result.report.folded] == [("bn1", ("conv1",)), ("bn2", ("conv2",))]
    assert (result.report.before.nodes, result.report.before.batchnorms) == (6, 2)
    assert result.report.after is not None
    assert (result.report.after.nodes, result.report.after.batchnorms) == (4, 0)
    assert result.report.after.bytes == 4 * (4 * 3 * 9 + 4 * 4 * 9 + 8)
    assert result.report.verification is not None
    assert result.report.verification.passed
    assert result.report.verification.providers == ("cpu",)
    assert len(result.report.verification.local) == 2
    assert bnfold.fold(two, verify=False).report.verification is None


@pytest.mark.parametrize(
    ("options", "folded"),
    [
        ({"only": "bn1"}, ["bn1"]),
        ({"keep": "bn1"}, ["bn2"]),
        ({"only": "bn", "keep": "2$"}, ["bn1"]),
        ({"only": "none"}, []),
    ],
)
def test_only_and_keep_choose_by_name(two: ir.Model, options: dict[str, str], folded: list[str]) -> None:
    result = bnfold.fold(two, **options)  # type: ignore[arg-type]
    assert [d.subject.name for d in result.decisions if isinstance(d, Folded)] == folded
    assert [d.subject.name for d in result.decisions] == ["bn1", "bn2"]
    assert set(reasons(result)) <= {Reason.EXCLUDED_BY_CALLER}


def test_a_bad_expression_is_a_usage_error(two: ir.Model) -> None:
    for option in ("only", "keep"):
        with pytest.raises(bnfold.UsageError, match=rf"{option}: '\(' is no regular expression"):
            bnfold.inspect(two, **{option: "("})  # type: ignore[arg-type]


def test_progress_is_told_clause_by_clause(two: ir.Model) -> None:
    told: list[str] = []
    bnfold.fold(two, progress=told.append)
    assert told[:2] == ["checking the fold of bn1", "checking the fold of bn2"]
    assert "loading both models" in told


def test_verify_compares_two_models(two: ir.Model) -> None:
    folded = bnfold.fold(two, verify=False).model
    assert bnfold.verify(two, folded).passed
    wrong = folded.clone()
    value = wrong.graph.initializers["v_folded"]
    assert value.const_value is not None
    value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1.01), name="v_folded")
    verdict = bnfold.verify(two, wrong)
    assert verdict.failed
    assert verdict.culprit == "the first tensor that differs on cpu is e"


def test_a_wrong_fold_is_a_verification_error_that_names_the_batchnorm(
    two: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ConvSite.write

    def wrong(self: ConvSite, params: LinearParams, editor: object, _quantised: object) -> None:
        scale = 1.001 if self.node.name == "conv2" else 1.0
        right(self, LinearParams(params.weight * scale, params.bias), editor)  # type: ignore[arg-type]

    monkeypatch.setattr(ConvSite, "write", wrong)
    with pytest.raises(bnfold.VerificationError, match="the fold of bn2 is wrong at e") as caught:
        bnfold.fold(two)
    assert caught.value.exit_code == 1
    assert isinstance(caught.value.report, bnfold.Report)
    assert bnfold.fold(two, verify=False).report.verification is None  # ... and only the check would have told


def test_a_check_that_proves_nothing_is_a_machine_error() -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, float[1] zero, {PARAMETERS}>
        {{ c = Conv(x, w) b = BatchNormalization(c, {STATS}) y = Mul(b, zero) }}"""
    with pytest.raises(bnfold.MachineError, match=r"nothing is proven.*--no-verify"):
        bnfold.fold(ir.from_proto(parse(text, values={"zero": 0})))


def test_a_model_of_unknown_sizes_is_checked_at_the_sizes_that_are_given() -> None:
    text = f"""(float[N,C,H,W] x) => (float[N,4,P,Q] y) <float[4,3,3,3] w, {PARAMETERS}>
        {{ c = Conv(x, w) y = BatchNormalization(c, {STATS}) }}"""
    result = bnfold.fold(ir.from_proto(parse(text)), shapes={"x": (1, 3, 9, 7)})
    assert result.report.verification is not None
    assert result.report.verification.quick[0].runs == ({"x": (1, 3, 9, 7)},)


def test_an_own_reader_makes_a_strange_operator_known() -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, {PARAMETERS}>
        {{ c = Conv(x, w) d = strange.Same(c) y = BatchNormalization(d, {STATS}) }}"""
    model = ir.from_proto(parse(text, domains=["strange"]))
    assert reasons(bnfold.inspect(model))[0] is Reason.OPERATOR_IS_UNKNOWN
    assert len(bnfold.inspect(model, readers={("strange", "Same"): lambda *_: Same()}).folded) == 1


def test_a_provider_that_is_not_there_is_an_error_and_never_a_pass(two: ir.Model) -> None:
    import onnxruntime  # noqa: PLC0415

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    with pytest.raises(bnfold.ProviderError):
        bnfold.fold(two, providers=("cuda",))


def test_the_pass_folds_in_place_and_says_so(two: ir.Model) -> None:
    folding = bnfold.FoldBatchNormPass()
    result = folding(two)
    assert result.modified
    assert result.model is two
    assert ops(two) == ["Conv", "Relu", "Conv", "Relu"]
    assert [type(d) for d in folding.decisions] == [Folded, Folded]
    before = as_bytes(two)
    assert not folding(two).modified
    assert as_bytes(two) == before
    assert folding.decisions == ()


def test_the_pass_takes_part_in_a_pipeline_and_obeys_its_options(two: ir.Model) -> None:
    folding = bnfold.FoldBatchNormPass(lambda name: name != "bn1", keep_overridable=True)
    ir.passes.Sequential(folding, ir.passes.common.RemoveUnusedNodesPass())(two)
    assert [type(d) for d in folding.decisions] == [Kept, Folded]
    onnx.checker.check_model(ir.to_proto(two), full_check=True)


@pytest.mark.parametrize("break_", ["groups", "bias"])
def test_a_model_that_contradicts_itself_is_no_traceback(break_: str) -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, float[BIAS] k, {PARAMETERS}>
        {{ c = Conv GROUP (x, w, k) y = BatchNormalization(c, {STATS}) }}"""
    text = text.replace("GROUP", "<group=3>" if break_ == "groups" else "").replace(
        "BIAS", "3" if break_ == "bias" else "4"
    )
    model = parse(text)
    report = bnfold.inspect(ir.from_proto(model))
    assert not report.folded


@pytest.mark.parametrize("op", ["Conv", "Cast", "GlobalAveragePool", "Transpose", "Pad", "MatMul", "ReduceMax"])
def test_a_node_without_its_inputs_is_a_model_error(op: str, caplog: pytest.LogCaptureFixture) -> None:
    model = parse(
        f"(float[N,4,8] x) => (float[N,4,8] y) <{PARAMETERS}> {{ c = {op}() y = BatchNormalization(c, {STATS}) }}"
    )
    with pytest.raises(bnfold.ModelError, match=rf"c: {op} has 0 inputs and needs \d"):
        bnfold.inspect(ir.from_proto(model))
    assert not caplog.records  # onnx_ir would log a traceback


def test_a_gemm_whose_c_does_not_fit_is_no_traceback() -> None:
    text = f"""(float[N,5] x) => (float[N,4] y) <float[5,4] w, float[3] k, {PARAMETERS}>
        {{ c = Gemm(x, w, k) y = BatchNormalization(c, {STATS}) }}"""
    assert reasons(bnfold.inspect(ir.from_proto(parse(text))))[0] is Reason.OPERATOR_HAS_NO_RULE


def test_load_and_save_are_the_functions_of_the_package() -> None:
    assert bnfold.load is api.load
    assert bnfold.save is api.save
    assert OnnxGraph.__name__ == "OnnxGraph"
