"""Fold a model from Python, look at the decisions, and save the result.

python examples/fold_from_python.py models/digits-darknet.onnx fused.onnx
"""

from __future__ import annotations

import sys

import bnfold


def main(source: str, target: str) -> None:
    """Fold `source`, say what became of each BatchNorm, and write `target`."""
    try:
        result = bnfold.fold(source)
    except bnfold.BnfoldError as error:
        sys.exit(str(error))

    for decision in result.decisions:
        match decision:
            case bnfold.Folded(subject=subject, into=into):
                print(f"{subject.name}: folded into {', '.join(into)}")
            case bnfold.Reduced(subject=subject, to=to, refusals=refusals):
                print(f"{subject.name}: only an {to} is left, because {'; '.join(map(str, refusals))}")
            case bnfold.Kept(subject=subject, refusals=refusals):
                print(f"{subject.name}: kept, because {'; '.join(map(str, refusals))}")

    verification = result.report.verification
    assert verification is not None
    print(f"verified on {', '.join(verification.providers)}: {len(verification.local)} folds proven one by one")
    bnfold.save(result.model, target)


if __name__ == "__main__":
    main(*sys.argv[1:3])
