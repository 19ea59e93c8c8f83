"""The uses of TensorRT in a program, read from its source, and whether the bindings have them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.runtimes.tensorrt_bindings import Bindings, accepts

MODULE = ""


@dataclass(frozen=True)
class Use:
    """One mention of a member: ``call`` is None unless it is called, and then holds the arguments."""

    owner: str
    member: str
    line: int
    written: bool
    call: ast.Call | None

    def __str__(self) -> str:
        return f"line {self.line}: {'.'.join(filter(None, ('tensorrt', self.owner, self.member)))}"


def problems(source: str, classes: Mapping[str, str], bindings: Bindings) -> list[str]:
    """One sentence for each use of TensorRT that the bindings do not allow, or that cannot be judged.

    Args:
        source: of the program.
        classes: expression in the source -> class of TensorRT that its value is an instance of; MODULE for the module.
    """
    program = Program(ast.parse(source), classes)
    found = [f"{name} is in the table but not in the source" for name in classes if not program.has(name)]
    found += program.unknown()
    for use in program.uses():
        found += _misuse(use, bindings)
    found += _wrong_classes(program, bindings)
    found += _wrong_overrides(program, bindings)
    return list(dict.fromkeys(found))


@dataclass
class Program:
    """A parsed source with the table of what is TensorRT's in it."""

    tree: ast.Module
    classes: Mapping[str, str]
    _parents: dict[ast.AST, ast.AST] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in ast.walk(self.tree):
            self._parents.update((child, node) for child in ast.iter_child_nodes(node))

    def has(self, expression: str) -> bool:
        return any(isinstance(node, ast.expr) and ast.unparse(node) == expression for node in ast.walk(self.tree))

    def owner(self, expression: ast.expr) -> str | None:
        """The class whose members ``expression.x`` are; None if it is not known to be TensorRT's."""
        if (known := self.classes.get(ast.unparse(expression))) is not None:
            return known
        if isinstance(expression, ast.Attribute) and self.owner(expression.value) == MODULE:
            return expression.attr
        if ast.unparse(expression) == "super()":
            derived: ast.AST = expression
            while not isinstance(derived, ast.ClassDef):
                derived = self._parents[derived]
            return next(filter(None, map(self.owner, derived.bases)), None)
        return None

    def uses(self) -> Iterator[Use]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and (owner := self.owner(node.value)) is not None:
                parent = self._parents[node]
                call = parent if isinstance(parent, ast.Call) and parent.func is node else None
                yield Use(owner, node.attr, node.lineno, isinstance(node.ctx, ast.Store), call)

    def unknown(self) -> Iterator[str]:
        """Members asked of something that comes from TensorRT, or may, but whose class the table does not give."""
        functions = [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)]
        shared = self._shared(functions)
        for function in functions:
            arguments = ast.walk(function.args)
            untyped = {node.arg for node in arguments if isinstance(node, ast.arg) and _is_untyped(node)}
            names = self._bound(function, shared | untyped)
            for node in ast.walk(function):
                known = not isinstance(node, ast.Attribute) or self.owner(node.value) is not None
                if not known and self._foreign(node.value, names):
                    yield f"line {node.lineno}: {ast.unparse(node.value)} has no class in the table"

    def assignments(self) -> Iterator[tuple[str, ast.Attribute, str]]:
        """Target, called or read member and its owner, for each ``target = owner.member`` and ``owner.member(...)``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                value = node.value.body if isinstance(node.value, ast.IfExp) else node.value
                member = value.func if isinstance(value, ast.Call) else value
                if isinstance(member, ast.Attribute) and (owner := self.owner(member.value)) is not None:
                    yield ast.unparse(node.targets[0]), member, owner

    def _shared(self, functions: list[ast.FunctionDef]) -> set[str]:
        """Attributes and functions whose value comes from TensorRT; other names are those of one function."""
        own = {function.name for function in functions}
        shared, before = set[str](), -1
        while len(shared) > before:
            before = len(shared)
            for function in functions:
                shared |= {name for name in self._bound(function, shared) if "." in name or name in own}
        return shared

    def _bound(self, scope: ast.AST, known: set[str]) -> set[str]:
        """Names, attributes and methods whose value comes from TensorRT, however many assignments away."""
        names, before = set(known), -1
        while len(names) > before:
            before = len(names)
            for node in ast.walk(scope):
                for target, value in _assigned(node):
                    if self._foreign(value, names):
                        names.update(_names(target))
                if isinstance(node, ast.FunctionDef) and any(
                    isinstance(part, ast.Return) and part.value and self._foreign(part.value, names)
                    for part in ast.walk(node)
                ):
                    names |= {node.name, f"self.{node.name}"}
        return names

    def _foreign(self, value: ast.AST, names: set[str]) -> bool:
        """Whether a value is TensorRT's, or a member, result or element of what is."""
        if isinstance(value, ast.expr) and (ast.unparse(value) in names or self.owner(value) is not None):
            return True
        inner: list[ast.expr]
        match value:
            case ast.Attribute() | ast.Subscript() | ast.Starred() | ast.NamedExpr() | ast.Await():
                inner = [value.value]
            case ast.Call():
                inner = [value.func]
            case ast.IfExp():
                inner = [value.body, value.orelse]
            case ast.BoolOp():
                inner = value.values
            case ast.Tuple() | ast.List() | ast.Set():
                inner = value.elts
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                inner = [value.elt]
            case _:
                inner = []
        return any(self._foreign(part, names) for part in inner)


