"""PyTorch files: what each kind gives, what it needs besides, and that nothing in them runs that is not trusted."""

from __future__ import annotations

import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch_file_models as models
from torch import nn
from torch_archives import Touch

import bnfold
from bnfold.errors import BnfoldError, MissingPackageError, ModelError, UsageError
from bnfold.frontends.torch_kinds import FileKind, kind_of
from bnfold.frontends.torch_made_inputs import made_inputs
from bnfold.frontends.torch_save import save_state

NET = "torch_file_models:net"


def script(folder: Path, module: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(module).save(folder / "script.pt")
    return folder / "script.pt"


def saved(folder: Path, value: object, name: str = "model.pt", **options: Any) -> Path:
    torch.save(value, folder / name, **options)
    return folder / name


def safe(folder: Path, module: nn.Module) -> Path:
    safetensors.torch.save_file(module.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


STATES: dict[str, Callable[[Path], Path]] = {
    "zip": lambda folder: saved(folder, models.live().state_dict()),
    "older format": lambda folder: saved(folder, models.live().state_dict(), _use_new_zipfile_serialization=False),
    "training checkpoint": lambda folder: saved(folder, {"epoch": 3, "state_dict": models.live().state_dict()}),
    "safetensors": lambda folder: safe(folder, models.live()),
}


# Kinds


def test_content_tells_the_kind_and_not_the_suffix(tmp_path: Path) -> None:
    found = {
        FileKind.PICKLED: saved(tmp_path, models.live().state_dict(), "a.bin"),
        FileKind.TORCHSCRIPT: script(tmp_path, models.live()),
        FileKind.SAFETENSORS: safe(tmp_path, models.live()),
        FileKind.ONNX: Path(__file__).parents[1] / "models" / "digits-darknet.onnx",
    }
    assert {kind: kind_of(path) for kind, path in found.items()} == {kind: kind for kind in found}
    (tmp_path / "b.pt").write_bytes(found[FileKind.ONNX].read_bytes())
    assert kind_of(tmp_path / "b.pt") is FileKind.ONNX


def other_zip(folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr("a/readme.txt", "text")
    return (folder / "x.zip").read_bytes()


DAMAGED: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda _: b"", "the file is empty"),
    "text": (lambda _: b"no model at all", "no file that belongs into .pt"),
    "another zip": (other_zip, "none that PyTorch writes"),
    "cut zip": (lambda folder: STATES["zip"](folder).read_bytes()[:-200], "damaged or cut off"),
    "cut older format": (lambda folder: STATES["older format"](folder).read_bytes()[:-200], "cannot read"),
    "cut pickle": (lambda folder: STATES["older format"](folder).read_bytes()[:150], "the pickle is damaged"),
    "cut safetensors header": (lambda folder: STATES["safetensors"](folder).read_bytes()[:100], "cut off"),
    "cut safetensors": (lambda folder: STATES["safetensors"](folder).read_bytes()[:-8], "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    make, expected = DAMAGED[name]
    (tmp_path / "in.pt").write_bytes(make(tmp_path))
    with pytest.raises(ModelError, match=expected):
        bnfold.load_module(tmp_path / "in.pt", model=NET)


def test_an_archive_of_an_old_torch_says_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    with pytest.raises(ModelError, match=r"torch 2\.7 or older"):
        bnfold.load_module(tmp_path / "old.pt2")


def test_a_missing_file_a_folder_and_an_onnx_model_are_mistakes_of_the_call(tmp_path: Path) -> None:
    onnx = Path(__file__).parents[1] / "models" / "digits-darknet.onnx"
    for path, expected in ((tmp_path / "none.pt", "no such file"), (tmp_path, "folder"), (onnx, "no PyTorch file")):
        with pytest.raises(UsageError, match=expected):
            bnfold.load_module(path)


def test_the_onnx_reader_names_the_kind_of_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"this is a file of torch\.save, not an ONNX model"):
        bnfold.load(saved(tmp_path, models.live().state_dict()))


def test_without_torch_the_sentence_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, models.live().state_dict())
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"bnfold\[torch\]"):
        bnfold.load_module(path, model=NET)


def test_without_safetensors_the_sentence_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = safe(tmp_path, models.live())
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingPackageError, match=r"bnfold\[safetensors\]"):
        bnfold.load_module(path, model=NET)


