"""The disk cache: content-addressed, private, whole or absent, bounded, and never trusted blindly."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from graphc.errors import CompilerError, FallbackWarning, GraphcWarning
from graphc.program.record import Program
from graphc.runtime import cache as cache_module
from graphc.runtime.cache import DiskCache, program_key
from graphc.runtime.load import LIBRARY, RECORD, build_program, find_program
from graphc.settings import override
from tests.runtime.plans import PlanBuilder, dtype_of

KEY = "k" * 64
FILES = {"a.bin": b"\x00\x01", "b.txt": b"text"}


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", 1 << 20)


def copier() -> Program:
    builder = PlanBuilder()
    x, y = builder.input(torch.empty(4)), builder.output(dtype_of(torch.float32), (4,))
    builder.kernel(
        "copy", "static void copy(const float *x, float *y) { for (int i = 0; i < 4; i++) y[i] = x[i]; }\n", x, y
    )
    return builder.program()


def test_put_and_get(cache: DiskCache) -> None:
    assert cache.get(KEY) is None
    folder = cache.put(KEY, FILES)
    assert cache.get(KEY) == folder
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cache.put(KEY, {"a.bin": b"other"}) == folder  # the first one stays
    assert (folder / "a.bin").read_bytes() == FILES["a.bin"]
    cache.clear()
    assert cache.get(KEY) is None and cache.entries() == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "a.bin").write_bytes(b"\x00\x02"), "a.bin does not have its recorded hash"),
        (lambda folder: (folder / "a.bin").write_bytes(b""), "a.bin does not have"),
        (lambda folder: (folder / "a.bin").unlink(), "a file is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "a file is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is not readable"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is not readable"),
        (lambda folder: folder.chmod(0o777), "can be written by other users"),
    ],
)
def test_damaged_entries_are_thrown_out(cache: DiskCache, damage: object, reason: str) -> None:
    damage(cache.put(KEY, FILES))  # type: ignore[operator]
    with pytest.warns(GraphcWarning, match=f"is damaged .*{reason}.*; it is built again"):
        assert cache.get(KEY) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get(KEY) is None
    folder = cache.put(KEY, FILES)
    assert cache.get(KEY) == folder


def test_a_folder_open_to_others_is_closed(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    cache.root.mkdir()
    cache.root.chmod(0o777)
    cache.put(KEY, FILES)
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 3000)
    for n in range(5):
        folder = cache.put(f"key{n}", {"x": bytes(800)})
        os.utime(folder, (n, n))
        if n == 2:
            cache.get("key0")  # just used
    left = {path.name for path, _, _ in cache.entries()}
    assert {"key4", "key0"} <= left and "key1" not in left
    assert sum(size for _, size, _ in cache.entries()) <= 3000


def test_an_entry_larger_than_the_cache_can_still_be_used(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10)
    folder = cache.put(KEY, {"x": bytes(1000)})
    assert (folder / "x").read_bytes() == bytes(1000)


def test_leavings_of_killed_processes_are_swept_up(cache: DiskCache) -> None:
    """By the first entry that a process puts in: it looks through the cache."""
    old, young = cache.root / "staging-old", cache.root / "staging-young"
    for folder in (old, young):
        folder.mkdir(mode=0o700, parents=True)
        (folder / "half").write_bytes(b"x")
    os.utime(old, (1, 1))
    cache.put("first", FILES)
    cache.put("second", FILES)
    assert not old.exists() and young.exists()
    assert {path.name for path, _, _ in cache.entries()} == {"first", "second"}


@pytest.mark.parametrize("problem", ["a file stands in the way", "the disk is full"])
def test_a_cache_that_cannot_be_written(tmp_path: Path, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache(tmp_path / problem.replace(" ", "-"), 1 << 20)
    if problem == "the disk is full":
        real = cache_module._write_entry

        def write(folder: Path, files: dict[str, bytes]) -> None:
            if folder.is_relative_to(cache.root):
                raise OSError(28, "No space left on device")
            real(folder, files)

        monkeypatch.setattr(cache_module, "_write_entry", write)
    else:
        cache.root.parent.write_text("")
    with pytest.warns(FallbackWarning, match="cannot be written .*GRAPHC_CACHE_DIR"):
        folder = cache.put(KEY, FILES)
    assert (folder / "a.bin").read_bytes() == FILES["a.bin"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert cache.put(KEY, FILES) != folder
        assert cache.get(KEY) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.warns(FallbackWarning, match="cannot be written"):
        DiskCache(tmp_path, 1 << 20).put(KEY, FILES)


def test_many_processes_race(tmp_path: Path) -> None:
    """Writers of one entry, readers, and someone who keeps throwing entries out: no one reads half an entry."""
    code = (
        "import sys, pathlib, warnings\n"
        "from graphc.runtime.cache import DiskCache\n"
        "warnings.simplefilter('error')\n"
        "cache = DiskCache(pathlib.Path(sys.argv[1]), 20000)\n"
        "for n in range(60):\n"
        "    key = f'key{n % 3}'\n"
        "    files = {'x': key.encode() * 1000, 'y': b'1'}\n"
        "    cache.put(key, files)\n"
        "    folder = cache.get(key)\n"
        "    if sys.argv[2] == 'clear' and n % 5 == 0:\n"
        "        cache.clear()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).parents[2]
    runs = [
        subprocess.Popen([*command, role], cwd=root, stderr=subprocess.PIPE, text=True)
        for role in ("write", "write", "write", "clear")
    ]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, errors
    assert not [path for path in (tmp_path / "v1").iterdir() if path.name.startswith("staging-")]


def test_keys_cover_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    key = program_key("graph", {"mode": "default", "threads": 2})
    assert len(key) == 64 and int(key, 16) >= 0
    assert key == program_key("graph", {"threads": 2, "mode": "default"})
    others = {program_key("graph2", {"mode": "default", "threads": 2}), program_key("graph", {"mode": "max"})}
    with override(cc="cc-of-another-kind"):
        others.add(program_key("graph", {"mode": "default", "threads": 2}))
    monkeypatch.setattr(cache_module, "_cpu", lambda: "another CPU")
    others.add(program_key("graph", {"mode": "default", "threads": 2}))
    monkeypatch.setattr(torch, "__version__", "9.9")
    others.add(program_key("graph", {"mode": "default", "threads": 2}))
    assert len(others | {key}) == 6


def test_build_store_find(tmp_path: Path) -> None:
    x = torch.randn(4)
    with override(cache_dir=tmp_path):
        assert find_program(KEY) is None
        assert torch.equal(build_program(copier(), KEY)([x])[0], x)
        again = find_program(KEY)
        assert again is not None and torch.equal(again([x])[0], x)
        assert sorted(os.listdir(tmp_path / "v1" / KEY)) == ["manifest.json", "program.c", RECORD, LIBRARY]
    with override(cache_dir=tmp_path, cache=False):
        assert find_program(KEY) is None


def test_without_the_cache_nothing_is_written(tmp_path: Path) -> None:
    x = torch.randn(4)
    with override(cache_dir=tmp_path / "unused", cache=False):
        assert torch.equal(build_program(copier(), KEY)([x])[0], x)
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("name", [RECORD, LIBRARY])
def test_damaged_programs_are_built_again(tmp_path: Path, name: str) -> None:
    """One flipped bit: a warning, and the right answer after the rebuild."""
    x = torch.randn(4)
    with override(cache_dir=tmp_path):
        build_program(copier(), KEY)
        path = tmp_path / "v1" / KEY / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()
        path.write_bytes(content)
        with pytest.warns(GraphcWarning, match="does not have its recorded hash"):
            assert find_program(KEY) is None
        assert torch.equal(build_program(copier(), KEY)([x])[0], x)
        assert find_program(KEY) is not None


def test_an_entry_this_torch_cannot_run_is_no_entry(tmp_path: Path) -> None:
    record = copier()
    record.symbols = (*record.symbols, "function_of_another_torch")
    with override(cache_dir=tmp_path):
        files = {RECORD: record.to_json().encode(), LIBRARY: b"not a library"}
        DiskCache(tmp_path, 1 << 20).put(KEY, files)
        with pytest.warns(GraphcWarning, match="is damaged"):
            assert find_program(KEY) is None
        DiskCache(tmp_path, 1 << 20).put(KEY, {RECORD: b"{}", LIBRARY: b""})
        with pytest.warns(GraphcWarning, match="damaged program record"):
            assert find_program(KEY) is None


def test_a_failed_build_stores_nothing(tmp_path: Path) -> None:
    record = copier()
    record.sources["program.c"] += "nonsense\n"
    with override(cache_dir=tmp_path):
        with pytest.raises(CompilerError):
            build_program(record, KEY)
        assert find_program(KEY) is None
        assert not (tmp_path / "v1").exists()
