"""Sentences about what the runtime's own settings do to both models: its optimiser, and TF32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.deployed import LEVEL

if TYPE_CHECKING:
    from bnfold.deployed import Deployed, LevelErrors, Moved, Tf32
    from bnfold.quickcheck import QuickCheck
    from bnfold.verification import Verification


def deployed_line(deployed: Deployed) -> str:
    """What the optimiser does, and who is to blame where that is wrong."""
    if deployed.trouble:
        return f"not compared at {LEVEL}: {deployed.trouble}"
    if deployed.failed:
        return f"{deployed.failure} ({_wrong(deployed.folded)})"
    return f"at {LEVEL} {_effect(deployed)}"


def _effect(deployed: Deployed) -> str:
    original, folded = deployed.original, deployed.folded
    match deployed.blame:
        case "neither" if original.worst is None and folded.worst is None:
            return "no output could be compared"
        case "neither" if deployed.alone:
            return f"the optimiser moves the model by {_far(folded)}"
        case "neither":
            return f"the optimiser moves the original by {_far(original)}, the folded model by {_far(folded)}"
        case "original":
            gets = (
                f"the runtime's own optimiser gets the original wrong ({_wrong(original)}), and the folded model right"
            )
            return f"{gets} (moved by {_far(folded)})"
        case "folded":
            return f"the folded model is off ({_wrong(folded)}), where the original proves nothing"
        case _:
            gets = "the runtime's own optimiser gets both models wrong"
            both = f"the original: {_wrong(original)}; the folded model: {_wrong(folded)}"
            return f"{gets} ({both}): run them with it off, ORT_DISABLE_ALL"


def warned(verification: Verification) -> str:
    """What the one line about equivalent models must not hide, with what comes before it; empty if nothing."""
    named = {"original": "the original", "folded": "the folded model", "both": "both models"}
    blamed = [check.deployed.blame for check in verification.quick if check.deployed is not None]
    wrong = next((blame for blame in blamed if blame != "neither"), None)
    return "" if wrong is None else f"; as deployed ({LEVEL}) the runtime's own optimiser gets {named[wrong]} wrong"


def is_alarming(deployed: Deployed) -> bool:
    """Whether one of the models is wrong as deployed."""
    return deployed.blame != "neither"


def errors_line(errors: LevelErrors) -> str:
    """Both models against float64, at both levels."""
    shown = [_figure(errors.original_deployed), _figure(errors.folded_deployed)]
    return (
        f"{errors.name} is off by {errors.original:.2g} of its scale before, by {errors.folded:.2g} after; as deployed "
        f"by {shown[0]} before, by {shown[1]} after"
    )


def tf32_line(tf32: Tf32) -> str:
    """What TF32 does to both models."""
    for name, moved in (("original", tf32.original), ("folded model", tf32.folded)):
        if moved.trouble:
            return f"the {name} cannot be run with TF32: {moved.trouble}"
    return (
        f"TF32, which CUDA computes in by default, moves the original by {_far(tf32.original)}, the folded model by "
        f"{_far(tf32.folded)}; everything else here is without it"
    )


def setting_lines(check: QuickCheck) -> list[tuple[str, str]]:
    """Label and line for all that settings of the runtime do; labels of what is wrong are "optimiser"."""
    lines = []
    if (deployed := check.deployed) is not None:
        lines.append(("optimiser" if is_alarming(deployed) else "deployed", deployed_line(deployed)))
        lines += [("float64", errors_line(errors)) for errors in deployed.errors[:1]]
        lines += [("note", note) for note in deployed.notes]
    if check.tf32 is not None:
        lines.append(("TF32", tf32_line(check.tf32)))
    return lines


def _far(moved: Moved) -> str:
    worst = moved.worst
    if worst is None:
        return "nothing that could be compared"
    if worst.note == "in steps":
        return f"{worst.error:.0f} step{'' if worst.error == 1 else 's'} of its codes"
    return f"{worst.error:.2g} of its scale"


def _wrong(moved: Moved) -> str:
    """Where, and by how much."""
    worst = moved.worst
    if moved.trouble or worst is None:
        return moved.trouble or "not compared"
    return f"{worst.name} is off by {_far(moved)}"


def _figure(error: float | None) -> str:
    return "an unknown amount" if error is None else f"{error:.2g}"
