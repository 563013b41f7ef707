"""A child process of `python -m tests.suites`: runs the command of one suite and writes its tallies as JSON."""

from __future__ import annotations

import faulthandler
import importlib
import sys
from pathlib import Path

from tests.suites import tables, verdicts


def main() -> None:
    """`worker OUT MODULE ARGS...`; what each sample is called goes to OUT.log, of which the last may have crashed."""
    out, module, *args = sys.argv[1:]
    with open(f"{out}.log", "w", buffering=1) as log:
        faulthandler.enable(log)
        verdicts.log = log
        try:
            importlib.import_module(module).main(args, standalone_mode=False)
        except SystemExit:
            tables.save(verdicts.reported, Path(out))


if __name__ == "__main__":
    main()
