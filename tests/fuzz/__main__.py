"""`python -m tests.fuzz`: random programs by the thousand, in processes of their own; a run that was stopped goes on.

python -m tests.fuzz --programs 100000 --processes 2      # all of them, or those that are left
python -m tests.fuzz --seeds 17:18 --show                 # one program, judged, cut down and printed
python -m tests.fuzz --programs 400 --backend ptx         # generated kernels executed from their machine code
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from graphc.settings import override
from tests.fuzz.check import judge, judge_all
from tests.fuzz.generate import generate
from tests.fuzz.shrink import shrink
from tests.suites.verdicts import RIGHT, WRONG, Verdict

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 2000
"""Programs of one process: what it leaks ends with it."""
EVERY = 10
"""One batch of so many is built as users' programs are."""
CPUS = len(os.sched_getaffinity(0))
CRASHED = "the process died"
PTX = "ptx"
"""The backend `triton` with its kernels' machine code executed on the CPU: see `tests.triton.ptx`."""


def main() -> int:
    """Returns the exit status: 1 when a program is wrong."""
    options = _arguments()
    first, last = options.seeds
    if options.chunk:
        return _chunk(first, last, options.backend)
    if options.show:
        return _show(first, last, options.backend)
    return run(first, last, options.backend, Path(options.out), options.processes)


def run(first: int, last: int, backend: str, folder: Path, processes: int = CPUS) -> int:
    """Judge the programs of some seeds that have not been judged yet, and report on all of them.

    Args:
        first, last: seeds; `last` is left out.
        backend: of `graphc.compile`, or `PTX`.
        folder: of the verdicts, a file per chunk.
        processes: at the same time.

    Returns:
        1 when a program is wrong, else 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spans = [(start, min(start + CHUNK, last)) for start in range(first, last, CHUNK)]
    left = [span for span in spans if not _file(folder, span, backend).exists()]
    start = time.perf_counter()
    with ThreadPoolExecutor(processes) as pool:
        for done, span in enumerate(pool.map(lambda span: _run(folder, span, backend), left), 1):
            seconds = time.perf_counter() - start
            rate = done * CHUNK / seconds
            print(
                f"{span[1]} of {last}, {rate:.1f} programs/s, {(len(left) - done) * CHUNK / rate / 60:.0f} min left",
                flush=True,
            )
    return _report([_file(folder, span, backend) for span in spans])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--programs", type=int, default=100_000, help="how many, from seed 0 on")
    parser.add_argument("--seeds", help="FIRST:LAST instead; LAST is left out")
    parser.add_argument("--processes", type=int, default=CPUS)
    parser.add_argument("--backend", default="c", choices=("c", "interpret", "triton", PTX))
    parser.add_argument("--out", default="out/fuzz", help="where verdicts are kept; what is there is not done again")
    parser.add_argument("--show", action="store_true", help="judge one by one; print what is not right, cut down")
    parser.add_argument("--chunk", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    first, last = (options.seeds or f"0:{options.programs}").split(":")
    options.seeds = int(first), int(last)
    return options


def _file(folder: Path, span: tuple[int, int], backend: str) -> Path:
    return folder / f"{backend}-{span[0]:07}-{span[1]:07}.jsonl"


def _run(folder: Path, span: tuple[int, int], backend: str) -> tuple[int, int]:
    file = _file(folder, span, backend)
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(item) + "\n" for item in _judged(span, backend)))
    partial.rename(file)
    return span


def _judged(span: tuple[int, int], backend: str) -> list[dict[str, str]]:
    """The verdicts of one process; where that dies, those of its halves, each in one."""
    found = _in_process(span, backend)
    if found is not None:
        return found
    first, last = span
    name = str(first) if last - first == 1 else f"{first}:{last}"
    if last - first == 1:
        return [{"name": name, "kind": WRONG, "reason": CRASHED}]
    middle = (first + last) // 2
    found = [item for half in ((first, middle), (middle, last)) for item in _judged(half, backend)]
    if not any(item["reason"].startswith(CRASHED) for item in found):
        found.append({"name": name, "kind": WRONG, "reason": f"{CRASHED}, neither half of it does"})
    return found


def _in_process(span: tuple[int, int], backend: str) -> list[dict[str, str]] | None:
    command = [sys.executable, "-m", "tests.fuzz", "--chunk", "--seeds", f"{span[0]}:{span[1]}", "--backend", backend]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if backend == "triton":
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{span[0]}:{span[1]} exit status {done.returncode}: {done.stderr[-500:]}", flush=True)
        return None
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _chunk(first: int, last: int, backend: str) -> int:
    with tempfile.TemporaryDirectory() as cache, override(cache_dir=Path(cache)):
        backend = _installed(backend)
        programs = [generate(seed) for seed in range(first, last)]
        gc.freeze()  # the collector would look through all of torch again and again
        for verdict in judge_all(programs, backend, every=EVERY):
            print(
                json.dumps({"name": verdict.name, "kind": verdict.kind, "how": verdict.how, "reason": verdict.reason})
            )
    return 0


def _installed(backend: str) -> str:
    """The name by which `graphc.compile` knows a backend."""
    if backend != PTX:
        return backend
    from tests.triton.ptx.kernels import install

    install()
    return "triton"


def _show(first: int, last: int, backend: str) -> int:
    status, backend = 0, _installed(backend)
    for seed in range(first, last):
        program = generate(seed)
        verdict = judge([program.script()], backend, [str(seed)])
        if verdict.kind != RIGHT:
            status = 1
            smallest = shrink(program, lambda other: _alike(judge([other.script()], backend), verdict))
            print(
                smallest.script(f"Random program {seed}, {verdict.kind}: {judge([smallest.script()], backend).reason}")
            )
    return status


def _alike(one: Verdict, other: Verdict) -> bool:
    return one.kind == other.kind and _gist(one.reason) == _gist(other.reason)


def _gist(reason: str) -> str:
    """A reason without its numbers."""
    return re.sub(r"\d[\d.e+-]*", "#", reason).split("[")[0][:60]


def _report(files: list[Path]) -> int:
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    for item in found:
        if item["kind"] == WRONG:
            print(f"wrong {item['name']}: {item['reason']}")
    for (kind, reason), count in Counter((v["kind"], _gist(v["reason"])) for v in found).most_common():
        if kind != RIGHT and kind != WRONG:
            print(f"{kind} {count}x: {reason}")
    print(dict(Counter(item["kind"] for item in found)))
    return 1 if any(item["kind"] == WRONG for item in found) else 0


if __name__ == "__main__":
    sys.exit(main())
