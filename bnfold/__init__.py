"""bnfold: recalibrates and folds inference BatchNorm, and proves the result equivalent."""

__version__ = "0.1.0"
