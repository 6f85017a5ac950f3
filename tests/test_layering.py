"""The layer table: which module may import which, from bnfold and from outside, and who may print."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Group:
    """Modules that share a row of the table. A module may always import its own group."""

    layer: int
    modules: frozenset[str]
    imports: frozenset[str]
    outside: frozenset[str]


def row(layer: int, modules: str, imports: str, outside: str) -> Group:
    return Group(layer, *(frozenset(words.split()) for words in (modules, imports, outside)))


# A module name ending in ".*" stands for a package and all in it.
TABLE = {
    "values": row(0, "affine decision drafts errors flops importing rounding sizes", "", "numpy ml_dtypes"),
    "arrays": row(
        1,
        "linear embedding quantised moments drift judging slices comparison packing manifest manifest_json "
        "manifest_files stopwatch text_files",
        "values",
        "numpy",
    ),
    "graph": row(2, "window_views views graph observation levels", "values arrays", "numpy"),
    "carriers": row(3, "carriers.*", "values arrays graph", "numpy"),
    "frontends": row(
        3, "frontends.*", "values arrays graph", "numpy onnx onnx_ir onnxscript onnxsim safetensors torch ml_dtypes"
    ),
    "machine": row(
        3,
        "runtime placement ort_values providers data dataflow data_sources data_rows data_fit data_files data_images "
        "data_pixels data_callable",
        "values",
        "numpy onnx onnx_ir onnxruntime ml_dtypes PIL",
    ),
    "engine": row(
        4,
        "sources changes bench costs regions routes agreeing undoing pulling requantising limits splitting branches "
        "chaining merging folding leftovers leftover_forms footprint frontier recalibration",
        "values arrays graph carriers",
        "numpy",
    ),
    "checks": row(
        4,
        "agreement boxes deployed deploying holding rerunning examining feeds inputs interfaces metrics patterns "
        "probing quickcheck localcheck localsizes constantcheck oracle renaming selftest staging verdicts verification "
        "torchcheck torch_compared torch_running torch_deployed exportcheck",
        "values arrays graph machine",
        "numpy onnx onnx_ir torch ml_dtypes",
    ),
    "report": row(5, "report.*", "values arrays checks", "numpy"),
    "library": row(
        6,
        "__init__ api api_torch api_torch_graph batches benchmarking calibrating checking wishes fold_result history "
        "model_size models notes observing processes recalibrating recalibrating_torch reproduction selecting "
        "torch_culprit torch_dispatch torch_files torch_folds torch_outputs torch_plan torch_recalibrated torch_result "
        "torch_file_verify torch_verify unfolding verifying",
        "values arrays graph carriers frontends machine engine checks report",
        "numpy onnx onnx_ir torch",
    ),
    "program": row(
        6,
        "__main__ cli cli_bench cli_checks cli_commands cli_data cli_fold cli_inspect cli_options cli_recalibrate "
        "cli_report cli_reproduce cli_torch cli_unfold cli_verify "
        "launch size_wording terminal wording wording_deployed pages.*",
        "values arrays graph carriers frontends machine engine checks report library",
        "click jinja2 markupsafe matplotlib numpy rich torch",
    ),
}

# Imports beyond the table, each with its reason.
EXCEPTIONS = {
    # writes a plan, so it takes the plan's types
    "frontends.onnx_write": {"bench", "changes", "folding", "leftover_forms", "requantising"},
    # which calls to write out is known when all graphs are planned
    "frontends.onnx_fold": {"folding", "leftover_forms", "leftovers"},
    "frontends.onnx_manifest": {"changes", "folding"},  # notes what a plan does
    "frontends.torch_fixed": {"carriers"},  # asks the rules what would change
    "frontends.torch_write": {"folding"},  # writes a plan
    "frontends.torch_rewrite": {"bench", "changes", "folding", "leftover_forms", "sources"},  # as onnx_write
    "frontends.torch_rewrite_nodes": {"leftover_forms"},
    "constantcheck": {
        "frontends.onnx_evaluate",  # what was computed
        "frontends.onnx_float64",  # as localcheck
        "frontends.onnx_kernels_run",
        "frontends.onnx_regions",
    },
    "localcheck": {
        "folding",  # a plan
        "regions",  # and its regions
        "frontends.onnx_float64",  # the oracle is ONNX's own evaluator on a float64 rewrite
        "frontends.onnx_kernels_run",
        "frontends.onnx_magnitude",
        "frontends.onnx_regions",
    },
    "localsizes": {"folding", "regions", "frontends.onnx_scopes", "frontends.onnx_shapes"},  # regions, shapes in them
    "report.recalibration_report": {"footprint", "recalibration"},  # as verification, the result of which is a check
    "torchcheck": {"frontends.torch_arguments", "frontends.torch_capture"},  # a copy in float64
    "torch_compared": {"frontends.torch_arguments", "frontends.torch_capture"},  # a copy in float64
    "torch_running": {
        "frontends.torch_arguments",
        "frontends.torch_capture",
        "frontends.torch_decisions",
    },  # other sizes
    "verdicts": {"frontends.onnx_float64", "frontends.onnx_kernels_run"},  # as localcheck
    "deploying": {"frontends.onnx_float64", "frontends.onnx_kernels_run"},  # as localcheck
}

#: Only inside functions: the rest of bnfold works without them, and `import bnfold` must not wait for them.
ON_DEMAND = {
    *(
        "onnxruntime",
        "onnxscript",
        "onnxsim",
        "safetensors",
        "torch",
        "ml_dtypes",
        "PIL",
        "jinja2",
        "markupsafe",
        "matplotlib",
    )
}

#: The modules that talk to the user; no other one prints, exits, or knows stdout and stderr.
SPEAKERS = {
    *("__main__", "cli", "terminal"),
    *("cli_bench", "cli_fold", "cli_inspect", "cli_recalibrate", "cli_unfold", "cli_verify"),
}


@dataclass(frozen=True)
class Import:
    """`module` without the leading "bnfold." (`inside`), or the top-level package (else)."""

    module: str
    inside: bool
    line: int
    on_demand: bool


def module_name(file: Path, package: Path) -> str:
    parts = file.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def sources(package: Path) -> dict[str, ast.Module]:
    files = sorted(package.rglob("*.py"))
    return {module_name(file, package): ast.parse(file.read_text(encoding="utf-8"), str(file)) for file in files}


MODULES = sources(ROOT / "bnfold")


def group_of(module: str, table: dict[str, Group] = TABLE) -> str | None:
    package = module.split(".", maxsplit=1)[0] + ".*"
    return next((name for name, group in table.items() if {module, package} & group.modules), None)


def imports(tree: ast.Module, known: set[str]) -> Iterator[Import]:
    for node, lazy in walk(tree, lazy=False):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import absolutely"
            yield from (
                found
                for alias in node.names
                for found in named(f"{node.module}.{alias.name}", known, node.lineno, lazy)
            )
        elif isinstance(node, ast.Import):
            yield from (found for alias in node.names for found in named(alias.name, known, node.lineno, lazy))


def walk(node: ast.AST, *, lazy: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it runs later than the import (or never: `if TYPE_CHECKING`)."""
    for child in ast.iter_child_nodes(node):
        later = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        later = later or (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING")
        yield child, later
        yield from walk(child, lazy=later)


def named(name: str, known: set[str], line: int, lazy: bool) -> Iterator[Import]:
    top, _, rest = name.partition(".")
    if top != "bnfold":
        yield Import(top, False, line, lazy)
        return
    while rest and rest not in known:
        rest = rest.rpartition(".")[0]
    yield Import(rest or "__init__", True, line, lazy)


def complaints(modules: dict[str, ast.Module]) -> list[str]:
    """Every import that the table does not allow."""
    found = []
    for module, tree in modules.items():
        own = group_of(module)
        if own is None:
            continue
        group = TABLE[own]
        for entry in imports(tree, set(modules)):
            if entry.inside:
                other = group_of(entry.module)
                allowed = other == own or other in group.imports or entry.module in EXCEPTIONS.get(module, set())
            else:
                allowed = entry.module in group.outside or entry.module in sys.stdlib_module_names
            if not allowed:
                found.append(f"{module}, line {entry.line}: {own} may not import {entry.module}")
            if entry.module in ON_DEMAND and not entry.on_demand:
                found.append(f"{module}, line {entry.line}: import {entry.module} inside the function that needs it")
    return found


def speeches(module: str, tree: ast.Module) -> list[str]:
    """Uses of print, sys.stdout, sys.stderr, sys.exit, exit and quit."""
    spoken = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print" | "exit" | "quit" as name)):
                spoken.append(f"{module}, line {node.lineno}: {name}")
            case ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr" | "exit" as name):
                spoken.append(f"{module}, line {node.lineno}: sys.{name}")
    return spoken


def test_every_module_has_a_layer() -> None:
    lost = [module for module in MODULES if group_of(module) is None]
    assert not lost, f"{lost}: add them to the row of TABLE whose imports they need, or do not need them"


def test_the_table_names_no_module_that_is_gone() -> None:
    named_ones = {name.removesuffix(".*") for group in TABLE.values() for name in group.modules} | set(EXCEPTIONS)
    assert named_ones <= set(MODULES)


def test_a_row_imports_lower_layers_only_or_the_other_half_of_its_own() -> None:
    for name, group in TABLE.items():
        upward = [other for other in group.imports if TABLE[other].layer > group.layer]
        assert not upward, name
        sideways = {other for other in group.imports if TABLE[other].layer == group.layer}
        assert sideways <= ({"library"} if name == "program" else set()), name


def test_every_import_is_allowed_by_the_table() -> None:
    assert complaints(MODULES) == []


def test_every_exception_is_still_needed() -> None:
    for module, allowed in EXCEPTIONS.items():
        used = {entry.module for entry in imports(MODULES[module], set(MODULES)) if entry.inside}
        assert allowed <= used, f"{module} no longer imports {sorted(allowed - used)}"


def test_only_the_command_line_speaks() -> None:
    assert [speech for name, tree in MODULES.items() if name not in SPEAKERS for speech in speeches(name, tree)] == []


@pytest.mark.parametrize(
    ("module", "text"),
    {
        "upward": ("affine", "from bnfold.graph import Value"),
        "upward, in a function": ("affine", "def f():\n    import bnfold.graph"),
        "upward, for types": ("linear", "if TYPE_CHECKING:\n    from bnfold.views import View"),
        "upward, by name": ("carriers.join", "from bnfold import folding"),
        "the engine and a front end": ("folding", "from bnfold.frontends.onnx_graph import OnnxGraph"),
        "a front end and the runtime": ("frontends.onnx_graph", "from bnfold.runtime import open_session"),
        "a framework in the core": ("folding", "def f():\n    import onnx"),
        "the terminal in the library": ("api", "import click"),
        "a framework too early": ("runtime", "import onnxruntime"),
        "the library in the report": ("report.model", "import bnfold"),
    }.values(),
)
def test_a_forbidden_import_is_found(module: str, text: str) -> None:
    assert len(complaints({**MODULES, module: ast.parse(text)})) == 1


@pytest.mark.parametrize("text", ["print(1)", "import sys\nsys.exit(1)", "import sys\nsys.stderr.write('')"])
def test_a_speaker_is_found(text: str) -> None:
    assert len(speeches("affine", ast.parse(text))) == 1


def test_a_module_without_a_layer_is_found() -> None:
    assert group_of("utils") is None
