"""`graphc inspect`: the stages of one function as text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from graphc.api import CompiledFunction, CompiledModule, compile
from graphc.report.targets import Target, load_target


def _load(spec: str, backend: str) -> tuple[Target, Any]:
    target = load_target(spec)
    return target, compile(target.fn, backend=backend)


def _text(compiled: CompiledFunction | CompiledModule, target: Target, stage: str) -> str:
    args, kwargs = target.make_inputs()
    with torch.no_grad():
        if stage == "source":
            files = compiled.source(*args, **kwargs)
            return "\n".join(f"==> {name} <==\n{text}" for name, text in files.items())
        if stage == "explain":
            return str(compiled.explain(*args, **kwargs))
        return str(compiled.graph(*args, stage=stage, **kwargs))


def print_stage(spec: str, stage: str, backend: str) -> str:
    """The text of one stage of `FILE.py:NAME`.

    Raises:
        TargetError: no such function, or no inputs for it.
    """
    target, compiled = _load(spec, backend)
    return _text(compiled, target, stage)


def write_stages(spec: str, backend: str, folder: Path) -> Iterator[Path]:
    """Write every stage and every generated file into `folder`; gives the paths."""
    target, compiled = _load(spec, backend)
    yield from dump_stages(compiled, target.make_inputs, folder)


def dump_stages(compiled: CompiledFunction | CompiledModule, make_inputs: Any, folder: Path) -> Iterator[Path]:
    """All stages, generated files and the explanation of a compiled callable, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    args, kwargs = make_inputs()
    with torch.no_grad():
        files = {
            f"{number}_{stage}.txt": str(compiled.graph(*args, stage=stage, **kwargs))
            for number, stage in enumerate(("captured", "optimized", "scheduled"), 1)
        }
        files |= compiled.source(*args, **kwargs)
        files["explain.txt"] = str(compiled.explain(*args, **kwargs))
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)  # files of a path are in folders by program
        path.write_text(text + "\n")
        yield path
