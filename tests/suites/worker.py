"""What a process of `python -m tests.suites` does: it runs the command of one suite and writes its tallies as JSON."""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.suites import tables, verdicts


def work(out: Path, module: str, args: Sequence[str], cores: Sequence[int]) -> None:
    """Run a part of a suite.

    Args:
        out: a JSON file to write. Beside it come what the process says, and what each sample is called before it is
            judged, so that the last one may be what it died at.
        module: with the command of the suite.
        args: of the command.
        cores: to run on; on one alone, programs are compiled as one file.
    """
    os.sched_setaffinity(0, cores)
    gc.freeze()  # the collector would look through all of torch again and again
    with open(_text(out), "w") as text:
        os.dup2(text.fileno(), sys.stdout.fileno())
        os.dup2(text.fileno(), sys.stderr.fileno())
    with open(_log(out), "w", buffering=1) as log:
        faulthandler.enable(log)
        verdicts.log = log
        try:
            importlib.import_module(module).main(list(args), standalone_mode=False)
        except SystemExit:
            tables.save(verdicts.reported, out)


def said(out: Path) -> str:
    """All that a process has written to stdout and stderr."""
    return _text(out).read_text() if _text(out).exists() else ""


def last_sample(out: Path) -> str:
    """The name of the sample that a process judged last; empty where it came to none."""
    lines = _log(out).read_text().splitlines() if _log(out).exists() else []
    return next((line.removeprefix("sample ") for line in reversed(lines) if line.startswith("sample ")), "")


def _text(out: Path) -> Path:
    return out.with_suffix(".txt")


def _log(out: Path) -> Path:
    return out.with_suffix(".log")
