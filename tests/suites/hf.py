"""Models of Hugging Face transformers, compiled and in eager: `python -m tests.suites.hf`.

Each is made offline from a tiny random configuration and run compiled: forward in eval mode; forward and backward in
train mode, with dropout as its configuration has it and `numerics="eager"`, so that masks are eager's own, gradients of
all parameters and buffers compared; and decoders by `generate` with a cache, tokens compared.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

import graphc
from graphc.errors import GraphcError, GraphcWarning
from graphc.frontend import tree
from tests.suites.hf_media import MEDIA
from tests.suites.hf_models import Inputs, Spec
from tests.suites.hf_text import TEXT
from tests.suites.verdicts import REFUSED, RIGHT, WRONG, Tally, Verdict, compare, limited, report, seed, timed

SECONDS = 120
TOKENS = 4
SPECS = [*TEXT, *MEDIA]


@dataclass
class Outcome:
    """What became of one model.

    Args:
        verdicts: by what was run: eval, train, generate.
        programs: captures compiled for eval and for train.
        seconds: spent in first calls beyond what a second call takes.
        stats: counters of the plans, eval, forward and backward.
    """

    spec: Spec
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    programs: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    stats: list[dict[str, Any]] = field(default_factory=list)


def examine(spec: Spec, backend: str = "c", kinds: tuple[str, ...] = ("eval", "train", "generate")) -> Outcome:
    """Judge one model."""
    outcome = Outcome(spec)
    for kind in kinds:
        if kind == "generate" and not spec.generates:
            continue
        with warnings.catch_warnings(), limited(SECONDS):
            warnings.simplefilter("ignore")
            outcome.verdicts[kind] = _JUDGES[kind](outcome, backend)
    return outcome


def _evaluate(outcome: Outcome, backend: str) -> Verdict:
    model, inputs = _made(outcome.spec)
    model.eval()
    with torch.no_grad():
        run = lambda module, given: plain(module(**given))
        return _judge(outcome, "eval", model, inputs, run, backend)


def _train(outcome: Outcome, backend: str) -> Verdict:
    model, inputs = _made(outcome.spec)
    model.train()
    return _judge(outcome, "train", model, inputs, gradients, backend)


def _made(spec: Spec) -> tuple[torch.nn.Module, Inputs]:
    seed()
    return spec.make(), spec.inputs()


def gradients(model: torch.nn.Module, inputs: Inputs) -> Any:
    """Results, gradients of all parameters, and buffers, after a backward pass from the loss or from all results."""
    results = model(**inputs)
    loss = getattr(results, "loss", None)
    if loss is None:
        floats = [
            leaf for leaf in tree.flatten(plain(results))[0] if isinstance(leaf, torch.Tensor) and leaf.requires_grad
        ]
        loss = sum(
            (leaf * torch.linspace(-1, 1, leaf.numel(), dtype=leaf.dtype).reshape(leaf.shape)).sum() for leaf in floats
        )
    loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"results": plain(results), "gradients": grads, "buffers": dict(model.named_buffers())}


def plain(value: Any) -> Any:
    """Results with the objects in them, caches of keys and values above all, taken apart."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if type(value).__module__.startswith("transformers.") and hasattr(value, "__dict__"):
        return {"class": type(value).__name__, **{k: plain(v) for k, v in vars(value).items() if not callable(v)}}
    return value


def _judge(
    outcome: Outcome, kind: str, model: torch.nn.Module, inputs: Inputs, run: Callable[..., Any], backend: str
) -> Verdict:
    """Run eager, compiled twice, and float64 if need be."""
    name = outcome.spec.name
    theirs, precise = copy.deepcopy(model), copy.deepcopy(model)
    seed()
    expected = run(theirs, copy.deepcopy(inputs))
    compiled: Any = graphc.compile(model, backend=backend, numerics="eager", name=f"{kind}_{name}")
    try:
        seed()
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            actual = run(compiled, copy.deepcopy(inputs))
        first = time.perf_counter() - start
    except GraphcError as error:
        return Verdict(name, REFUSED, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}")
    except Exception as error:
        return Verdict(name, WRONG, f"{type(error).__name__}: {str(error).strip()[:300]}")
    if compiled.stats().eager_calls:
        reasons = [str(warning.message) for warning in said if isinstance(warning.message, GraphcWarning)]
        return Verdict(name, REFUSED, f"runs eager: {'; '.join(reasons)}")

    def exact() -> Any:
        seed()
        return run(precise.double(), _wide(inputs))

    try:
        compare(actual, expected, exact)
        seed()
        run(compiled, copy.deepcopy(inputs))  # what gets ready in its first call is another program in the second
        outcome.programs[kind] = compiled.stats().compiles
        seed()
        start = time.perf_counter()
        run(compiled, copy.deepcopy(inputs))
        outcome.seconds += first - (time.perf_counter() - start)
        again = compiled.stats().compiles - outcome.programs[kind]
        assert not again, f"compiled again: {compiled.stats().recompiles}"
    except AssertionError as mismatch:
        return Verdict(name, WRONG, str(mismatch).strip().replace("\n", " ")[:300])
    made = compiled.compiled.explain(**inputs)
    outcome.stats += [half.stats for half in (made, made.backward) if half is not None]
    return Verdict(name, RIGHT)


