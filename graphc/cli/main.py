"""The `graphc` command: inspect, bench, verify, doctor, cache."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from graphc import __version__
from graphc.errors import GraphcError


class _Group(click.Group):
    """Shows graphc's own errors as one message, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except GraphcError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="graphc")
def main() -> None:
    """Look inside compiled PyTorch programs, and compare their speed.

    FILE.py:NAME takes its inputs from example_inputs() in the same file, or from NAME.example_inputs.
    """


@main.command()
@click.argument("target", metavar="FILE.py:NAME")
@click.option(
    "--stage",
    type=click.Choice(["captured", "optimized", "scheduled", "source", "explain"]),
    default="captured",
    show_default=True,
    help="What to print.",
)
@click.option("--backend", type=click.Choice(["auto", "c", "triton", "interpret"]), default="auto", show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write every stage to this folder instead.")
def inspect(target: str, stage: str, backend: str, out: Path | None) -> None:
    """Print the IR of a stage, or the generated code, of a function."""
    from graphc.cli.inspect import print_stage, write_stages

    if out is None:
        click.echo(print_stage(target, stage, backend))
        return
    for path in write_stages(target, backend, out):
        click.echo(path)


@main.command()
@click.argument("target", metavar="FILE.py[:NAME]|zoo[:NAME]")
@click.option("--against", default="eager,inductor", show_default=True, help="Other contenders, comma-separated.")
@click.option("--rounds", default=25, show_default=True, help="Measurements per contender.")
@click.option("--cold/--no-cold", default=True, show_default=True, help="Also measure first calls in fresh processes.")
@click.option("--backend", type=click.Choice(["auto", "c", "triton", "interpret"]), default="auto", show_default=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path("out/bench"), show_default=True, help="Result folder."
)
def bench(target: str, against: str, rounds: int, cold: bool, backend: str, out: Path) -> None:
    """Time a function, or all of a file's, against eager PyTorch and others in one run.

    zoo stands for the tutorials' models: forward pass and whole training step of each, or of zoo:NAME (a model, a
    family, or several by comma). They are compiled in this process alone.
    """
    from graphc.cli.bench import run_bench

    names = [name.strip() for name in against.split(",") if name.strip()]
    table, written = run_bench(target, names, rounds, cold, backend, out)
    click.echo(str(table))
    click.echo("written: " + ", ".join(str(path) for path in written))


@main.command()
@click.argument("target", metavar="FILE.py:NAME")
@click.option("--backend", type=click.Choice(["auto", "c", "triton", "interpret"]), default="auto", show_default=True)
def verify(target: str, backend: str) -> None:
    """Hold results and gradients to eager's error against float64; exit 1 when they miss, and name the op."""
    from graphc.cli.verify import run_verify

    report = run_verify(target, backend)
    click.echo(str(report))
    if not report.right:
        sys.exit(1)


@main.command()
def doctor() -> None:
    """Say what this machine has, and try to compile and run something; exit 1 when that fails."""
    from graphc.cli.doctor import examine

    findings = examine()
    for finding in findings:
        click.echo(str(finding))
    if any(finding.level == "fail" for finding in findings):
        sys.exit(1)


@main.group()
def cache() -> None:
    """The disk cache of compiled programs."""


@cache.command("info")
def cache_info() -> None:
    """Where the cache is, how many programs it holds, how many bytes."""
    from graphc.cli.cache import info

    click.echo(info())


@cache.command("clear")
def cache_clear() -> None:
    """Remove every entry."""
    from graphc.cli.cache import clear

    click.echo(clear())
