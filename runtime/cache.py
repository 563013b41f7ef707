"""The disk cache of compiled programs.

    <cache dir>/v1/<key>/manifest.json     names and sha256 of the other files
                        /program.json ...

An entry is a folder, written elsewhere and renamed into place, so it is there whole or not at all; whoever comes second
keeps the first one's. Every file is checked against its hash before use. The folder is the user's alone (mode 0700):
entries hold machine code that will be run.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import platform
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from graphc.errors import CacheError, FallbackWarning, GraphcWarning
from graphc.runtime.build import compiler_version
from graphc.settings import settings

_LAYOUT = "v1"
_MANIFEST = "manifest.json"
_STAGING = "staging-"
_STALE_SECONDS = 3600.0
_LOOKS = 3
_sizes: dict[Path, int] = {}
"""Bytes in each cache folder, as far as this process knows."""


def program_key(text: str, options: Mapping[str, Any]) -> str:
    """Content address of a compiled program.

    Args:
        text: the graph in text form, or any text that says what is compiled.
        options: settings that change the generated code, by name; plain values.

    Returns:
        64 hex digits, which also cover graphc's own sources, the versions of torch and the compiler, and the CPU.
    """
    facts = {"options": {name: repr(options[name]) for name in sorted(options)}, "machine": machine_facts()}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(text.encode())
    return digest.hexdigest()


def machine_facts() -> dict[str, str]:
    """What a compiled program depends on besides its graph."""
    import torch

    compiler = settings().compiler()
    return {
        "graphc": _own_sources(),
        "torch": f"{torch.__version__} {torch.version.git_version}",
        "cpu": _cpu(),
        "compiler": f"{compiler} {compiler_version(compiler)}" if compiler else "",
    }


@functools.cache
def _cpu() -> str:
    """Model and instruction sets of this CPU: -march=native code for one may be illegal on another."""
    names = ("vendor_id", "cpu family", "model", "flags", "Features")
    try:
        with open("/proc/cpuinfo") as file:
            lines = list(itertools.takewhile(str.strip, file))  # the first CPU's
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return " ".join([platform.machine(), *(line.strip() for line in lines if line.partition("\t")[0].strip() in names)])


@functools.cache
def _own_sources() -> str:
    """A stamp of graphc's own code, so that a new version never runs an old version's programs."""
    root = Path(__file__).parents[1]
    stamps = []
    for folder, _, files in os.walk(root, followlinks=True):
        for name in files:
            if name.endswith(".py"):
                info = os.stat(os.path.join(folder, name))
                stamps.append(f"{os.path.relpath(folder, root)}/{name} {info.st_size} {info.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(stamps)).encode()).hexdigest()


class DiskCache:
    """Compiled programs on disk, oldest use thrown out first.

    Args:
        root: the cache folder; made on first write.
        max_bytes: size above which entries go, bytes.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root, self.max_bytes = Path(root) / _LAYOUT, max_bytes

    def get(self, key: str) -> Path | None:
        """The folder of an entry, every file of it checked, or None when there is none.

        A damaged entry is removed with a `GraphcWarning` and counts as none.
        """
        folder = self.root / key
        if not folder.is_dir():
            return None
        problem = self._problem(folder)
        if problem is not None:
            if not folder.is_dir():
                return None  # another process has just thrown it out
            self.discard(key, problem)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)
        return folder

    def put(self, key: str, files: Mapping[str, bytes]) -> Path:
        """Store an entry and return its folder; an entry that is there already stays.

        When the cache cannot be written, a `FallbackWarning` says so once and the entry goes to a temporary folder of
        this process.
        """
        try:
            folder = self._store(key, files)
        except (OSError, CacheError) as error:
            _warn_unwritable(str(self.root), str(error))
            return temporary_entry(key, files)
        self._make_room(key, sum(map(len, files.values())))
        return folder

    def discard(self, key: str, reason: str) -> None:
        """Remove an entry, with a `GraphcWarning` that says why."""
        warnings.warn(
            f"graphc: cache entry {self.root / key} is damaged ({reason}); it is built again", GraphcWarning, 3
        )
        self._remove(self.root / key)

    def entries(self) -> list[tuple[Path, int, float]]:
        """Folder, bytes and time of last use (seconds since the epoch) of each entry."""
        return [(Path(path), *_usage(path)) for path in self._folders() if not _is_staging(path)]

    def clear(self) -> None:
        """Remove every entry."""
        for path, _, _ in self.entries():
            self._remove(path)

    def _store(self, key: str, files: Mapping[str, bytes]) -> Path:
        self._prepare()
        target = self.root / key
        if target.is_dir():
            return target
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.root))
        try:
            _write_entry(staging, files)
            os.rename(staging, target)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        return target

    def _prepare(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = self.root.stat()
        if info.st_uid != os.getuid():
            raise CacheError(f"{self.root} belongs to another user")
        if stat.S_IMODE(info.st_mode) != 0o700:
            self.root.chmod(0o700)

    def _problem(self, folder: Path) -> str | None:
        """Why an entry must not be used, or None. Looks again at what another process may be replacing just now."""
        problem: str | None = None
        for _ in range(_LOOKS):
            try:
                return self._untrusted(folder) or _damage(folder)
            except FileNotFoundError:
                problem = "a file is missing"
            except OSError as error:
                problem = str(error)
        return problem

    def _untrusted(self, folder: Path) -> str | None:
        for path in (self.root, folder):
            info = path.stat()
            if info.st_uid != os.getuid():
                return f"{path} belongs to another user"
            if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return f"{path} can be written by other users"
        return None

    def _folders(self) -> Iterator[str]:
        try:
            with os.scandir(self.root) as found:
                yield from [item.path for item in found if item.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return

    def _make_room(self, key: str, size: int) -> None:
        """Count an entry, and look through the cache when it may have become too large, or has not been looked at yet.

        Looking takes time with every entry there is. What other processes put in is seen when one of them looks.
        """
        self._sweep()
        known = _sizes.get(self.root)
        if known is None or known + size > self.max_bytes:
            known, size = self._evict(key), 0
        _sizes[self.root] = known + size

    def _sweep(self) -> None:
        """Remove what killed processes left."""
        for name in self._folders():
            if _is_staging(name) and time.time() - _usage(name)[1] > _STALE_SECONDS:
                self._remove(Path(name))

    def _evict(self, keep: str) -> int:
        """Bring the cache below its limit; gives the bytes in it then."""
        entries = sorted(self.entries(), key=lambda entry: entry[2])
        total = sum(size for _, size, _ in entries)
        for path, size, _ in entries:
            if total > self.max_bytes and path.name != keep:
                self._remove(path)
                total -= size
        return total

    def _remove(self, folder: Path) -> None:
        """Take an entry away in one step, then delete it, so that no one reads half an entry."""
        doomed = folder.with_name(f"{_STAGING}{os.getpid()}-{time.monotonic_ns()}")
        with contextlib.suppress(OSError):
            os.rename(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def read_entry(folder: Path, name: str) -> bytes:
    """A file of an entry.

    Raises:
        CacheError: it cannot be read.
    """
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise CacheError(f"cache entry {folder}: {error}") from None


def disk_cache() -> DiskCache:
    """The cache that the settings ask for."""
    return DiskCache(settings().cache_dir, settings().cache_max_bytes)


def _is_staging(path: str) -> bool:
    return os.path.basename(path).startswith(_STAGING)


def _usage(path: str) -> tuple[int, float]:
    """Bytes and last use of an entry; an entry that vanishes meanwhile weighs nothing."""
    try:
        with os.scandir(path) as files:
            size = sum(item.stat().st_size for item in files)
        return size, os.stat(path).st_mtime
    except OSError:
        return 0, 0.0


def _write_entry(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    (folder / _MANIFEST).write_text(json.dumps(hashes))


def _damage(folder: Path) -> str | None:
    """What is wrong with an entry, or None."""
    try:
        hashes = json.loads((folder / _MANIFEST).read_bytes())
        items = list(hashes.items())
    except (ValueError, AttributeError):
        return f"{_MANIFEST} is not readable"
    for name, expected in items:
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
            return f"{name} does not have its recorded hash"
    return None


@functools.cache
def _warn_unwritable(root: str, reason: str) -> None:
    warnings.warn(
        f"graphc: the cache {root} cannot be written ({reason}); compiled programs are kept for this process only. "
        "Set GRAPHC_CACHE_DIR to a folder that can be written",
        FallbackWarning,
        stacklevel=4,
    )


@functools.cache
def _temporary_root() -> Path:
    root, owner = Path(tempfile.mkdtemp(prefix="graphc-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a forked child
            shutil.rmtree(root, ignore_errors=True)

    atexit.register(remove)
    return root


def temporary_entry(key: str, files: Mapping[str, bytes]) -> Path:
    """Store an entry for this process only."""
    folder = Path(tempfile.mkdtemp(prefix=key[:16], dir=_temporary_root()))
    _write_entry(folder, files)
    return folder
