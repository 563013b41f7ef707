"""Loops of a function with their bodies as functions of their own, so that a loop over data runs one turn at a time.

    def train(loader, net, optimizer):            def train(loader, net, optimizer):
        total = 0.0                                   total = 0.0
        for x, y in loader:                           _items = loader
            optimizer.zero_grad()                     if _loops.is_data(0, _items):
            loss = F.mse_loss(net(x), y)      ->          for x, y in _items:
            loss.backward()                                   _how, _result, _names = _loops.turn(0, locals())
            optimizer.step()                                  if "total" in _names: total = _names["total"]
            total += loss.item()                              if _how == 1: break
        return total                                          if _how == 2: return _result
                                                      else: for x, y in _items: ...   # as written
                                                      return total

                                                  def train_line_3(x, net, y, optimizer, total):
                                                      optimizer.zero_grad()
                                                      ...
                                                      return (0, None, _kept(locals(), ("total",)))

A body is given the names that it reads before it binds them, and hands back those that something reads later: the
analysis of live variables (Aho, Lam, Sethi and Ullman, Compilers, 9.2.5) on Python's syntax tree.
"""

from __future__ import annotations

import ast
import copy
import inspect
import types
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from graphc.frontend.watched import ADDING

LOOPS, KEPT, UNBOUND = "_graphc_loops", "_graphc_kept", "_graphc_unbound"
"""Names that the new functions find what they need under."""
_ITEMS, _HOW, _RESULT, _NAMES = "_graphc_items", "_graphc_how", "_graphc_result", "_graphc_names"
NEXT, BREAK, RETURN = 0, 1, 2
"""How a turn ends."""
_SUPPRESSING = frozenset(("suppress", "raises"))
"""Context managers behind which what they hold may not have run to its end."""
_ON_FRAMES = frozenset(("locals", "vars", "eval", "exec", "super", "dir", "globals"))
"""Functions that look at the frame which calls them."""
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_outer: weakref.WeakKeyDictionary[types.FunctionType, types.CodeType] = weakref.WeakKeyDictionary()
_Bound: TypeAlias = "set[str] | None"
"""Names that are bound at a place for certain; None where nothing comes to."""


@dataclass(frozen=True)
class LoopBody:
    """The body of one loop.

    Args:
        name: of the function that does one turn: it returns how the turn ends, the result of the whole function where
            that is RETURN, and a dict of names.
        reads: names that it is given, in order.
        grows: those of them that are made longer by a method of lists.
        changing: names whose values differ from turn to turn.
        statements: what it does.
        line: of the loop.
        last_line: of what the loop goes through.
        through: names that what it goes through is made of.
    """

    name: str
    reads: tuple[str, ...]
    grows: frozenset[str]
    changing: frozenset[str]
    statements: tuple[ast.stmt, ...]
    line: int
    last_line: int
    through: frozenset[str]


@dataclass(frozen=True)
class SplitFunction:
    """A function whose loops are split.

    Args:
        code: of the function itself; `LOOPS` is a free variable of it.
        bodies: of its loops, by number.
        own: names that the function binds itself, and that are no parameters.
        free: its free variables, as it was written.
        file: where it stands.
    """

    code: types.CodeType
    bodies: tuple[LoopBody, ...]
    own: frozenset[str]
    free: tuple[str, ...]
    file: str

    def body_code(self, number: int, held: frozenset[str] = frozenset()) -> types.CodeType:
        """The function that does a turn; `KEPT` and `UNBOUND` are free variables of it.

        Args:
            number: of the loop.
            held: names that it finds in free variables; the others that it reads are its parameters, in order.
        """
        body = self.bodies[number]
        reads = [name for name in body.reads if name not in held]
        inner = ast.FunctionDef(body.name, _parameters(reads), [*map(_drop_if_unbound, reads), *body.statements], [])
        inner.lineno = inner.end_lineno = body.line
        inner.col_offset = inner.end_col_offset = 0
        return _compiled(inner, [*self.free, *sorted(held), KEPT, UNBOUND], self.file)


def note_outer(turn: types.FunctionType, function: types.FunctionType) -> None:
    """Say that a function does a turn of another one's loop."""
    _outer[turn] = function.__code__


def outer_of(function: Any) -> types.CodeType | None:
    """The function whose loop this one does a turn of: it does not run in the turn, though it is a method of an object
    that is given; None for any other function."""
    return _outer.get(function) if isinstance(function, types.FunctionType) else None


