"""How much of a model generated kernels do: `python -m tests.suites.fusion --markdown docs/fusion.md`.

Models are captured and planned for the C backend, not run, unless they look at data. The bytes of a program are those
of generated kernels, of library calls for products of matrices, convolutions, attention and recurrent layers, and of
all other ATen calls, which are the ones that graphc could do and does not. Bytes are counted once per step that touches
a buffer.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch

import graphc
from benchmarks import zoo
from graphc import driver
from graphc.errors import GraphcError, UnsupportedError
from graphc.options import make_options
from graphc.report.share import planned

LIBRARIES: dict[str, tuple[str, ...]] = {
    "products": (
        r"(add|addb|b|baddb|_int_|_scaled_|_grouped_|_scaled_grouped_|)mm",
        r"grouped_mm_fallback(_backward)?",
        r"(linalg_solve_triangular|triangular_solve)",
        "_addmm_activation",
        "addmv",
        "mv",
        "v?dot",
        "linear",
        "addr",
    ),
    "convolutions": (r".*convolution.*", r"conv\w*", r"mkldnn_\w*conv\w*"),
    "attention": (r".*scaled_dot_product.*", r".*flash_attention.*", "_native_multi_head_attention"),
    "recurrent": (r"\w*(lstm|gru|rnn)\w*",),
}
"""Kinds of library calls, by patterns of the names of operators."""
COUNTERS = ("graph_ops", "fused_ops", "bytes_read", "bytes_written", "gemm_bytes")
COLUMNS = ("model", "form", "ops in kernels", "bytes in kernels", *LIBRARIES, "other calls", "which")
HEAD = """# What generated kernels do

Written by `python -m tests.suites.fusion --markdown docs/fusion.md`: per model the share of its ops, and of all bytes
that its program moves, in generated kernels; the shares of bytes in library calls, by kind; and the share in all other
ATen calls, those that move most named. `forward` is in eval mode, `step` a whole training step with its optimizer (of
models of transformers: forward and backward pass). Products of matrices by generated register tiles count as products,
and so do solutions of triangular systems, which BLAS computes as products. Calls that only give views move no bytes.
"""
TITLES = {"zoo": "The tutorials' models, in their own size", "hf": "Models of transformers, tiny"}


@dataclass(frozen=True)
class Line:
    """One program, or all programs of a path.

    Args:
        ops: share of the graph's ops that are in kernels.
        moved: bytes, by `kernels`, the kinds of `LIBRARIES` and `other`.
        calls: bytes of the other ATen calls, by name.
        refused: why there is no program.
    """

    model: str
    form: str
    ops: float
    moved: dict[str, int]
    calls: dict[str, int]
    refused: str = ""

    def share(self, kind: str) -> float:
        return self.moved.get(kind, 0) / max(sum(self.moved.values()), 1)


def kind_of(call: str) -> str:
    """`other`, or the kind of library that an ATen call is."""
    name = call.split(".")[1]
    return next((kind for kind, parts in LIBRARIES.items() if re.fullmatch("|".join(parts), name)), "other")


def line_of(model: str, form: str, plans: Sequence[dict[str, Any]]) -> Line:
    """What the counters of plans say."""
    total = {name: sum(stats[name] for stats in plans) for name in COUNTERS}
    calls, moved = Counter[str](), Counter({"products": total["gemm_bytes"]})
    for stats in plans:
        calls.update(stats["extern_bytes"])
    for name, count in calls.items():
        moved[kind_of(name)] += count
    moved["kernels"] = total["bytes_read"] + total["bytes_written"] - moved.total()
    others = {name: count for name, count in calls.most_common() if kind_of(name) == "other"}
    return Line(model, form, total["fused_ops"] / max(total["graph_ops"], 1), dict(moved), others)


def plans_of(fn: Callable[..., Any], args: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Counters of the plan of a function; of each plan on the path that it takes, if it looks at data."""
    options = make_options(fn, backend="c")
    try:
        graph = driver.capture(fn, args, {}, options, frozenset()).graph
    except UnsupportedError:  # it may be a look at data, which `compile` takes as a path
        compiled = graphc.compile(fn, backend="interpret")  # which builds nothing
        compiled(*args)
        return planned(compiled, *args)
    return [driver.plan_for(graph, options, "c").stats]


def of_zoo(name: str, size: zoo.Size = "full") -> Iterator[Line]:
    """Forward pass and training step of a model of the zoo."""
    torch.manual_seed(0)
    work = zoo.build(name, size)
    batch = work.batch(0)
    with torch.enable_grad():
        yield line_of(name, "step", plans_of(work.training().step, batch))
    work.net.eval()
    with torch.no_grad():
        yield line_of(name, "forward", plans_of(lambda *batch: work.run(work.net, *batch), batch))


