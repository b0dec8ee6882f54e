"""`starloom fsck`: whether what lies on disk is whole."""

import argparse
from pathlib import Path

from starloom.orchestrator.cli.output import Commands, Exit, Output, add_command
from starloom.orchestrator.statefolder import HOME_VARIABLE

_DAMAGE_SHOWN = 50


def add_parsers(commands: Commands) -> None:
    """Adds `fsck`."""
    parser = add_command(commands, "fsck", run_fsck, "check the journal and the stored values, while no cluster runs")
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        metavar="STATE_FOLDER",
        help=f"what to check; unless given, where `starloom up` keeps its state, which {HOME_VARIABLE} moves",
    )


def run_fsck(args: argparse.Namespace, out: Output) -> int:
    """Exit: 0 all is whole, 1 something is damaged, 2 nothing could be checked, as where there is no journal or a cluster runs."""
    import msgspec

    from starloom.orchestrator.fsck import check
    from starloom.orchestrator.statefolder import state_folder

    found = check(args.folder or state_folder())
    out.json({"whole": not found.damage, **msgspec.to_builtins(found)})
    for note in found.notes:
        out.note(f"note: {note}")
    for damage in found.damage[:_DAMAGE_SHOWN]:
        out.text(str(damage))
    if len(found.damage) > _DAMAGE_SHOWN:
        out.text(f"and {len(found.damage) - _DAMAGE_SHOWN} more; --json tells of all")
    out.text(
        f"{found.folder}: {found.records} records up to offset {found.last_offset}, epoch {found.epoch}, "
        f"{found.jobs} jobs, {found.snapshots} snapshots, {found.values} values ({found.value_bytes} bytes), "
        f"{found.orphans} that no job names ({found.orphan_bytes} bytes): "
        f"{f'{len(found.damage)} damaged' if found.damage else 'all is whole'}"
    )
    return Exit.FAILED if found.damage else Exit.DONE