def _assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    match node:
        case ast.Assign():
            yield from ((target, node.value) for target in node.targets)
        case ast.For() | ast.comprehension():
            yield node.target, node.iter
        case ast.NamedExpr():
            yield node.target, node.value
        case ast.AnnAssign(value=ast.expr()):
            yield node.target, node.value  # type: ignore[misc]
        case ast.withitem(optional_vars=ast.expr()):
            yield node.optional_vars, node.context_expr  # type: ignore[misc]


def _names(target: ast.expr) -> Iterator[str]:
    match target:
        case ast.Tuple() | ast.List():
            for part in target.elts:
                yield from _names(part)
        case ast.Starred() | ast.Subscript():
            yield from _names(target.value)
        case _:
            yield ast.unparse(target)


def _is_untyped(argument: ast.arg) -> bool:
    """TensorRT has no types, so whatever comes from it is passed as Any."""
    annotation = "Any" if argument.annotation is None else ast.unparse(argument.annotation)
    return annotation == "Any" and argument.arg not in ("self", "cls")


def _misuse(use: Use, bindings: Bindings) -> list[str]:  # noqa: PLR0911  one way to be wrong after the other
    member = bindings.members.get(use.owner, {}).get(use.member)
    if member is None:
        return [f"{use} does not exist in {bindings.version}"]
    kind = member["kind"]
    if use.written:
        allowed = kind == "property" and member["writable"]
        return [] if allowed else [f"{use} cannot be set in {bindings.version}"]
    if use.call is None:
        return [f"{use} is a method and not called"] if kind == "method" else []
    if kind not in ("method", "class"):
        return [f"{use} cannot be called in {bindings.version}"]
    overloads = bindings.signatures(*((use.member, "__init__") if kind == "class" else (use.owner, use.member)))
    keywords = {keyword.arg: None for keyword in use.call.keywords}
    if None in keywords or any(isinstance(argument, ast.Starred) for argument in use.call.args):
        return [f"{use}: spell out the arguments, so that they can be compared"]
    if any(accepts(signature, *use.call.args, **keywords) for signature in overloads):
        return []
    accepted = " or ".join(map(str, overloads)) or "nothing that its docstring tells"
    return [f"{use}: `{ast.unparse(use.call)}` in {bindings.version}, which takes {accepted}"]


def _wrong_classes(program: Program, bindings: Bindings) -> Iterator[str]:
    """Entries of the table that contradict what the bindings say a call returns."""
    for target, member, owner in program.assignments():
        claimed = program.classes.get(target)
        description = bindings.members.get(owner, {}).get(member.attr)
        if claimed in (None, MODULE) or description is None:
            continue
        is_class = description["kind"] == "class"
        actual = member.attr if is_class else bindings.result_class(owner, member.attr)
        if actual != claimed:
            yield f"line {member.lineno}: {target} is a {claimed} in the table, but {actual} in {bindings.version}"


def _wrong_overrides(program: Program, bindings: Bindings) -> Iterator[str]:
    """Methods of a class derived from one of TensorRT's that would be called with other arguments."""
    classes = [node for node in ast.walk(program.tree) if isinstance(node, ast.ClassDef)]
    for base, function in ((base, node) for kind in classes for base in kind.bases for node in kind.body):
        owner = program.owner(base)
        if not owner or not isinstance(function, ast.FunctionDef) or function.name == "__init__":
            continue
        if function.name in bindings.members.get(owner, {}):
            own = [argument.arg for argument in function.args.args[1:]]
            for signature in bindings.signatures(owner, function.name):
                if own != list(signature.parameters):
                    yield f"line {function.lineno}: {function.name}({', '.join(own)}) overrides {signature}"