def split_loops(function: types.FunctionType) -> SplitFunction | None:
    """A function with the bodies of its loops as functions.

    Returns:
        None where there is no source, no loop, or something that would not do the same: a generator, private names of
        a class, a function that looks at its frame, names that functions made outside of a loop share with its body.
    """
    code = function.__code__
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return None
    found = _parsed(function)
    if found is None or not _can_split(found):
        return None
    return _Splitter(function, found).run()


def innermost_loop(function: types.FunctionType, line: int) -> LoopBody | None:
    """The loop whose body has a line of a function, if the function can be split; of several the innermost."""
    split = split_loops(function)
    bodies = () if split is None else split.bodies
    found = [b for b in bodies if b.statements[0].lineno <= line <= (b.statements[-1].end_lineno or line)]
    return max(found, key=lambda body: body.line, default=None)


def _parsed(function: types.FunctionType) -> ast.FunctionDef | None:
    """The syntax tree of a function, without decorators, with the lines of its file."""
    code = function.__code__
    try:
        lines, first = inspect.getsourcelines(function)
        is_inside = lines[0][0].isspace()  # of a block; lines of strings must stay as they are
        tree = ast.parse("".join(["if True:\n", *lines] if is_inside else lines))
        block = tree.body[0].body if isinstance(tree.body[0], ast.If) else tree.body
        (found,) = block if len(block) == 1 else (None,)
        if not isinstance(found, ast.FunctionDef) or found.name != function.__name__:
            return None
        ast.increment_lineno(found, first - 1 - is_inside)
        found.decorator_list = []
        inner = _compiled(found, code.co_freevars, code.co_filename)
    except (OSError, SyntaxError, TypeError):
        return None
    # otherwise the file has changed, or it is another function of the name
    return found if inner.co_varnames == code.co_varnames else None


def _can_split(function: ast.FunctionDef) -> bool:
    for node in ast.walk(function):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name.startswith("__") and not name.endswith("__"):
            return False
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _ON_FRAMES:
            return False
        if isinstance(node, (ast.Global, ast.AsyncFor, ast.Await)):  # a body would need declarations of its own
            return False
    return True


class _Splitter:
    """Splits the loops of one function.

    Args:
        function: the function.
        tree: of it.
    """

    def __init__(self, function: types.FunctionType, tree: ast.FunctionDef) -> None:
        self.tree, self.code = tree, function.__code__
        self.locals = frozenset((*self.code.co_varnames, *self.code.co_cellvars))
        self.loads = _Loads(tree)
        self.bodies: list[LoopBody] = []
        self.fails = False

    def run(self) -> SplitFunction | None:
        body = self._block(self.tree.body)
        if self.fails or not self.bodies:
            return None
        given = self.tree.args
        made = ast.FunctionDef(self.tree.name, _without_values(given), body, [])
        ast.copy_location(made, self.tree)
        file, free = self.code.co_filename, self.code.co_freevars
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        own = self.locals - {item.arg for item in arguments if item is not None}
        return SplitFunction(_compiled(made, [*free, LOOPS], file), tuple(self.bodies), own, free, file)

    def _block(self, statements: Sequence[ast.stmt]) -> list[ast.stmt]:
        """The statements with their loops split, those in other statements too."""
        found: list[ast.stmt] = []
        for statement in statements:
            made = copy.copy(statement)
            if not isinstance(statement, _SCOPES):
                for name in ("body", "orelse", "finalbody"):
                    if getattr(made, name, None):
                        setattr(made, name, self._block(getattr(statement, name)))
            if isinstance(statement, ast.Try) and isinstance(made, ast.Try):
                made.handlers = [copy.copy(handler) for handler in statement.handlers]
                for handler in made.handlers:
                    handler.body = self._block(handler.body)
            is_loop = isinstance(statement, ast.For) and isinstance(made, ast.For)
            found += self._loop(statement, made) if is_loop else [made]  # type: ignore[arg-type]
        return found

    def _loop(self, loop: ast.For, as_written: ast.For) -> list[ast.stmt]:
        """A loop that goes turn by turn where its items are data.

        Args:
            loop: as in the function.
            as_written: the same, with the loops in it split.
        """
        targets, stored = _stored([loop.target]), _stored(loop.body)
        if (_captured_outside(self.tree, loop) & (targets | stored)) or stored & set(self.code.co_freevars):
            self.fails = True
        stored &= self.locals
        reads = tuple(sorted(_live(loop.body) & self.locals))
        gives = tuple(sorted(stored & (self.loads.outside(loop) | set(reads))))
        number, name = len(self.bodies), f"{self.tree.name}_line_{loop.lineno}"
        statements = (*_Endings(gives).block(loop.body), _end(NEXT, None, gives))
        grows = _grown(loop.body) & set(reads) - targets - stored
        last_line, through = loop.iter.end_lineno or loop.lineno, self.loads.behind(loop.iter)
        changing = frozenset(targets | stored)
        self.bodies.append(LoopBody(name, reads, grows, changing, statements, loop.lineno, last_line, through))
        turn = [_turn(number), *(_take(give) for give in gives), *_follow()]
        by_turns = ast.For(loop.target, _name(_ITEMS), turn, as_written.orelse)
        plain = ast.For(loop.target, _name(_ITEMS), as_written.body, as_written.orelse)
        is_data = ast.If(_call(LOOPS, "is_data", [ast.Constant(number), _name(_ITEMS)]), [by_turns], [plain])
        split: list[ast.stmt] = [ast.Assign([_name(_ITEMS, ast.Store())], loop.iter), is_data]
        for statement in (*split, by_turns, plain):
            ast.copy_location(statement, loop)
        return split


