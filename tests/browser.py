"""A page opened in headless Chromium: what is in it after its script ran, and what the console said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

#: Set to 1 where the browser must be there (CI), so that its absence is a failure and not a skip.
REQUIRED = "BNFOLD_REQUIRE_BROWSER"

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=5000 --dump-dom"
).split()


@dataclass(frozen=True)
class Opened:
    """A page after its script ran.

    Attributes:
        dom: Its HTML.
        console: What was written to the console, errors of scripts among it.
    """

    dom: str
    console: tuple[str, ...]


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        assert os.environ.get(REQUIRED) != "1", "Chromium is not installed, and this run must have it"
        pytest.skip("Chromium is not installed, so pages are not opened (Debian: apt-get install chromium)")
    return found


def open_page(html: str, folder: Path, *, then: str = "") -> Opened:
    """Open `html`; `then` is a script that acts on it as its reader would."""
    page = folder / "page.html"
    page.write_text(html.replace("</body>", f"<script>{then}</script></body>") if then else html, encoding="utf-8")
    command = [browser(), *_FLAGS, f"--user-data-dir={folder / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, encoding="utf-8")
    return Opened(done.stdout, tuple(re.findall(r":CONSOLE[^\]]*\] (.*)", done.stderr)))
