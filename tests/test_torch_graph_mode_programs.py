"""Programs that torch.export made: folded, saved and loaded; and what the graph made of one demands of its inputs."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from test_torch_agreement import RepVgg
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch_models import alive, sample
from zoo.functional import Net, conv

from bnfold.api_torch_graph import GraphSettings, fold_program
from bnfold.decision import Reason
from bnfold.errors import VerificationError
from bnfold.frontends import torch_guards, torch_program_constants
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_graph_module import as_module
from bnfold.frontends.torch_wide import widened
from bnfold.wishes import Proof

#: torch's own specifications of inputs and outputs warn when they are copied.
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")

AUTO = torch.export.Dim.AUTO


def exported(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
    sizes = tuple(dict.fromkeys(range(x.ndim), AUTO) for x in inputs)
    return torch.export.export(module, inputs, dynamic_shapes=sizes)


def assert_close(before: nn.Module, after: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        old, new = before(*inputs), after(*inputs)
    assert (old - new).abs().max() <= 1e-11 * old.abs().max()


def test_a_program_is_folded_and_stays_as_it_is() -> None:
    net = alive(RepVgg())
    program = exported(net, sample())
    code, state = str(program.graph), {name: t.clone() for name, t in program.state_dict.items()}
    folded, report = fold_program(program, Arguments((sample(),), {}), GraphSettings(), Proof())
    assert str(program.graph) == code
    assert all(torch.equal(state[name], t) for name, t in program.state_dict.items())
    shared = {t.data_ptr() for t in program.state_dict.values()} & {t.data_ptr() for t in folded.state_dict.values()}
    assert not shared
    assert len(report.folded) == 4
    assert report.verification is not None
    assert report.verification.passed
    assert_close(net, folded.module(), sample(3, 3, 12, 10))


def test_a_folded_program_can_be_saved_and_loaded() -> None:
    net = alive(RepVgg())
    folded, _ = fold_program(exported(net, sample()), Arguments((sample(),), {}), GraphSettings(), Proof(verify=False))
    file = io.BytesIO()
    torch.export.save(folded, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert set(loaded.state_dict) == {"stem.0.weight", "stem.0.bias", "wide.0.weight", "wide.0.bias", "head.weight",
                                      "head.bias"}  # fmt: skip
    assert_close(net, loaded.module(), sample(3, 3, 12, 10))
    again, report = fold_program(loaded, Arguments((sample(),), {}), GraphSettings(), Proof())
    assert not report.decisions
    assert_close(net, again.module(), sample(3, 3, 12, 10))


def test_a_program_of_core_operators_is_folded() -> None:
    norms = nn.BatchNorm2d(4), nn.Sigmoid(), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.BatchNorm2d(4)
    net = alive(nn.Sequential(conv(), *norms, nn.Tanh()))
    program = exported(net, sample(2, 3, 8, 8)).run_decompositions()
    folded, report = fold_program(program, Arguments((sample(2, 3, 8, 8),), {}), GraphSettings(), Proof())
    kinds = [str(node.target) for node in folded.graph.nodes if node.op == "call_function"]
    assert len(report.folded) == 2
    assert sum("batch_norm" in kind for kind in kinds) == 1
    assert_close(net, folded.module(), sample(3, 3, 8, 8))


def test_a_batchnorm_whose_statistics_are_read_stays() -> None:
    norm = torch.ops.aten._native_batch_norm_legit_no_training.default

    def forward(s: Net, x: Tensor) -> Tensor:
        out, mean, _ = norm(s.conv(x), s.bn.weight, s.bn.bias, s.bn.running_mean, s.bn.running_var, 0.1, 1e-5)
        return out * 2 + mean.sum()

    program = exported(alive(Net(forward, conv=conv(), bn=nn.BatchNorm2d(4))), sample())
    _, report = fold_program(program, Arguments((sample(),), {}), GraphSettings(), Proof())
    assert [kept.refusals[0].reason for kept in report.kept] == [Reason.VALUE_HAS_OTHER_READERS]


def test_a_wrong_number_in_a_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch_program_constants.store

    def wrong(tensor: Tensor, values: object) -> None:
        right(tensor, values)
        tensor.detach().view(-1)[0] += 1e-6

    program = exported(alive(nn.Sequential(conv(), nn.BatchNorm2d(4))), sample())
    monkeypatch.setattr(torch_program_constants, "store", wrong)
    with pytest.raises(VerificationError, match=r"is 1$"):
        fold_program(program, Arguments((sample(),), {}), GraphSettings(), Proof())


def test_a_program_in_float64_computes_what_the_stored_numbers_say() -> None:
    net = alive(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Sigmoid())).half()
    program = exported(net, sample(dtype=torch.float16))
    assert_close(net.double(), as_module(widened(program)), sample())


def test_what_a_parameter_holds_is_never_lost_to_a_name() -> None:
    net = Net(lambda s, x: s.bn(s.conv(x) + s.conv_bias), conv=conv(), bn=nn.BatchNorm2d(4))
    net.conv_bias = nn.Parameter(torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(4, 1, 1))
    net = alive(net)
    folded, _ = fold_program(exported(net, sample()), Arguments((sample(),), {}), GraphSettings(), Proof())
    assert_close(net, folded.module(), sample(3, 3, 8, 8))


def demanding(a: Tensor, b: Tensor) -> Tensor:
    if a.shape[0] % 3 == 0 and b.shape[1] - 1 >= a.shape[1] and a.shape[2] != a.shape[1]:
        return a.sum(1) * b.sum(1)[:, None]
    return a.sum(1) + 1


class Demanding(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return demanding(a, b)


ACCEPTED, REFUSED = [(6, 4, 7, 9), (9, 2, 3, 3)], [(4, 4, 7, 9), (6, 4, 7, 4), (6, 4, 4, 9)]


def pair(batch: int, rows: int, columns: int, length: int) -> tuple[Tensor, Tensor]:
    return sample(batch, rows, columns), sample(batch, length)


def test_what_the_forward_pass_decided_is_demanded_of_inputs() -> None:
    graph = as_module(exported(Demanding(), *pair(6, 4, 7, 9)))
    for module in (graph, pickle.loads(pickle.dumps(graph))):
        for sizes in ACCEPTED:
            assert_close(Demanding(), module, *pair(*sizes))
        for sizes in REFUSED:
            with pytest.raises(AssertionError, match="Guard failed"):
                module(*pair(*sizes))


def test_a_demand_that_cannot_be_read_stays_as_torch_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_guards, "_ARITHMETIC", {})
    graph = as_module(exported(Demanding(), *pair(6, 4, 7, 9)))
    assert_close(Demanding(), graph, *pair(6, 4, 7, 9))
    for sizes in REFUSED:
        with pytest.raises(AssertionError, match="Guard failed"):
            graph(*pair(*sizes))