# what is read and bound


def _stored(nodes: Iterable[ast.AST]) -> set[str]:
    """Names that these bind, but for those of scopes in them."""
    found: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(item.asname or item.name).partition(".")[0] for item in node.names}
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            found.add(node.rest)
        if isinstance(node, _COMPREHENSIONS):  # of these, only what `:=` binds
            walrus = [item.target for item in ast.walk(node) if isinstance(item, ast.NamedExpr)]
            found |= {target.id for target in walrus}
        elif not isinstance(node, _SCOPES):
            waiting += ast.iter_child_nodes(node)
    return found


def _grown(statements: Sequence[ast.stmt]) -> frozenset[str]:
    """Names of what gets longer by a method of lists."""
    return frozenset(
        node.func.value.id
        for statement in statements
        for node in ast.walk(statement)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ADDING
        and isinstance(node.func.value, ast.Name)
    )


def _captured_outside(function: ast.FunctionDef, loop: ast.For) -> set[str]:
    """Names that functions made outside of a loop look up when they are called."""
    inside = {id(node) for statement in loop.body for node in ast.walk(statement)}
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, _SCOPES) and node is not function and id(node) not in inside:
            found |= set(_loads_of(node, frozenset()))
        elif isinstance(node, ast.Nonlocal):
            found |= set(node.names)
    return found


class _Loads:
    """Names that a function reads, and where."""

    def __init__(self, function: ast.FunctionDef) -> None:
        changed = {id(node.target) for node in ast.walk(function) if isinstance(node, ast.AugAssign)}
        self._all = [
            node
            for node in ast.walk(function)
            if isinstance(node, ast.Name) and (isinstance(node.ctx, ast.Load) or id(node) in changed)
        ]
        self._made_of: dict[str, set[str]] = {}
        for node in ast.walk(function):
            pairs: list[tuple[ast.expr, ast.expr]] = []
            if isinstance(node, ast.Assign):
                pairs = [(target, node.value) for target in node.targets]
            elif isinstance(node, ast.NamedExpr):
                pairs = [(node.target, node.value)]
            elif isinstance(node, ast.withitem) and node.optional_vars is not None:
                pairs = [(node.optional_vars, node.context_expr)]
            for target, value in pairs:
                if isinstance(target, ast.Name):
                    self._made_of.setdefault(target.id, set()).update(_parts_of(value))

    def behind(self, expression: ast.expr) -> frozenset[str]:
        """Names that a value is made of, those included that other names of the function stand for."""
        found: set[str] = set()
        waiting = list(_parts_of(expression))
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self._made_of.get(name, ())
        return frozenset(found)

    def outside(self, loop: ast.For) -> set[str]:
        """Names that are read somewhere else than in the body of a loop."""
        inside = {id(node) for statement in loop.body for node in ast.walk(statement)}
        return {node.id for node in self._all if id(node) not in inside}


def _live(statements: Sequence[ast.stmt]) -> set[str]:
    """Names that are read before they are bound for certain."""
    analysis = _Liveness()
    analysis.block(statements, set())
    return analysis.live