# State dicts


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("model", [NET, models.net])
def test_a_state_dict_gives_the_module_that_was_saved(tmp_path: Path, kind: str, model: Any) -> None:
    loaded = bnfold.load_module(STATES[kind](tmp_path), model=model)
    assert not loaded.training
    assert torch.equal(loaded(models.sample()), models.live()(models.sample()))


def test_a_state_dict_needs_a_factory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no code; give --model package\.module:factory"):
        bnfold.load_module(STATES["zip"](tmp_path))


def wider() -> nn.Module:
    module = models.net()
    module.conv = nn.Conv2d(3, 9, 3, bias=False)
    return module


BAD_FACTORIES: dict[str, tuple[Any, type[BnfoldError], str]] = {
    "no colon": ("torch_file_models", UsageError, "names no function"),
    "no module": ("torch_no_such:net", UsageError, "there is no module torch_no_such"),
    "no name": ("torch_file_models:nix", UsageError, "there is no nix"),
    "no result": ("torch_file_models:no_module", UsageError, "gives no torch.nn.Module but a int"),
    "raises": ("torch_file_models:broken", ModelError, "it raised ValueError: no such weights"),
    "another module": ("torch_file_models:other", ModelError, "lacks 0.weight, 0.bias, and the module has no conv"),
    "other shapes": (wider, ModelError, "size mismatch for conv.weight"),
}


@pytest.mark.parametrize("name", BAD_FACTORIES)
def test_a_factory_that_does_not_fit_is_one_sentence(tmp_path: Path, name: str) -> None:
    factory, error, expected = BAD_FACTORIES[name]
    with pytest.raises(error, match=expected):
        bnfold.load_module(STATES["zip"](tmp_path), model=factory)


def test_a_module_will_do_as_a_factory_by_name(tmp_path: Path) -> None:
    assert bnfold.load_module(STATES["zip"](tmp_path), model="torch_file_models:built") is models.built


def test_a_wrapped_state_dict_says_what_to_save(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in models.live().state_dict().items()}
    with pytest.raises(ModelError, match=r"every name begins with 'module\.'"):
        bnfold.load_module(saved(tmp_path, state), model=NET)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_a_tied_weight_that_safetensors_left_out_is_there(tmp_path: Path) -> None:
    tied = Tied()
    safetensors.torch.save_model(tied, str(tmp_path / "tied.safetensors"))
    loaded = bnfold.load_module(tmp_path / "tied.safetensors", model=Tied)
    assert torch.equal(loaded.second.weight, tied.second.weight)


# Pickles


def plain(folder: Path, value: object) -> Path:
    (folder / "model.pkl").write_bytes(pickle.dumps(value))
    return folder / "model.pkl"


