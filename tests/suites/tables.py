"""Tallies of suites put together: as JSON from process to process, and as a page of documentation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tests.suites.verdicts import COLUMNS, COMPILED, REFUSED, RIGHT, WRONG, Tally, Verdict, grouped, row

HEAD = """# What agrees with eager PyTorch

Written by `make suites`: samples of PyTorch's own test databases, compiled and in eager. Right is what has eager's
structure, dtypes, strides and values (integers exactly; floats as close as `torch.testing.assert_close` asks, or with
an error against float64 of at most twice eager's own and four units in the last place), or raises an error of the same
class. Where all digits cancel, eager's own error may be small by chance: samples for which it is taken as its largest
in 16 runs whose calls are rounded at random (Monte Carlo arithmetic) are named below the table. Programs that run op by
op, and errors, are counted among what is right. A suite takes all samples that the databases have, unless its name says
how many of each operator. Seconds are of one CPU core.

"""


def save(tallies: list[Tally], path: Path) -> None:
    """Write tallies as JSON."""
    path.write_text(json.dumps([dataclasses.asdict(tally) for tally in tallies]))


def load(path: Path) -> list[Tally]:
    """Read what `save` wrote."""
    return [
        Tally(each["suite"], [Verdict(**{**v, "externs": tuple(v["externs"])}) for v in each["verdicts"]],
              each["seconds"], each["notes"])
        for each in json.loads(path.read_text())
    ]  # fmt: skip


def merged(tallies: list[Tally]) -> list[Tally]:
    """Parts of one suite made one, suites in the order of their first parts."""
    suites: dict[str, Tally] = {}
    for part in tallies:
        whole = suites.setdefault(part.suite, Tally(part.suite))
        whole.verdicts += part.verdicts
        whole.seconds += part.seconds
        whole.notes += part.notes
    return list(suites.values())


def fused(tally: Tally) -> tuple[int, int]:
    """(operators with no ATen call left in any of their programs, operators), of a suite that was explained."""
    whole: dict[str, bool] = {}
    for verdict in tally.verdicts:
        name = verdict.name.rpartition("[")[0]
        good = verdict.kind == RIGHT and verdict.how == COMPILED and not verdict.externs
        whole[name] = whole.get(name, True) and good
    return sum(whole.values()), len(whole)


def markdown(tallies: list[Tally], notes: list[str]) -> str:
    """The table with what was refused, and why."""
    lines = [
        *HEAD.splitlines(),
        f"| {' | '.join(COLUMNS)} |", f"|---|{'---:|' * (len(COLUMNS) - 1)}",
        *(f"| {' | '.join(row(tally))} |" for tally in tallies), "", *(f"{note}\n" for note in notes),
    ]  # fmt: skip
    for title, kind in (("Refused", REFUSED), ("Wrong", WRONG)):
        found = [(tally, group) for tally in tallies for group in grouped(tally, kind)]
        if found:
            lines += [f"## {title}", "", "| suite | samples | of | reason |", "|---|---:|---|---|"]
            lines += [
                f"| {tally.suite} | {count} | {', '.join(f'`{name}`' for name in names)} | {_cell(reason)} |"
                for tally, (reason, count, names) in found
            ]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    return text.partition("\n")[0].replace("|", "\\|")  # behind it comes the line of the program, a path
