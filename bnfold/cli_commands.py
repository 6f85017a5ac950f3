"""The group of all commands."""

from __future__ import annotations

import click

from bnfold import __version__
from bnfold.cli_bench import bench_command
from bnfold.cli_fold import fold_command
from bnfold.cli_inspect import inspect_command
from bnfold.cli_options import EPILOG
from bnfold.cli_recalibrate import recalibrate_command
from bnfold.cli_unfold import unfold_command
from bnfold.cli_verify import verify_command


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
    options_metavar="",
    subcommand_metavar="[fold] MODEL -o OUTPUT | inspect MODEL | verify BEFORE AFTER | bench BEFORE AFTER | "
    "unfold MODEL -o OUTPUT | recalibrate MODEL --data DATA -o OUTPUT",
)
@click.version_option(__version__, prog_name="bnfold", message="%(prog)s %(version)s")
def commands() -> None:
    """Fold BatchNorm in ONNX and PyTorch models, and prove the result equivalent.

    `bnfold MODEL -o OUTPUT` folds, verifies and writes; it is the same as `bnfold fold MODEL -o OUTPUT`, whose options
    `bnfold fold --help` lists. A model file that is called like a command is written ./inspect.
    """


for _command in (fold_command, inspect_command, verify_command, bench_command, unfold_command, recalibrate_command):
    commands.add_command(_command)
