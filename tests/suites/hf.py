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
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

import graphc
from graphc.errors import GraphcError, GraphcWarning
from graphc.frontend import tree
from graphc.report.share import planned, share
from tests.suites.hf_media import MEDIA
from tests.suites.hf_models import Inputs, Spec
from tests.suites.hf_text import TEXT
from tests.suites.verdicts import (
    REFUSED,
    RIGHT,
    WRONG,
    References,
    Tally,
    Verdict,
    compare,
    limited,
    report,
    seed,
    timed,
)

SECONDS = 120
TOKENS = 4
PROGRAMS = 3
"""Captures that all tokens may take with a cache of a fixed size: for the prompt, for the first token, for others."""
SPECS = [*TEXT, *MEDIA]


@dataclass
class Outcome:
    """What became of one model.

    Args:
        verdicts: by what was run: eval, train, generate.
        programs: of one call in eval and in train mode (more than one where the model branches on data), and of all
            tokens of `generate`, with a growing cache and one of a fixed size together.
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
            if kind == "share":
                _measure(outcome)
            else:
                outcome.verdicts[kind] = _JUDGES[kind](outcome, backend)
    return outcome


def _measure(outcome: Outcome) -> None:
    """What generated kernels would do of the model in eval and in train mode, with random numbers of their own."""
    for train in (False, True):
        if outcome.verdicts.get("train" if train else "eval", Verdict("", RIGHT)).kind != RIGHT:
            continue
        model, inputs = _made(outcome.spec)
        compiled: Any = graphc.compile(model.train(train), backend="interpret")
        with torch.set_grad_enabled(train):
            if train:
                gradients(compiled, inputs)
            else:
                compiled(**inputs)
            if compiled.stats().compiles:
                outcome.stats += planned(compiled, **inputs)


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
            (leaf * torch.linspace(-1, 1, leaf.numel(), dtype=leaf.dtype, device=leaf.device).reshape(leaf.shape)).sum()
            for leaf in floats
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
    """Run eager, compiled twice, and float64 and random rounding if need be."""
    name = outcome.spec.name
    theirs, untouched = copy.deepcopy(model), copy.deepcopy(model)
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

    references = References((untouched, (inputs,)), lambda module: partial(run, module))
    try:
        by_rounding = compare(actual, expected, references.exact, references.errors)
        for _ in range(2 if compiled.stats().paths else 1):  # a path that calls keep to is a program as a whole
            seed()
            run(compiled, copy.deepcopy(inputs))  # what gets ready in its first call is another program in the second
        compiles = compiled.stats().compiles
        seed()
        start = time.perf_counter()
        run(compiled, copy.deepcopy(inputs))
        outcome.seconds += first - (time.perf_counter() - start)
        again = compiled.stats().compiles - compiles
        assert not again, f"compiled again: {compiled.stats().recompiles}"
    except AssertionError as mismatch:
        return Verdict(name, WRONG, str(mismatch).strip().replace("\n", " ")[:300])
    captured = compiled.graph(**inputs)
    outcome.programs[kind] = len(captured) if isinstance(captured, list) else 1
    return Verdict(name, RIGHT, by_rounding=by_rounding)


def _generate(outcome: Outcome, backend: str) -> Verdict:
    """Greedy and sampled tokens, with a cache that grows and, where the model has one, with a cache of a fixed size."""
    model, inputs = _made(outcome.spec)
    model.eval()
    name, counts = outcome.spec.name, []
    for cache in ("dynamic", "static"):
        compiled = graphc.compile(model, backend=backend)
        try:
            wanted = [_tokens(model, inputs, cache, sample) for sample in (False, True)]
        except Exception:
            if cache == "static":
                break  # transformers has none that works for this model
            raise
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", GraphcWarning)
                for sample, expected in zip((False, True), wanted, strict=True):
                    found = _tokens(compiled, inputs, cache, sample)
                    assert torch.equal(found, expected), f"{cache}: tokens {found.tolist()}, eager {expected.tolist()}"
        except GraphcError as error:
            return Verdict(name, REFUSED, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}")
        except Exception as error:
            return Verdict(name, WRONG, f"{type(error).__name__}: {str(error).strip()[:300]}")
        stats = compiled.compiled.stats()
        grows = cache == "dynamic" or not getattr(model.config, "use_cache", True)  # or it is given all tokens again
        captures, limit = len(stats.recompiles) + 1, TOKENS + 1 if grows else PROGRAMS
        if stats.eager_calls or not stats.compiles or captures > limit:
            reason = next((str(w.message)[:200] for w in said if issubclass(w.category, GraphcWarning)), "no warning")
            return Verdict(name, WRONG, f"{cache}: {captures} captures, {stats.eager_calls} calls ran eager: {reason}")
        counts.append(stats.compiles)
    outcome.programs["generate"] = sum(counts)
    return Verdict(name, RIGHT)


def _tokens(model: Any, inputs: Inputs, cache: str, sample: bool) -> torch.Tensor:
    key = next(key for key in ("input_ids", "input_features", "input_values") if key in inputs)
    prompt = {key: inputs[key][:1]}
    if key == "input_ids":
        prompt["attention_mask"] = torch.ones_like(prompt[key])
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": sample, "pad_token_id": 0}
    if cache == "static":
        options["cache_implementation"] = "static"
    seed()
    found: torch.Tensor = model.generate(**prompt, **options)
    return found


_JUDGES: dict[str, Callable[[Outcome, str], Verdict]] = {"eval": _evaluate, "train": _train, "generate": _generate}


def summary(outcomes: list[Outcome]) -> Table:
    """A line per model."""
    made = Table(title="transformers, compiled against eager")
    for column in ("model", "kind", "eval", "train", "generate", "programs", "compile s"):
        made.add_column(column, justify="left" if column in ("model", "kind") else "right")
    for outcome in outcomes:
        kinds = (outcome.verdicts[kind].kind if kind in outcome.verdicts else "" for kind in _JUDGES)
        made.add_row(
            outcome.spec.name, outcome.spec.family, *kinds, "+".join(map(str, outcome.programs.values())),
            f"{outcome.seconds:.1f}",
        )  # fmt: skip
    return made


def markdown(outcomes: list[Outcome]) -> str:
    """A table of shares, a line per model, and one of the calls that move most."""
    lines = [
        "| model | kind | ops in kernels | bytes outside other ATen calls | other calls |",
        "|---|---|--:|--:|---|",
    ]
    total: Counter[str] = Counter()
    moved = other = 0
    for outcome in outcomes:
        if not outcome.stats:
            continue
        found = share(outcome.stats)
        total.update(found.calls)
        moved, other = moved + found.moved, other + sum(found.calls.values())
        names = ", ".join(f"`{name.removeprefix('aten.')}`" for name in list(found.calls)[:3])
        lines.append(f"| {outcome.spec.name} | {outcome.spec.family} | {found.ops:.0%} | {found.bytes:.1%} | {names} |")
    lines += ["", f"Of all bytes, {other / max(moved, 1):.1%} are moved by other ATen calls."]
    lines += ["", "| other ATen call | bytes in all models |", "|---|--:|"]
    lines += [f"| `{name}` | {moved} |" for name, moved in total.most_common(15)]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--backend", default="c", show_default=True)
@click.option("--only", default="", help="Models whose name starts so.")
@click.option("--families", default="", help="Kinds of architecture, by comma; all by default.")
@click.option("--part", default="0/1", show_default=True, help="i/n: every n-th model, from the i-th.")
@click.option("--markdown", "table", type=click.Path(path_type=Path), help="Writes the table of shares there too.")
@click.option(
    "--kinds", default="eval,train,generate", show_default=True, help="What to run; `share` measures kernels."
)
def main(backend: str, only: str, families: str, part: str, kinds: str, table: Path | None) -> None:
    """Compare every model with eager; exits with 1 when an answer is wrong."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    first, step = map(int, part.split("/"))
    tallies = {kind: Tally(f"transformers, {kind}, {backend}") for kind in kinds.split(",") if kind != "share"}
    outcomes = []
    for spec in SPECS[first::step]:
        if not spec.name.startswith(only) or (families and spec.family not in families.split(",")):
            continue
        outcome = Outcome(spec)
        if "share" in kinds.split(","):
            outcome = examine(spec, backend, ("share",))
        for kind, tally in tallies.items():
            with timed(tally):
                one = examine(spec, backend, (kind,))
            tally.verdicts.extend(one.verdicts.values())
            outcome.verdicts |= one.verdicts
            outcome.programs |= one.programs
            outcome.seconds += one.seconds
            for verdict in one.verdicts.values():
                print(f"{spec.name}: {kind} {verdict.kind} {verdict.reason}", flush=True)
        outcomes.append(outcome)
    Console(width=160).print(summary(outcomes))
    if "share" in kinds.split(","):
        print(markdown(outcomes))
    if table is not None:
        table.write_text(markdown(outcomes))
    raise SystemExit(report(list(tallies.values())))


if __name__ == "__main__":
    main()
