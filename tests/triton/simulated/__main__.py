"""Runs a command with simulated GPUs: see the package."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.triton.simulated.build import build, environment


def main() -> int:
    if len(sys.argv) < 2:
        print("usage: python -m tests.triton.simulated COMMAND...", file=sys.stderr)
        return 2
    folder = Path(tempfile.gettempdir()) / f"graphc-simulated-{os.getuid()}"
    os.execvpe(sys.argv[1], sys.argv[1:], os.environ | environment(build(folder)))


if __name__ == "__main__":
    sys.exit(main())