def _wide(inputs: Inputs) -> Inputs:
    return {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


def _generate(outcome: Outcome, backend: str) -> Verdict:
    model, inputs = _made(outcome.spec)
    model.eval()
    name = outcome.spec.name
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    prompt = {"input_ids": inputs["input_ids"][:1], "attention_mask": torch.ones_like(inputs["input_ids"][:1])}
    expected = model.generate(**prompt, **options)
    forward = model.forward
    try:
        for made in (graphc.compile(model, backend=backend), model):
            if made is model:
                model.forward = graphc.compile(forward, backend=backend)
            found = made.generate(**prompt, **options)
            stats = (made.compiled if made is not model else model.forward).stats()
            assert stats.compiles, "nothing was compiled"
            assert not stats.eager_calls, "runs eager"
            assert torch.equal(found, expected), f"tokens {found.tolist()}, eager {expected.tolist()}"
    except GraphcError as error:
        return Verdict(name, REFUSED, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}")
    except Exception as error:
        return Verdict(name, WRONG, f"{type(error).__name__}: {str(error).strip()[:300]}")
    return Verdict(name, RIGHT)


_JUDGES: dict[str, Callable[[Outcome, str], Verdict]] = {"eval": _evaluate, "train": _train, "generate": _generate}


def summary(outcomes: list[Outcome]) -> Table:
    """A line per model."""
    made = Table(title="transformers, compiled against eager")
    for column in ("model", "kind", "eval", "train", "generate", "programs", "extern calls", "compile s"):
        made.add_column(column, justify="left" if column in ("model", "kind") else "right")
    for outcome in outcomes:
        kinds = (outcome.verdicts[kind].kind if kind in outcome.verdicts else "" for kind in _JUDGES)
        externs: Counter[str] = sum((Counter(stats.get("extern", {})) for stats in outcome.stats), Counter())
        made.add_row(
            outcome.spec.name, outcome.spec.family, *kinds, "+".join(map(str, outcome.programs.values())),
            str(externs.total()), f"{outcome.seconds:.1f}",
        )  # fmt: skip
    return made


_LIBRARY = ("lstm", "gru", "rnn")
"""Recurrent layers, which are library calls as products, convolutions and attention are."""


@dataclass(frozen=True)
class Coverage:
    """What generated kernels do of a model's programs.

    Args:
        ops: share of the graphs' ops that they compute.
        bytes: share of all bytes moved that they and library calls for products, convolutions, attention and
            recurrent layers move: what is left are other ATen calls.
        calls: bytes of those other calls, by name.
    """

    ops: float
    bytes: float
    calls: dict[str, int]


def coverage(stats: list[dict[str, Any]]) -> Coverage:
    """Of several programs together."""
    total = sum(one["bytes_read"] + one["bytes_written"] for one in stats)
    calls: Counter[str] = Counter()
    for one in stats:
        for name, moved in one["extern_bytes"].items():
            if one["extern_reasons"].get(name) != "library call" and not any(part in name for part in _LIBRARY):
                calls[name] += moved
    ops = sum(one["graph_ops"] for one in stats)
    return Coverage(
        sum(one["fused_ops"] for one in stats) / max(ops, 1),
        1 - calls.total() / max(total, 1),
        dict(calls.most_common()),
    )


def markdown(outcomes: list[Outcome]) -> str:
    """A table of `coverage`, a line per model, and one of the calls that move most."""
    lines = [
        "| model | kind | ops in kernels | bytes outside other ATen calls | other calls |",
        "|---|---|--:|--:|---|",
    ]
    total: Counter[str] = Counter()
    for outcome in outcomes:
        if not outcome.stats:
            continue
        found = coverage(outcome.stats)
        total.update(found.calls)
        names = ", ".join(f"`{name.removeprefix('aten.')}`" for name in list(found.calls)[:3])
        lines.append(f"| {outcome.spec.name} | {outcome.spec.family} | {found.ops:.0%} | {found.bytes:.1%} | {names} |")
    lines += ["", "| other ATen call | bytes in all models |", "|---|--:|"]
    lines += [f"| `{name}` | {moved} |" for name, moved in total.most_common(15)]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--backend", default="c", show_default=True)
@click.option("--only", default="", help="Models whose name starts so.")
@click.option("--families", default="", help="Kinds of architecture, by comma; all by default.")
@click.option("--part", default="0/1", show_default=True, help="i/n: every n-th model, from the i-th.")
@click.option("--markdown", "table", type=click.Path(path_type=Path), help="Writes the coverage table there too.")
@click.option("--kinds", default="eval,train,generate", show_default=True, help="What to run.")
def main(backend: str, only: str, families: str, part: str, kinds: str, table: Path | None) -> None:
    """Compare every model with eager; exits with 1 when an answer is wrong."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    first, step = map(int, part.split("/"))
    tallies = {kind: Tally(f"transformers, {kind}, {backend}") for kind in kinds.split(",")}
    outcomes = []
    for spec in SPECS[first::step]:
        if not spec.name.startswith(only) or (families and spec.family not in families.split(",")):
            continue
        outcome = Outcome(spec)
        for kind, tally in tallies.items():
            with timed(tally):
                one = examine(spec, backend, (kind,))
            tally.verdicts.extend(one.verdicts.values())
            outcome.verdicts |= one.verdicts
            outcome.programs |= one.programs
            outcome.seconds += one.seconds
            outcome.stats += one.stats
            for verdict in one.verdicts.values():
                print(f"{spec.name}: {kind} {verdict.kind} {verdict.reason}", flush=True)
        outcomes.append(outcome)
    Console(width=160).print(summary(outcomes))
    if backend != "interpret":
        print(markdown(outcomes))
    if table is not None:
        table.write_text(markdown(outcomes))
    raise SystemExit(report(list(tallies.values())))


if __name__ == "__main__":
    main()
