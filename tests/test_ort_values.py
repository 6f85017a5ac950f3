"""bfloat16 goes into onnxruntime and comes out of it, which NumPy's arrays alone cannot."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from onnx_models import parse

from bnfold.errors import ProviderError
from bnfold.quickcheck import quick_check
from bnfold.runtime import open_session

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
#: x (n, 2) of bfloat16, computed in float32, which the CPU provider has kernels for.
CAST = """(bfloat16[n, 2] x, float[n, 2] z) => (bfloat16[n, 2] y, float[n, 2] f)
{ w = Cast <to = 1> (x) f = Add (w, z) y = Cast <to = 16> (f) }"""
X = np.array([[1.5, -2.0], [3.0, 2.0**-120]], BFLOAT16)


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_bfloat16_goes_in_and_comes_out_bit_by_bit(layout: str) -> None:
    session = open_session(parse(CAST))
    x = X if layout == "rows" else np.asfortranarray(X)
    found = session.run(["y", "f"], {"x": x, "z": np.zeros((2, 2), np.float32)})
    assert found["y"].dtype == BFLOAT16
    assert found["y"].tobytes() == X.tobytes()
    np.testing.assert_array_equal(found["f"], X.astype(np.float32))


def test_what_comes_out_stays_when_the_session_runs_again() -> None:
    session = open_session(parse(CAST))
    first = session.run(["y"], {"x": X, "z": np.zeros((2, 2), np.float32)})["y"]
    session.run(["y"], {"x": X, "z": np.ones((2, 2), np.float32)})
    assert first.tobytes() == X.tobytes()


def test_an_empty_tensor_of_bfloat16_is_one() -> None:
    empty = np.zeros((0, 2))
    found = open_session(parse(CAST)).run(["y"], {"x": empty.astype(BFLOAT16), "z": empty.astype(np.float32)})
    assert (found["y"].shape, found["y"].dtype) == ((0, 2), BFLOAT16)


def test_an_onnxruntime_that_takes_no_bfloat16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(onnxruntime.OrtValue, "ortvalue_from_numpy_with_onnx_type")
    with pytest.raises(ProviderError, match="takes no bfloat16 from Python"):
        open_session(parse(CAST)).run(["y"], {"x": X, "z": np.zeros((2, 2), np.float32)})


def test_a_bfloat16_model_is_compared_end_to_end_by_the_scales_of_bfloat16() -> None:
    model = parse(CAST)
    wrong = parse(CAST.replace("Add (w, z)", "Sub (w, z)"))
    right = quick_check(model, model)
    assert right.passed
    assert {entry.name: entry.tolerance for entry in right.comparisons} == {"y": 2.0**-2, "f": 2.0**-2}
    assert quick_check(model, wrong).failed