class _Liveness:
    """Goes through statements in order with the names that are bound for certain."""

    def __init__(self) -> None:
        self.live: set[str] = set()

    def block(self, statements: Sequence[ast.stmt], bound: set[str]) -> _Bound:
        now: _Bound = set(bound)
        for statement in statements:
            if now is None:  # nothing comes here, though Python would compile it
                now = set()
            now = self._statement(statement, now)
        return now

    def _statement(self, s: ast.stmt, bound: set[str]) -> _Bound:
        if isinstance(s, (ast.Return, ast.Raise, ast.Break, ast.Continue)):
            self._read(s, bound)
            return None
        if isinstance(s, ast.If):
            self._read(s.test, bound)
            return _either(self.block(s.body, bound), self.block(s.orelse, bound))
        if isinstance(s, (ast.For, ast.While)):
            self._read(s.iter if isinstance(s, ast.For) else s.test, bound)
            inside = bound | _stored([s.target]) if isinstance(s, ast.For) else bound
            self.block(s.body, inside)
            self.block(s.orelse, bound)
            return bound
        if isinstance(s, ast.With):
            for item in s.items:
                self._read(item.context_expr, bound)
                bound = bound | (_stored([item.optional_vars]) if item.optional_vars is not None else set())
            after = self.block(s.body, bound)
            return bound if any(_suppresses(item.context_expr) for item in s.items) else after
        if isinstance(s, ast.Try):
            return self._try(s, bound)
        if isinstance(s, ast.Match):
            self._read(s.subject, bound)
            for case in s.cases:
                inside = bound | _stored([case.pattern])
                if case.guard is not None:
                    self._read(case.guard, inside)
                self.block(case.body, inside)
            return bound
        return self._simple(s, bound)

    def _try(self, s: ast.Try, bound: set[str]) -> _Bound:
        after = self.block(s.body, bound)
        ends = [self.block(s.orelse, after) if after is not None else None]
        for handler in s.handlers:
            if handler.type is not None:
                self._read(handler.type, bound)
            ends.append(self.block(handler.body, bound | ({handler.name} if handler.name else set())))
        found = ends[0]
        for end in ends[1:]:
            found = _either(found, end)
        last = self.block(s.finalbody, bound)
        return None if found is None or last is None else found | last

    def _simple(self, s: ast.stmt, bound: set[str]) -> set[str]:
        if isinstance(s, ast.AugAssign) and isinstance(s.target, ast.Name) and s.target.id not in bound:
            self.live.add(s.target.id)
        if isinstance(s, ast.Delete):
            self.live |= {t.id for t in s.targets if isinstance(t, ast.Name)} - bound
            return bound - _stored([s])
        self._read(s, bound)
        return bound | _stored([s])

    def _read(self, node: ast.AST, bound: set[str]) -> None:
        """Reads of an expression or a simple statement; those of functions in it count as made at once."""
        self.live |= set(_loads_of(node, frozenset())) - bound


def _loads_of(node: ast.AST, own: frozenset[str]) -> Iterator[str]:
    """Names that are read in a node, but for those that scopes in it bind themselves."""
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Load) and node.id not in own:
            yield node.id
        return
    if isinstance(node, _COMPREHENSIONS):
        own = own | {name for part in node.generators for name in _stored([part.target])}
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        arguments = node.args
        own = own | {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        own = own | {a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None}
        own = own | (_stored(node.body) if not isinstance(node, ast.Lambda) else set())
    for child in ast.iter_child_nodes(node):
        yield from _loads_of(child, own)


def _parts_of(expression: ast.expr) -> Iterator[str]:
    """Names that an expression reads, but for what it takes the length of."""
    waiting: list[ast.AST] = [expression]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name):
            yield node.id
        elif not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len"):
            waiting += ast.iter_child_nodes(node)


def _suppresses(context: ast.expr) -> bool:
    function = context.func if isinstance(context, ast.Call) else context
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in _SUPPRESSING


def _either(one: _Bound, other: _Bound) -> _Bound:
    if one is None or other is None:
        return one if other is None else other
    return one & other


# new code


