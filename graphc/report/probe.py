"""One cold start, in a process of its own: `python -m graphc.report.probe FILE.py:NAME graphc|inductor` prints JSON."""

from __future__ import annotations

import json
import sys
import time

import torch

_TORCH_READY = time.perf_counter()


def main(spec: str, contender: str) -> None:
    from graphc.report.contenders import make
    from graphc.report.targets import load_targets

    (target,) = load_targets(spec)
    args, kwargs = target.make_inputs()
    with torch.no_grad():
        call = make(contender, target.fn)
        start = time.perf_counter()
        call(*args, **kwargs)
        first = time.perf_counter()
        call(*args, **kwargs)
        second = time.perf_counter()
    result = {"first_call": first - start, "after_torch": first - _TORCH_READY, "later_call": second - first}
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
