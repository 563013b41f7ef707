"""What only one vendor's devices have is known to few files; everything else works with any device."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("graphc/ir", "graphc/loopir", "graphc/ops", "graphc/program", "passes", "codegen", "runtime")
KNOWING = {
    "graphc/ops/attention.py": "torch's calls for attention, by their names",
    "passes/chips.py": "one table of chips",
    "codegen/triton/tiles.py": "tiles by chip",
    "codegen/triton/program.py": "an example of a chip's name",
    "runtime/device_cuda.py": "the devices themselves",
    "runtime/triton_cross.py": "compiles for chips that are not there",
    "runtime/triton_libdevice.py": "one vendor's library of device functions",
}
HARMLESS = re.compile(r'"cudagraph_unsafe"|^Source: .*$', re.MULTILINE)
"""A name that torch gives to calls on all devices; titles of papers."""


def files() -> list[Path]:
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [*found, *(ROOT / "graphc" / f"{name}.py" for name in ("api", "driver", "paths", "differentiable"))]


def test_shared_parts_name_no_vendor() -> None:
    naming = {
        str(path.relative_to(ROOT))
        for path in files()
        if re.search("cuda|nvidia|cudnn|cublas", HARMLESS.sub("", path.read_text()), re.IGNORECASE)
    }
    assert naming == set(KNOWING)