def of_transformers(name: str) -> Iterator[Line]:
    """Forward pass, and forward and backward pass in train mode, of a model of transformers."""
    from tests.suites import hf

    spec = next(spec for spec in hf.SPECS if spec.name == name)
    for form, run in (("forward", lambda model, given: hf.plain(model(**given))), ("step", hf.gradients)):
        torch.manual_seed(0)
        model, inputs = spec.make().train(form == "step"), spec.inputs()
        try:
            with torch.set_grad_enabled(form == "step"):
                yield line_of(name, form, _plans_of_model(model, inputs, run))
        except GraphcError as error:
            yield Line(name, form, 0.0, {}, {}, f"{type(error).__name__}: {str(error).splitlines()[0]}")


def _plans_of_model(
    model: torch.nn.Module, inputs: dict[str, Any], run: Callable[..., Any]
) -> Sequence[dict[str, Any]]:
    """Of a function that runs a model; where that cannot be compiled, of the compiled model, run from outside."""

    def call(given: dict[str, Any]) -> Any:
        return run(model, given)

    try:
        return plans_of(call, (inputs,))
    except GraphcError:
        compiled: Any = graphc.compile(model, backend="interpret")
        run(compiled, inputs)
        return planned(compiled, **inputs)


def markdown(title: str, lines: list[Line], step: int = 1) -> str:
    """The table of one suite, or of every `step`-th model of it, with all of it together and what moves most."""
    kinds = ("kernels", *LIBRARIES, "other")
    rows = [f"## {title}", "", *([f"Every {step}th model of the suite.", ""] if step > 1 else [])]
    rows += [f"| {' | '.join(COLUMNS)} |", f"|---|---|{'--:|' * (len(COLUMNS) - 3)}---|"]
    for line in lines:
        if line.refused:
            rows.append(f"| {line.model} | {line.form} |{' |' * (len(kinds) + 1)} {line.refused} |")
            continue
        shares = " | ".join(f"{line.share(kind):.1%}" for kind in kinds)
        names = ", ".join(f"`{name.removeprefix('aten.')}`" for name in list(line.calls)[:3])
        rows.append(f"| {line.model} | {line.form} | {line.ops:.0%} | {shares} | {names} |")
    found = [line for line in lines if not line.refused]
    below = sum(line.share("other") < 0.05 for line in found)
    moved: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for line in found:
        moved.update(line.moved)
        calls.update(line.calls)
    share = moved["other"] / max(moved.total(), 1)
    rows += ["", f"Other calls: {share:.2%} of all bytes; below 5 % in {below} of {len(found)} programs.", ""]
    rows += ["| other ATen call | bytes in all programs |", "|---|--:|"]
    rows += [f"| `{name}` | {count} |" for name, count in calls.most_common(15)]
    return "\n".join(rows) + "\n"


def page(sections: dict[str, str], before: str) -> str:
    """The page with new sections, and those of before that were not measured again."""
    kept = {f"## {part.partition(chr(10))[0]}": f"## {part}" for part in before.split("\n## ")[1:]}
    parts = [sections.get(suite, kept.get(f"## {title}", "")) for suite, title in TITLES.items()]
    return "\n".join([HEAD, *(part.strip("\n") + "\n" for part in parts if part)])


@click.command()
@click.option("--suites", default=",".join(TITLES), show_default=True, help="What to look at, by comma.")
@click.option("--only", default="", help="Models whose name starts so.")
@click.option("--part", default="0/1", show_default=True, help="i/n: every n-th model, from the i-th.")
@click.option("--markdown", "target", type=click.Path(path_type=Path), help="Writes the page there too.")
@click.option("--keep", type=click.Path(path_type=Path), help="A file of measured models: those in it are not again.")
def main(suites: str, only: str, part: str, target: Path | None, keep: Path | None) -> None:
    """Plan every model and show what kernels and calls do of it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    first, step = map(int, part.split("/"))
    sections, known = {}, kept_lines(keep)
    for suite in suites.split(","):
        lines: list[Line] = []
        for name in names_of(suite)[first::step]:
            if not name.startswith(only):
                continue
            found = known.get((suite, name))
            if found is None:
                found = list(of_zoo(name) if suite == "zoo" else of_transformers(name))
                if keep is not None:
                    with keep.open("a") as file:
                        file.write(json.dumps({"suite": suite, "lines": [asdict(line) for line in found]}) + "\n")
            for line in found:
                print(f"{name} {line.form}: other {line.share('other'):.1%} {line.refused}{line.calls}", flush=True)
            lines += found
        sections[suite] = markdown(TITLES[suite], lines, step)
        print(sections[suite])
    if target is not None:
        target.write_text(page(sections, target.read_text() if target.exists() else ""))


def kept_lines(file: Path | None) -> dict[tuple[str, str], list[Line]]:
    """What a run that was stopped has measured, by suite and model."""
    rows = file.read_text().splitlines() if file is not None and file.exists() else []
    kept = [(row["suite"], [Line(**line) for line in row["lines"]]) for row in map(json.loads, rows)]
    return {(suite, lines[0].model): lines for suite, lines in kept}


def names_of(suite: str) -> list[str]:
    """All models of a suite."""
    if suite == "zoo":
        return list(zoo.ENTRIES)
    import transformers

    from tests.suites import hf

    transformers.logging.set_verbosity_error()
    return [spec.name for spec in hf.SPECS]


if __name__ == "__main__":
    main()
