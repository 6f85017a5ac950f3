"""What writing in place does to other values of a graph: each condition on each side, in graphs written by hand."""

from __future__ import annotations

import pytest
import torch
from test_torch_guards import Net, conv
from torch import Tensor, fx, nn
from torch_models import alive, fold, names

from bnfold.decision import Folded, Kept
from bnfold.frontends.torch_aliases import Aliases, find_aliases, unshare

ATEN = torch.ops.aten

#: torch's own specifications of inputs and outputs warn when they are copied.
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")


class Writer:
    """A graph of the inputs `x` and `z`, to which operators are added."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.x, self.z = self.graph.placeholder("x"), self.graph.placeholder("z")

    def add(self, target: object, *args: object, **kwargs: object) -> fx.Node:
        return self.graph.call_function(target, args, kwargs)  # type: ignore[arg-type]

    def found(self, *outputs: fx.Node, norms: tuple[fx.Node, ...] = ()) -> Aliases:
        self.graph.output(outputs)
        return find_aliases(list(self.graph.nodes), norms)


def test_what_nobody_reads_afterwards_may_be_written_and_what_somebody_reads_may_not() -> None:
    for is_read in (False, True):
        w = Writer()
        fresh = w.add(ATEN.sigmoid.default, w.x)
        writer = w.add(ATEN.relu_.default, fresh)
        last = w.add(ATEN.add.Tensor, writer, fresh if is_read else w.z)
        found = w.found(last)
        assert found.stale == found.frozen == (frozenset({fresh, writer}) if is_read else frozenset())
        assert found.writers == (frozenset({writer}) if is_read else frozenset())
        assert found.written == {fresh, writer}


def test_an_input_that_is_written_is_frozen_without_being_stale() -> None:
    w = Writer()
    writer = w.add(ATEN.relu_.default, w.x)
    found = w.found(w.add(ATEN.neg.default, writer))
    assert found.frozen == found.written == {w.x, writer}
    assert found.writers == {writer}
    assert found.stale == frozenset()


def test_values_that_are_returned_together_share_no_memory() -> None:
    w = Writer()
    other = w.add(ATEN.neg.default, w.z)
    writer = w.add(ATEN.relu_.default, w.add(ATEN.sigmoid.default, w.x))
    assert w.found(writer, other).frozen == frozenset()


@pytest.mark.parametrize("bounds", [("args",), ("kwargs",)])
def test_what_is_only_read_by_an_operator_that_writes_keeps_its_meaning(bounds: tuple[str]) -> None:
    w = Writer()
    fresh, lowest = w.add(ATEN.sigmoid.default, w.x), w.add(ATEN.neg.default, w.z)
    by_name = bounds == ("kwargs",)
    writer = w.add(ATEN.clamp_.Tensor, fresh, min=lowest) if by_name else w.add(ATEN.add_.Tensor, fresh, lowest)
    found = w.found(writer, w.add(ATEN.exp.default, lowest))
    assert found.frozen == frozenset()
    assert found.written == {fresh, writer}


@pytest.mark.parametrize("is_read", [False, True])
def test_an_output_that_is_given_by_name_is_written(is_read: bool) -> None:
    w = Writer()
    place, data = w.add(ATEN.sigmoid.default, w.x), w.add(ATEN.neg.default, w.z)
    writer = w.add(ATEN.exp.out, data, out=place)
    found = w.found(writer, place if is_read else data)
    assert found.written == {place, writer}
    assert found.stale == (frozenset({place, writer}) if is_read else frozenset())


@pytest.mark.parametrize("by_name", [False, True])
def test_a_view_shares_and_writes_nothing(by_name: bool) -> None:
    def viewed(w: Writer, fresh: fx.Node) -> fx.Node:
        given = ((), {"self": fresh, "dim": 1, "start": 1}) if by_name else ((fresh, 1, 1), {})
        return w.graph.call_function(ATEN.slice.Tensor, *given)  # type: ignore[arg-type]

    w = Writer()
    fresh = w.add(ATEN.sigmoid.default, w.x)
    assert w.found(w.add(ATEN.add.Tensor, viewed(w, fresh), fresh)).written == frozenset()
    w = Writer()
    fresh = w.add(ATEN.sigmoid.default, w.x)
    view = viewed(w, fresh)
    writer = w.add(ATEN.relu_.default, view)
    found = w.found(writer, w.add(ATEN.exp.default, fresh))
    assert found.stale == {fresh, view, writer}


def test_an_operator_that_is_not_known_may_hand_its_input_on() -> None:
    for target, expected in ((ATEN.exp.default, 0), (ATEN.lgamma.default, 3)):
        w = Writer()
        fresh = w.add(ATEN.sigmoid.default, w.x)
        writer = w.add(ATEN.relu_.default, w.add(target, fresh))
        assert len(w.found(writer, fresh).stale) == expected


def test_an_input_that_is_left_out_is_not_written() -> None:
    library = torch.library.Library("bnfold_test", "DEF")
    library.define("maybe(Tensor x, Tensor(a!)? y) -> Tensor")
    for is_given in (False, True):
        w = Writer()
        fresh = w.add(ATEN.sigmoid.default, w.z)
        result = w.add(torch.ops.bnfold_test.maybe.default, w.x, fresh if is_given else None)
        assert w.found(result, fresh).writers == (frozenset({result}) if is_given else frozenset())
    library._destroy()  # type: ignore[no-untyped-call]


def body(writes: bool) -> fx.GraphModule:
    graph = fx.Graph()
    inner = graph.call_function(ATEN.sigmoid.default, (graph.placeholder("v"),))
    graph.output(graph.call_function(ATEN.relu_.default if writes else ATEN.relu.default, (inner,)))
    return fx.GraphModule(nn.Module(), graph)


@pytest.mark.parametrize("writes", [False, True])
def test_an_operator_whose_body_writes_may_write_all_it_takes(writes: bool) -> None:
    w = Writer()
    fresh = w.add(ATEN.sigmoid.default, w.x)
    branch = w.graph.get_attr("branch")
    higher = w.add(torch.ops.higher_order.cond, w.z, branch, branch, (fresh,))
    w.graph.output((w.add(ATEN.relu.default, higher), fresh))
    root = nn.Module()
    root.branch = body(writes)
    whole = fx.GraphModule(root, w.graph)
    (higher,) = [node for node in whole.graph.nodes if node.target is torch.ops.higher_order.cond]
    found = find_aliases(list(whole.graph.nodes), ())
    assert found.writers == (frozenset({higher}) if writes else frozenset())


@pytest.mark.parametrize("is_read", [False, True])
def test_a_batchnorm_whose_copy_is_written_is_a_copy_where_the_original_is_read(is_read: bool) -> None:
    w = Writer()
    fresh = w.add(ATEN.sigmoid.default, w.x)
    norm = w.add(ATEN.batch_norm.default, fresh, None, None, w.z, w.z, False, 0.1, 1e-5, False)
    writer = w.add(ATEN.relu_.default, norm)
    found = w.found(writer, *[fresh] * is_read, norms=(norm,))
    assert found.copies == (frozenset({norm}) if is_read else frozenset())
    assert found.frozen == frozenset()


@pytest.mark.parametrize("is_known", [False, True])
def test_a_copy_is_written_for_what_did_not_write_before(is_known: bool) -> None:
    w = Writer()
    fresh = w.add(ATEN.sigmoid.default, w.x)
    writer = w.add(ATEN.relu_.default, fresh)
    w.graph.output((writer, fresh))
    unshare(w.graph, {writer} if is_known else set())
    clones = w.graph.find_nodes(op="call_function", target=ATEN.clone.default)
    assert len(clones) == (not is_known)
    assert writer.args[0] is (fresh if is_known else clones[0])


def halves(s: Net, writes: bool) -> Tensor:
    """Numbers of which one half is written in place, or anew, after a view of all of them was taken."""
    numbers = s.factor * 1.0
    view = numbers[:]
    numbers.mul_(2.0) if writes else numbers.mul(2.0)
    return view.reshape(1, -1, 1, 1)


@pytest.mark.parametrize("as_graph", [False, True])
@pytest.mark.parametrize("writes", [False, True])
def test_constants_of_which_a_view_is_written_are_none(writes: bool, as_graph: bool) -> None:
    def product(s: Net, x: Tensor) -> Tensor:
        y: Tensor = s.conv(s.bn(x.sigmoid()) * halves(s, writes))
        return y

    def bounds(s: Net, x: Tensor) -> Tensor:
        y: Tensor = s.bn(s.conv(x).clamp(-halves(s, writes).abs(), halves(s, writes).abs()))
        return y

    for code, channels in ((product, 3), (bounds, 4)):
        net = Net(code, conv=conv(), bn=nn.BatchNorm2d(channels))
        net.factor = nn.Parameter(torch.linspace(0.5, 1.5, channels))
        kind = Folded if not writes and (as_graph or code is product) else Kept  # a module has no place for bounds
        result = fold(alive(net), as_graph=as_graph)
        assert names(result.decisions, kind) == ["bn"]
