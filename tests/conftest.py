"""Fixtures that more than one test module uses."""

from __future__ import annotations

from cli_run import run

__all__ = ["run"]
