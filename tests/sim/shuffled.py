"""Runs seeds with every set of Starloom's giving what it holds in an order drawn anew each time, and writes their digests.

A program of its own, for the modules are compiled otherwise here. A process has one order for its sets, by hashes that
come from its seed or from addresses: that two processes agree on some runs says little where few runs have a set whose
order would count.
"""

import ast
import json
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from random import Random
from types import CodeType
from typing import Any

_CHANCE = Random("sets")
_DRAWN = {"set": "shuffled_set", "frozenset": "shuffled_frozenset"}
_GIVE_SETS = (
    *("copy", "union", "intersection", "difference", "symmetric_difference"),
    *("__or__", "__and__", "__sub__", "__xor__", "__ror__", "__rand__", "__rsub__", "__rxor__"),
)
orders = 0
"""How often an order was drawn."""


def _order(items: list[Any]) -> Iterator[Any]:
    global orders
    if len(items) > 1:
        orders += 1
        _CHANCE.shuffle(items)
    return iter(items)


class ShuffledSet(set[Any]):
    def __iter__(self) -> Iterator[Any]:
        return _order(list(super().__iter__()))

    def pop(self) -> Any:
        item = next(iter(self))
        self.discard(item)
        return item


class ShuffledFrozenset(frozenset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return _order(list(super().__iter__()))


def _wrap(kind: Any, name: str) -> None:
    plain = getattr(kind, name)

    def made(self: Any, *others: Any) -> Any:
        found = plain(self, *others)
        return found if found is NotImplemented else kind(found)

    setattr(kind, name, made)


class _Sets(ast.NodeTransformer):
    """Has shuffled sets made wherever a module makes sets; annotations stay."""

    def visit_Set(self, node: ast.Set) -> ast.expr:
        return self._shuffled(node)

    def visit_SetComp(self, node: ast.SetComp) -> ast.expr:
        return self._shuffled(node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        node.func = self._named(node.func)
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        self.generic_visit(node)
        if node.arg == "default_factory":
            node.value = self._named(node.value)
        return node

    def _named(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Name) and node.id in _DRAWN:
            return ast.copy_location(ast.Name(_DRAWN[node.id], ast.Load()), node)
        return node

    def _shuffled(self, node: ast.expr) -> ast.expr:
        self.generic_visit(node)
        return ast.copy_location(ast.Call(ast.Name(_DRAWN["set"], ast.Load()), [node], []), node)


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        tree = _Sets().visit(ast.parse(self.get_data(self.path), self.path))
        code: CodeType = compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)
        return code


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path) if fullname.startswith("starloom") else None
        if found is not None and isinstance(found.loader, SourceFileLoader):
            found.loader = _Loader(found.loader.name, found.loader.path)
        return found


def main(seeds: list[int]) -> None:
    """Writes {"digests": those of the seeds without advice, then with it, "orders": how many were drawn}."""
    import builtins

    for kind in (ShuffledSet, ShuffledFrozenset):
        for name in _GIVE_SETS:
            _wrap(kind, name)
    vars(builtins).update({_DRAWN["set"]: ShuffledSet, _DRAWN["frozenset"]: ShuffledFrozenset})
    sys.meta_path.insert(0, _Finder())

    from starloom.devices.faults import ALL_FAULTS
    from starloom.orchestrator import image
    from starloom.orchestrator.simulate import runs
    from starloom.orchestrator.simulate.world import Setup

    image._SETS.update({ShuffledSet: "set", ShuffledFrozenset: "frozenset"})
    setups = [Setup(nodes=5, stages=15, jobs=2, plan=ALL_FAULTS, advised=advised) for advised in (False, True)]
    digests = [runs.run(seed, setup).digest for setup in setups for seed in seeds]
    sys.stdout.write(json.dumps({"digests": digests, "orders": orders}))


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]])