PICKLES: dict[str, Callable[[Path, object], Path]] = {
    "torch.save": saved,
    "older format": lambda folder, value: saved(folder, value, _use_new_zipfile_serialization=False),
    "beside tensors": lambda folder, value: saved(folder, {"w": torch.ones(2), "x": value}),
    "plain": plain,
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_hostile_pickle_does_not_run_without_trust(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "touched"
    path = PICKLES[kind](tmp_path, Touch(target))
    with pytest.raises(UsageError, match=r"runs code of whoever made it.*--trust-pickle"):
        bnfold.load_module(path, model=NET)
    assert not target.exists()


@pytest.mark.parametrize("kind", PICKLES)
def test_the_same_pickle_does_run_with_trust(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "touched"
    with pytest.raises(BnfoldError):
        bnfold.load_module(PICKLES[kind](tmp_path, Touch(target)), trust_pickle=True)
    assert target.exists()


def test_load_folded_runs_no_pickle_either(tmp_path: Path) -> None:
    path = saved(tmp_path, Touch(tmp_path / "touched"))
    with pytest.raises(UsageError, match="runs code"):
        bnfold.load_folded(models.net(), path)
    assert not (tmp_path / "touched").exists()


def test_a_pickled_module_needs_trust_and_comes_in_eval_mode(tmp_path: Path) -> None:
    path = saved(tmp_path, models.live().train())
    with pytest.raises(UsageError, match=r"this one asks for torch_file_models\.Net"):
        bnfold.load_module(path)
    loaded = bnfold.load_module(path, trust_pickle=True)
    assert torch.equal(loaded(models.sample()), models.live()(models.sample()))


def test_of_a_checkpoint_with_modules_the_averaged_one_is_taken_in_float32(tmp_path: Path) -> None:
    averaged = models.live().half()
    path = saved(tmp_path, {"model": models.Net(), "ema": averaged})
    loaded = bnfold.load_module(path, trust_pickle=True)
    assert torch.equal(loaded(models.sample()), averaged.float()(models.sample()))
    path = saved(tmp_path, {"model": averaged, "ema": None})
    assert next(bnfold.load_module(path, trust_pickle=True).parameters()).dtype == torch.float32


def test_a_class_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, models.live())
    monkeypatch.setitem(sys.modules, "torch_file_models", None)
    with pytest.raises(ModelError, match="needs the module torch_file_models, which is not there"):
        bnfold.load_module(path, trust_pickle=True)


def test_a_file_without_a_model_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model but a dict with epoch, loss"):
        bnfold.load_module(saved(tmp_path, {"epoch": 1, "loss": 0.5}))
    with pytest.raises(ModelError, match="no model but a list"):
        bnfold.load_module(saved(tmp_path, [torch.ones(1)]))


def test_a_module_takes_no_factory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this is a module, which needs no --model"):
        bnfold.load_module(saved(tmp_path, models.live()), model=NET, trust_pickle=True)


# TorchScript


class Writer(nn.Module):
    """Writes a file where TorchScript is run."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.target)
        return x


class Mapper(Writer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ops.aten.from_file(self.target, True, 4)


def test_torchscript_computes_what_was_saved(tmp_path: Path) -> None:
    loaded = bnfold.load_module(script(tmp_path, models.live()))
    assert torch.allclose(loaded(models.sample()), models.live()(models.sample()))


@pytest.mark.parametrize("kind", [Writer, Mapper])
def test_torchscript_that_writes_files_is_not_loaded(tmp_path: Path, kind: type[Writer]) -> None:
    path = script(tmp_path, kind(str(tmp_path / "touched")))
    with pytest.raises(UsageError, match="may touch your files"):
        bnfold.load_module(path)
    bnfold.load_module(path, trust_pickle=True)(torch.ones(4))
    assert (tmp_path / "touched").exists()


# State dicts of folded modules


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_folded_state_dict_comes_back_into_a_new_module(tmp_path: Path, suffix: str) -> None:
    module, x = models.live(torch.float64), models.sample(torch.float64)
    folded = bnfold.fold(module, example_inputs=(x,)).module
    save_state(folded, tmp_path / f"fused{suffix}", {})
    loaded = bnfold.load_folded(models.net().double(), tmp_path / f"fused{suffix}")
    assert not loaded.training
    assert isinstance(loaded.bn, nn.Identity)
    assert torch.equal(loaded(x), folded(x))
    assert (loaded(x) - module(x)).abs().max() <= 1e-12 * module(x).abs().max()


def test_a_folded_state_dict_is_named_where_it_does_not_fit(tmp_path: Path) -> None:
    folded = bnfold.fold(models.live(), example_inputs=(models.sample(),)).module
    with pytest.raises(ModelError, match=r"bnfold\.load_folded reads"):
        bnfold.load_module(saved(tmp_path, folded.state_dict()), model=NET)


def test_a_folded_state_dict_of_another_module_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, bnfold.fold(models.live(), example_inputs=(models.sample(),)).module.state_dict())
    with pytest.raises(ModelError, match="does not fit the module"):
        bnfold.load_folded(models.pair(), path)


def test_an_unfolded_state_dict_is_loaded_as_it_is(tmp_path: Path) -> None:
    loaded = bnfold.load_folded(models.net(), STATES["zip"](tmp_path))
    assert torch.equal(loaded(models.sample()), models.live()(models.sample()))


def test_torchscript_is_no_folded_state_dict(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no state dict"):
        bnfold.load_folded(models.net(), script(tmp_path, models.live()))


# Example inputs


def test_inputs_have_the_given_shapes_and_the_dtype_of_the_parameters(tmp_path: Path) -> None:
    image, side = made_inputs(models.pair().half(), {"side": (2, 5), "image": (2, 3, 6, 6)}, "x").args
    assert (image.shape, side.shape) == ((2, 3, 6, 6), (2, 5))
    assert {image.dtype, side.dtype} == {torch.float16}
    assert made_inputs(nn.ReLU(), {"input": (2,)}, "x").args[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({}, "input 'image' is not known; write it like --shape image="),
        ({"image": (2, 3, 6, 6)}, "input 'side' is not known"),
        ({"image": (2, 3, 6, 6), "sid": (2, 5)}, "no input 'sid'; its inputs are image, side, scale"),
    ],
)
def test_a_missing_or_unknown_shape_names_the_inputs(shapes: dict[str, tuple[int, ...]], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        made_inputs(models.pair(), shapes, "x")