class _Endings(ast.NodeTransformer):
    """`continue`, `break` and `return` of a loop's body become returns of the function that does a turn.

    Args:
        gives: names that a turn hands back.
    """

    def __init__(self, gives: tuple[str, ...]) -> None:
        self.gives, self.depth = gives, 0

    def block(self, statements: Sequence[ast.stmt]) -> list[ast.stmt]:
        return [self.visit(copy.deepcopy(statement)) for statement in statements]

    def _scope(self, node: ast.AST) -> Any:
        return node  # with endings of its own

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = _scope

    def _inner(self, node: Any) -> Any:
        """A loop inside: its body's `continue` and `break` are its own."""
        self.depth += 1
        node.body = [self.visit(item) for item in node.body]
        self.depth -= 1
        node.orelse = [self.visit(item) for item in node.orelse]
        return node

    visit_For = visit_While = _inner

    def visit_Continue(self, node: ast.Continue) -> Any:
        return node if self.depth else ast.copy_location(_end(NEXT, None, self.gives), node)

    def visit_Break(self, node: ast.Break) -> Any:
        return node if self.depth else ast.copy_location(_end(BREAK, None, self.gives), node)

    def visit_Return(self, node: ast.Return) -> Any:
        return ast.copy_location(_end(RETURN, node.value, ()), node)


def _end(how: int, value: ast.expr | None, gives: tuple[str, ...]) -> ast.stmt:
    names = ast.Tuple([ast.Constant(name) for name in gives], ast.Load())
    kept = ast.Call(_name(KEPT), [ast.Call(_name("locals"), [], []), names], []) if gives else ast.Dict([], [])
    return ast.Return(ast.Tuple([ast.Constant(how), value or ast.Constant(None), kept], ast.Load()))


def _drop_if_unbound(name: str) -> ast.stmt:
    """A name that was not bound in the function is not bound in the turn either."""
    test = ast.Compare(_name(name), [ast.Is()], [_name(UNBOUND)])
    return ast.If(test, [ast.Delete([_name(name, ast.Del())])], [])


def _turn(number: int) -> ast.stmt:
    target = ast.Tuple([_name(name, ast.Store()) for name in (_HOW, _RESULT, _NAMES)], ast.Store())
    scope = ast.Call(_name("locals"), [], [])
    return ast.Assign([target], _call(LOOPS, "turn", [ast.Constant(number), scope]))


def _take(name: str) -> ast.stmt:
    test = ast.Compare(ast.Constant(name), [ast.In()], [_name(_NAMES)])
    value = ast.Subscript(_name(_NAMES), ast.Constant(name), ast.Load())
    return ast.If(test, [ast.Assign([_name(name, ast.Store())], value)], [])


def _follow() -> list[ast.stmt]:
    def is_how(how: int) -> ast.expr:
        return ast.Compare(_name(_HOW), [ast.Eq()], [ast.Constant(how)])

    return [ast.If(is_how(BREAK), [ast.Break()], []), ast.If(is_how(RETURN), [ast.Return(_name(_RESULT))], [])]


def _name(name: str, context: ast.expr_context | None = None) -> ast.Name:
    return ast.Name(name, context or ast.Load())


def _call(owner: str, method: str, arguments: list[ast.expr]) -> ast.Call:
    return ast.Call(ast.Attribute(_name(owner), method, ast.Load()), arguments, [])


def _parameters(names: Iterable[str]) -> ast.arguments:
    return ast.arguments([], [ast.arg(name) for name in names], None, [], [], None, [])


def _without_values(arguments: ast.arguments) -> ast.arguments:
    """Parameters without annotations, and with no defaults to speak of: these have been evaluated before."""
    made = copy.deepcopy(arguments)
    for item in ast.walk(made):
        if isinstance(item, ast.arg):
            item.annotation = None
    made.defaults = [ast.Constant(None) for _ in made.defaults]
    made.kw_defaults = [None if item is None else ast.Constant(None) for item in made.kw_defaults]
    return made


def _compiled(function: ast.FunctionDef, free: Sequence[str], file: str) -> types.CodeType:
    """The code of a function that may have these free variables."""
    outer = ast.FunctionDef("outer", _parameters(free), [function], [])
    return _inner_code(compile(ast.fix_missing_locations(ast.Module([outer], [])), file, "exec"), function.name)


def _inner_code(code: types.CodeType, name: str) -> types.CodeType:
    """The code of the function with this name, however deep."""
    waiting = [code]
    while waiting:
        for item in waiting.pop().co_consts:
            if isinstance(item, types.CodeType):
                if item.co_name == name:
                    return item
                waiting.append(item)
    raise ValueError(f"no function {name}")
