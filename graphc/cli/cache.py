"""`graphc cache`: what the disk cache holds."""

from __future__ import annotations

from graphc.runtime.cache import disk_cache


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def info() -> str:
    """Folder, number of programs, size and limit, in one line."""
    cache = disk_cache()
    entries = cache.entries()
    used = sum(size for _, size, _ in entries) / 2**20
    return f"{cache.root}: {_plural(len(entries), 'program')}, {used:.1f} of {cache.max_bytes / 2**20:.0f} MiB"


def clear() -> str:
    """Remove every entry; says how many there were."""
    cache = disk_cache()
    count = len(cache.entries())
    cache.clear()
    return f"{cache.root}: removed {_plural(count, 'program')}"
