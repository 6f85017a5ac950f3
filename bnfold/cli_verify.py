"""The command `verify`: two models on the same inputs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.cli_checks import Asked, asking
from bnfold.cli_data import data_options
from bnfold.cli_options import DONE, EPILOG, NOT_DONE, checking, opening, showing
from bnfold.cli_report import Reports, printed, report_option
from bnfold.cli_reproduce import check_place, reproduce_option, write_reproduction
from bnfold.cli_torch import Opening, check_comparison

if TYPE_CHECKING:  # loading these takes a second, which --help need not wait for
    from bnfold.data_sources import DataRequest

VERIFY_DATA = {"data": ("--verify-data", "Your own data, to compare on as well")}


@click.command("verify", short_help="Compare two models, tensor by tensor.", epilog=EPILOG)
@click.argument("before")
@click.argument("after")
@opening
@checking
@asking
@data_options(VERIFY_DATA, seed=False)
@reproduce_option
@report_option
@showing
def verify_command(  # noqa: PLR0913
    *,
    before: str,
    after: str,
    factory: str | None,
    trust_pickle: bool,
    providers: tuple[str, ...],
    shapes: dict[str, tuple[int, ...]],
    seed: int,
    asked: Asked,
    data: DataRequest | None,
    reproduce: str | None,
    reports: Reports,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run BEFORE and AFTER on the same inputs, unoptimised, and compare every tensor of equal name.

    Of a PyTorch file, which comes first, the outputs are compared, in order, with those of another one or of an ONNX
    model.
    """
    from bnfold import api, reproduction, terminal, wording  # noqa: PLC0415  # loading these takes a second
    from bnfold.errors import MachineError  # noqa: PLC0415
    from bnfold.report.json_report import verification_json  # noqa: PLC0415
    from bnfold.torch_file_verify import verify_files  # noqa: PLC0415

    reports.check([before, after])
    check_place(reproduce, reports.paths)
    given = Opening(factory, trust_pickle, shapes)
    with_torch = given.is_any_torch(before, after)
    if with_torch:
        check_comparison(click.get_current_context(), after)
    console = terminal.open_console(quiet)
    with terminal.progress(console, f"comparing {before} and {after}") as tell:
        if with_torch:
            found = verify_files(
                before,
                after,
                shapes,
                model=factory,
                trust_pickle=trust_pickle,
                providers=providers,
                seed=seed,
                deployed=asked["deployed"],
                progress=tell,
            )
        else:
            found = api.verify(
                before, after, providers=providers, shapes=shapes, seed=seed, data=data, progress=tell, **asked
            )
    if as_json:
        click.echo(verification_json(Path(before).name, Path(after).name, found), nl=False)
    else:
        terminal.show_verification(console, found)
    reports.of_verification(found, before, after)
    if reproduce is not None and found.failed:
        cut = partial(reproduction.reproduce, before, after, found, reproduce)
        write_reproduction(reproduce, partial(cut, seed=seed, data=data, inputs=asked["inputs"]))
    if not found.passed and not found.failed:
        raise MachineError(f"nothing is proven: {found.doubt}", where=printed(after))
    if not as_json:
        click.echo(f"{printed(after)}: {wording.compared(printed(before), found)}")
    return NOT_DONE if found.failed else DONE
