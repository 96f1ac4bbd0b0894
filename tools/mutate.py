"""Write the mutants of a module as lines of JSON, in an order that a seed decides: mutmut's changes, and others.

Run by the Python that has mutmut, .venvs/mutants. mutmut's own runner is not used: it leaves out decorated functions
and everything outside of functions, counts no test that starts the exporter as a process, and removes neither
statements nor locks.
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import libcst as cst
from libcst import matchers
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string


def without_context(node: cst.With) -> Iterator[cst.CSTNode]:
    """Run the body without its context, such as a lock, where the body does not use what the context gives."""
    if not any(item.asname for item in node.items):
        yield cst.If(cst.Name("True"), node.body, leading_lines=node.leading_lines)


def without_effect(node: cst.Expr) -> Iterator[cst.CSTNode]:
    """Leave out a call whose result is not used."""
    if matchers.matches(node.value, matchers.Call() | matchers.Await()):
        yield cst.Pass()


def without_raise(_node: cst.Raise) -> Iterator[cst.CSTNode]:
    """Leave out a raise."""
    yield cst.Pass()


def without_result(node: cst.Return) -> Iterator[cst.CSTNode]:
    """Return None."""
    if node.value is not None and not matchers.matches(node.value, matchers.Name("None")):
        yield node.with_changes(value=cst.Name("None"))


def negated(node: cst.If | cst.While | cst.CompIf) -> Iterator[cst.CSTNode]:
    """Negate the condition."""
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


def marked(node: cst.BaseString) -> Iterator[cst.CSTNode]:
    """Change a text in one way instead of mutmut's three."""
    yield from list(operator_string(node))[:1]


OPERATORS = [
    *((kind, operator) for kind, operator in mutation_operators if operator is not operator_string),
    (cst.BaseString, marked),
    (cst.With, without_context),
    (cst.Expr, without_effect),
    (cst.Raise, without_raise),
    (cst.Return, without_result),
    ((cst.If, cst.While, cst.CompIf), negated),
]
# What only type checkers and readers see, and what runs at the import: a wrong decorator fails every test.
LEFT_OUT = (
    matchers.Annotation()
    | matchers.Decorator()
    | matchers.Import()
    | matchers.ImportFrom()
    | matchers.If(test=matchers.Name("TYPE_CHECKING"))
)


def walk(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Yield a node and all below it that may be changed."""
    if not matchers.matches(node, LEFT_OUT):
        yield node
        for child in node.children:
            yield from walk(child)


def compiles(source: str) -> bool:
    """Return whether this compiles."""
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def main(arguments: Sequence[str]) -> None:
    """Write the number of changes, then each mutant that compiles and differs from those before it.

    The arguments are the module's file and the seed.
    """
    file, seed = arguments
    wrapper = MetadataWrapper(cst.parse_module(Path(file).read_text(encoding="utf-8")), unsafe_skip_copy=True)
    module, positions = wrapper.module, wrapper.resolve(PositionProvider)
    nodes = list(walk(module))
    random.Random(seed).shuffle(nodes)  # noqa: S311 - a sample, no secret
    kinds = [
        [(node, changed) for node in nodes if isinstance(node, kind) for changed in operator(node)]
        for kind, operator in OPERATORS
    ]
    print(sum(map(len, kinds)))
    seen = {module.code}
    # One of each kind in turn: half of all changes are those of arguments.
    for node, changed in filter(None, chain.from_iterable(zip_longest(*kinds))):
        source: str = module.deep_replace(node, changed).code
        if source not in seen and compiles(source):
            print(json.dumps({"line": positions[node].start.line, "source": source}), flush=True)
        seen.add(source)


if __name__ == "__main__":
    main(sys.argv[1:])
