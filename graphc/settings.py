"""One typed settings object: every field with its environment variable, its meaning, and a scoped override.

No other module of graphc reads `os.environ`. Use `settings()` to read and `override(...)` to change for a block.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphc.errors import SettingsError

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}


def _parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError("expected one of 1, 0, true, false, yes, no, on, off")


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _parse_templates(text: str) -> str:
    if text not in ("auto", "always", "never"):
        raise ValueError("expected one of auto, always, never")
    return text


def _default_cache_dir() -> Path:
    try:
        import platformdirs
    except ImportError:  # a bare checkout, nothing installed
        return Path.home() / ".cache" / "graphc"
    return Path(platformdirs.user_cache_dir("graphc"))


def _setting(env: str, parse: Callable[[str], Any], doc: str, **default: Any) -> Any:
    return field(metadata={"env": env, "parse": parse, "doc": doc}, **default)


@dataclass(frozen=True)
class Settings:
    """All knobs of graphc. Every field can be set by its environment variable or by `override(field=value)`."""

    eager: bool = _setting("GRAPHC_EAGER", _parse_bool, "run every decorated function as plain PyTorch", default=False)
    debug: int = _setting(
        "GRAPHC_DEBUG", int, "on stderr: 1 a line per program, 2 its report, 3 its IR, 4 its code", default=0
    )
    dump: Path | None = _setting(
        "GRAPHC_DUMP", Path, "folder for the IR of every stage and generated code", default=None
    )
    print_after: tuple[str, ...] = _setting(
        "GRAPHC_PRINT_AFTER", _parse_names, "comma-separated pass names after which the graph is printed", default=()
    )
    verify_passes: bool = _setting(
        "GRAPHC_VERIFY_PASSES", _parse_bool, "run the IR verifier after every pass", default=False
    )
    cache: bool = _setting("GRAPHC_CACHE", _parse_bool, "keep compiled programs on disk", default=True)
    cache_dir: Path = _setting("GRAPHC_CACHE_DIR", Path, "folder of the disk cache", default_factory=_default_cache_dir)
    cache_max_bytes: int = _setting(
        "GRAPHC_CACHE_MAX_BYTES", int, "disk cache size above which the oldest entries go, bytes", default=2 << 30
    )
    cc: str = _setting("GRAPHC_CC", str, "C compiler command", default="gcc")
    cflags: tuple[str, ...] = _setting(
        "GRAPHC_CFLAGS",
        lambda text: tuple(shlex.split(text)),
        "further flags for the C compiler, after graphc's own: -O0 builds fast, -g for a debugger",
        default=(),
    )
    chunk_bytes: int = _setting(
        "GRAPHC_CHUNK_BYTES",
        int,
        "logits at least twice as large are never whole in memory: they are computed in chunks of about so many bytes",
        default=32 << 20,
    )
    templates: str = _setting(
        "GRAPHC_TEMPLATES",
        _parse_templates,
        "matrix products as Triton kernels with what comes before and behind in them: auto, always, never",
        default="auto",
    )
    tune_seconds: float = _setting(
        "GRAPHC_TUNE_SECONDS",
        float,
        'with mode="max": seconds that measuring may take per compiled program; what is left then is not measured',
        default=120.0,
    )
    replay: bool = _setting(
        "GRAPHC_REPLAY",
        _parse_bool,
        "on a GPU the launches of a program are recorded once and replayed as a whole, where that is safe",
        default=True,
    )
    keep_gradients: bool = _setting(
        "GRAPHC_KEEP_GRADIENTS",
        _parse_bool,
        "gradients that a step drops stay until it has run: one that fails leaves them, at the price of their memory",
        default=False,
    )
    max_recompiles: int = _setting(
        "GRAPHC_MAX_RECOMPILES",
        int,
        "captures of one function after which a warning names what keeps changing, and calls for which nothing fits "
        "run eager until that has taken as long as a compilation",
        default=8,
    )
    max_paths: int = _setting(
        "GRAPHC_MAX_PATHS",
        int,
        "programs that the paths of one captured function may take, where it branches on data; 0 refuses such branches",
        default=64,
    )

    def compiler(self) -> str | None:
        """Absolute path of the C compiler, or None when there is none on this machine."""
        return shutil.which(self.cc)


def from_environment(environ: dict[str, str] | None = None) -> Settings:
    """Settings as the environment asks for them.

    Raises:
        SettingsError: a variable holds a value that its field cannot take; names the variable and the value.
    """
    env = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for item in dataclasses.fields(Settings):
        text = env.get(item.metadata["env"])
        if text is None:
            continue
        try:
            values[item.name] = item.metadata["parse"](text)
        except ValueError as error:
            raise SettingsError(f"{item.metadata['env']}={text!r}: {error}") from None
    return Settings(**values)


_base: Settings | None = None
_scoped: contextvars.ContextVar[Settings | None] = contextvars.ContextVar("graphc_settings", default=None)


def settings() -> Settings:
    """The settings in force here: the innermost `override`, else the environment as first read."""
    global _base
    scoped = _scoped.get()
    if scoped is not None:
        return scoped
    if _base is None:
        _base = from_environment()
    return _base


@contextlib.contextmanager
def override(**changes: Any) -> Iterator[Settings]:
    """Change settings inside a `with` block, for this thread or task only.

    Raises:
        SettingsError: no such field.
    """
    names = {item.name for item in dataclasses.fields(Settings)}
    unknown = sorted(set(changes) - names)
    if unknown:
        raise SettingsError(f"no such setting: {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    with _in_force(dataclasses.replace(settings(), **changes)) as new:
        yield new


@contextlib.contextmanager
def or_else(known: Settings) -> Iterator[None]:
    """Inside a `with` block other settings are in force, unless there is an `override` already: for work that threads
    do which know nothing of one, as autograd's do for GPUs."""
    if _scoped.get() is not None:
        yield
        return
    with _in_force(known):
        yield


@contextlib.contextmanager
def _in_force(new: Settings) -> Iterator[Settings]:
    token = _scoped.set(new)
    try:
        yield new
    finally:
        _scoped.reset(token)
