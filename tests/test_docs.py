"""The documents say what is true: their Python blocks and shell commands run, and the map names every file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/guide.md")
MAPPED = ("graphc", "frontend", "passes", "codegen", "runtime", "benchmarks", "examples")


def _blocks(page: str, language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S))


def _environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "GRAPHC_CACHE_DIR": str(tmp_path / "cache")}


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: str, tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text(_blocks(page, "python"))
    done = subprocess.run(
        [sys.executable, str(script)],
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_shell_commands_run(tmp_path: Path) -> None:
    commands = [line for line in _blocks("docs/guide.md", "sh").splitlines() if line.strip()]
    assert commands
    for command in commands:
        program, *arguments = command.split()
        assert program in ("graphc", "python")
        arguments = [str(ROOT / a) if a.startswith(("benchmarks/", "examples/")) else a for a in arguments]
        done = subprocess.run(
            [sys.executable, *(["-m", "graphc.cli"] if program == "graphc" else []), *arguments],
            env=_environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip()


def test_architecture_maps_every_file() -> None:
    """Each section of the map is named after a folder, and its rows are that folder's files, all of them."""
    text = (ROOT / "docs/architecture.md").read_text()
    sections = re.findall(r"^## ([a-z/]+)(?::[^\n]*)?$(.*?)(?=^## |\Z)", text, re.M | re.S)
    folders = {folder: set(re.findall(r"^\| `([^`]+\.py)` \|", rows, re.M)) for folder, rows in sections}
    folders.pop("tests")
    for folder, named in folders.items():
        files = {path.name for path in (ROOT / folder).glob("*.py")}
        assert named <= files, f"{folder} has no {sorted(named - files)}"
        assert files - named <= {"__init__.py"}, (
            f"docs/architecture.md does not mention {sorted(files - named)} of {folder}"
        )
    paths = [path for top in MAPPED for path in (ROOT / top).rglob("*.py")]
    with_code = {str(path.parent.resolve().relative_to(ROOT)) for path in paths}
    assert with_code <= set(folders)


def test_every_setting_is_in_the_guide() -> None:
    import dataclasses

    from graphc.settings import Settings

    text = (ROOT / "docs/guide.md").read_text()
    assert all(field.metadata["env"] in text for field in dataclasses.fields(Settings))
