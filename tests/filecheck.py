"""Text tests in the manner of LLVM's FileCheck, which also run.

A `.ir` file holds cases, separated by lines `// -----`. A case is a graph and comments:

    // NAME: a title                      (optional)
    // RUN: canonicalize, dce             passes, in order
    // COMPARE: close                     numbers within the numerics contract; left out: bit for bit
    // CHECK: %2: f32[4] = add(%x, 1.0)   a line of the output, after the last match, contains this
    // CHECK-NEXT: return %2              the line right after the last match contains this
    // CHECK-SAME: # a.py:3               the rest of the last matched line contains this
    // CHECK-NOT: mul                     no line between the matches around it contains this

In patterns, runs of spaces are equal, `{{...}}` is a regular expression, `[[name:regex]]` matches and remembers, and
`[[name]]` matches what was remembered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_DIRECTIVE = re.compile(r"\s*//\s*(NAME|RUN|COMPARE|CHECK|CHECK-NEXT|CHECK-SAME|CHECK-NOT):\s*(.*?)\s*$")
_SPECIAL = re.compile(r"\{\{(.+?)\}\}|\[\[([A-Za-z_]\w*)(?::(.+?))?\]\]")


@dataclass
class Case:
    """One case of a file.

    Args:
        name: file name, and number or title.
        text: the graph.
        passes: names of the passes to run.
        close: compare by the numerics contract, not bit for bit.
        checks: (directive, pattern, line number in the file).
    """

    name: str
    text: str = ""
    passes: tuple[str, ...] = ()
    close: bool = False
    checks: list[tuple[str, str, int]] = field(default_factory=list)


def load(path: Path) -> list[Case]:
    """The cases of a file."""
    cases = [Case(f"{path.stem}-1")]
    for number, line in enumerate(path.read_text().split("\n"), 1):
        if line.strip().startswith("// -----"):
            cases.append(Case(f"{path.stem}-{len(cases) + 1}"))
            continue
        case, match = cases[-1], _DIRECTIVE.match(line)
        if match is None:
            assert not line.strip().startswith("//"), f"{path}:{number}: no such directive: {line.strip()}"
            case.text += line + "\n"
            continue
        directive, content = match.groups()
        if directive == "NAME":
            case.name = f"{path.stem}-{content.replace(' ', '-')}"
        elif directive == "RUN":
            case.passes = tuple(part.strip() for part in content.split(","))
        elif directive == "COMPARE":
            case.close = content == "close"
        else:
            case.checks.append((directive, content, number))
    return [case for case in cases if case.text.strip()]


def check(output: str, checks: Iterable[tuple[str, str, int]]) -> None:
    """Assert that `output` satisfies the directives, in order; the message shows the output."""
    lines = [" ".join(line.split()) for line in output.split("\n")]
    captured: dict[str, str] = {}
    position, column, refused = -1, 0, []
    for directive, pattern, number in checks:
        place = f"line {number}: {directive}: {pattern}\nin:\n{output}"
        if directive == "CHECK-NOT":
            refused.append((pattern, place))
            continue
        if directive == "CHECK-SAME":
            match = _compile(pattern, captured).search(lines[position], column)
            assert match is not None, f"not on the line matched before: {place}"
            found = position
        else:
            candidates = range(position + 1, len(lines))
            if directive == "CHECK-NEXT":
                candidates = range(position + 1, min(position + 2, len(lines)))
            expression = _compile(pattern, captured)
            matches = ((line, expression.search(lines[line])) for line in candidates)
            found, match = next(((line, m) for line, m in matches if m is not None), (-1, None))
            assert match is not None, f"not found after line {position + 1}: {place}"
        _refuse(lines[position + 1 : found], refused, captured)
        refused, position, column = [], found, match.end()
        captured.update({name: text for name, text in match.groupdict().items() if text is not None})
    _refuse(lines[position + 1 :], refused, captured)


def _refuse(lines: list[str], refused: list[tuple[str, str]], captured: dict[str, str]) -> None:
    for pattern, place in refused:
        expression = _compile(pattern, captured)
        for line in lines:
            assert not expression.search(line), f"found {line!r}: {place}"


def _compile(pattern: str, captured: dict[str, str]) -> re.Pattern[str]:
    parts, end = [], 0
    for match in _SPECIAL.finditer(pattern):
        parts.append(_literal(pattern[end : match.start()]))
        expression, name, definition = match.groups()
        if expression is not None:
            parts.append(f"(?:{expression})")
        elif definition is not None:
            parts.append(f"(?P<{name}>{definition})")
        else:
            assert name in captured, f"[[{name}]] was never matched: {pattern}"
            parts.append(re.escape(captured[name]))
        end = match.end()
    parts.append(_literal(pattern[end:]))
    return re.compile("".join(parts))


def _literal(text: str) -> str:
    return r"\s+".join(re.escape(part) for part in re.split(r"\s+", text))
