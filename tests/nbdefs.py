"""Take the reader-built functions out of a notebook without running it.

`lift` finds the top-level `*_naive` functions and whatever they name: other functions, classes, constants
written as literals, imports. It never lifts anything of lowbit_nb, so what is lifted is an independent second
opinion.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Callable
from dataclasses import dataclass, field

from nbformat import NotebookNode

from tests import nbtools

PACKAGE = "lowbit_nb"
FUTURE = "from __future__ import annotations\n"


@dataclass
class Definitions:
    """Top-level definitions of a notebook by name; a later cell's definition replaces an earlier one."""

    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    others: dict[str, ast.stmt] = field(default_factory=dict)
    imports: dict[str, ast.stmt] = field(default_factory=dict)
    of_package: dict[str, ast.stmt] = field(default_factory=dict)

    @property
    def naive(self) -> list[str]:
        return [name for name in self.functions if name.endswith("_naive")]


def parse_cell(cell: NotebookNode) -> ast.Module:
    try:
        return ast.parse(cell.source)
    except SyntaxError as error:
        message = f"cell {cell.id} is not plain Python (no % or ! lines, please): {error}"
        raise AssertionError(message) from None


def is_literal(value: ast.expr | None) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError):
        return False
    return True


def imported(statement: ast.stmt) -> list[tuple[str, str, ast.stmt]]:
    """(bound name, module, a statement importing just that) for each name of an import statement."""
    found = []
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            bound = alias.asname or alias.name.split(".")[0]
            found.append((bound, alias.name, ast.Import([alias])))
    elif isinstance(statement, ast.ImportFrom) and statement.module != "__future__":
        for alias in statement.names:
            one = ast.ImportFrom(statement.module, [alias], statement.level)
            found.append((alias.asname or alias.name, statement.module or "", one))
    return found


def definitions(nb: NotebookNode) -> Definitions:
    found = Definitions()
    for cell in nbtools.code_cells(nb):
        for statement in parse_cell(cell).body:
            if isinstance(statement, ast.FunctionDef):
                found.functions[statement.name] = statement
            elif isinstance(statement, ast.ClassDef):
                found.others[statement.name] = statement
            elif isinstance(statement, ast.Assign | ast.AnnAssign) and is_literal(statement.value):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                found.others.update(
                    {target.id: statement for target in targets if isinstance(target, ast.Name)}
                )
            for bound, module, one in imported(statement):
                place = found.of_package if module.split(".")[0] == PACKAGE else found.imports
                place[bound] = one
    return found


def source_of(statement: ast.stmt) -> str:
    return ast.unparse(ast.fix_missing_locations(statement)) + "\n"


def globals_of(statement: ast.stmt) -> set[str]:
    """Names that a definition takes from outside, builtins included."""

    def walk(table: symtable.SymbolTable) -> set[str]:
        top = table.get_type() == "module"
        found = {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (symbol.is_global() or top) and not (top and symbol.is_assigned())
        }
        return found.union(*map(walk, table.get_children()))

    return walk(symtable.symtable(FUTURE + source_of(statement), "notebook", "exec"))


def uses_package(statement: ast.stmt, found: Definitions) -> set[str]:
    """Names of lowbit_nb that a definition touches, imports inside its body included."""
    inside = {
        module
        for node in ast.walk(statement)
        for _, module, _ in imported(node)
        if module.split(".")[0] == PACKAGE
    }
    return inside | (globals_of(statement) & found.of_package.keys())


def needed(found: Definitions, start: list[str]) -> tuple[dict[str, ast.stmt], dict[str, set[str]]]:
    """Everything `start` names, transitively; and, by definition, the names that nothing defines."""
    known: dict[str, ast.stmt] = {**found.others, **found.imports, **found.functions}
    wanted, lifted, unknown = list(start), {}, {}
    while wanted:
        name = wanted.pop()
        if name in lifted:
            continue
        lifted[name] = known[name]
        if name in found.imports:
            continue
        for other in globals_of(known[name]) - {name}:
            if other in known:
                wanted.append(other)
            elif not hasattr(builtins, other):
                unknown.setdefault(name, set()).add(other)
    return lifted, unknown


def build(statements: dict[str, ast.stmt], found: Definitions) -> dict[str, object]:
    """Execute imports, constants and classes, then functions, in notebook order; return the namespace."""
    order = [*found.imports, *found.others, *found.functions]
    namespace: dict[str, object] = {"__name__": "notebook_definitions"}
    for name in sorted(statements, key=order.index):
        exec(compile(FUTURE + source_of(statements[name]), f"<notebook {name}>", "exec"), namespace)
    return namespace


def lift(nb: NotebookNode) -> dict[str, Callable]:
    """The notebook's `*_naive` functions, ready to call."""
    found = definitions(nb)
    lifted, unknown = needed(found, found.naive)
    assert not unknown, f"naive functions name what only a running notebook has: {unknown}"
    namespace = build(lifted, found)
    return {name: namespace[name] for name in found.naive}


def teaching_namespace(nb: NotebookNode) -> dict[str, object]:
    """What a solution may use: the notebook's imports, of lowbit_nb too, and its naive functions."""
    found = definitions(nb)
    lifted, _ = needed(found, found.naive)
    namespace = build(lifted, found)
    for statement in [*found.imports.values(), *found.of_package.values()]:
        exec(compile(source_of(statement), "<notebook imports>", "exec"), namespace)
    return namespace
