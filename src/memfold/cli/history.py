"""``memfold revisions``, ``fork``, ``rollback``, ``forget``, ``skip``, ``rebuild``, ``verify`` and ``operations``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from memfold.api.errors import DeadlineError, InvalidFieldError
from memfold.api.values import Memory, Revision, Role
from memfold.cli.asking import Yes, agreed, selection
from memfold.cli.group import FAILURE
from memfold.cli.memories import AsJson, Name
from memfold.cli.options import connect
from memfold.cli.output import console, iso_time, print_json, print_table, printable, say
from memfold.cli.receipts import as_dict, sentences
from memfold.cli.values import key_value

if TYPE_CHECKING:  # brings gRPC, see options
    from memfold.client import Memfold, Operation

_SECONDS = len("2026-01-01T00:00:00")
_DIGEST_SHOWN = 12
_RANGE = re.compile(r"(?P<first>[1-9][0-9]{0,17})(?:[-:](?P<last>[1-9][0-9]{0,17}))?")

Timeout = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Wait so long for its end; it goes on after.")]


def revisions(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """List the revisions at which a state is kept: what `fork` and `rollback` reach at once."""
    with connect(context) as client:
        kept = client.revisions(name)
    if as_json:
        print_json([as_dict(revision) for revision in kept])
        return
    if not kept:
        say(console(), "no state yet")
        return
    table = Table("revision", "committed (UTC)", "log digest", "state digest", box=None)
    for one in kept:
        digests = (one.log_digest.hex()[:_DIGEST_SHOWN], one.state_digest.hex()[:_DIGEST_SHOWN])
        table.add_row(str(one.revision), iso_time(one.commit_ms)[:_SECONDS], *digests)
    print_table(console(), table, whole=("revision",))


def fork(
    context: typer.Context,
    name: Name,
    new: Annotated[str, typer.Argument(metavar="NEW", help="The copy's name.")],
    at: Annotated[str, typer.Option(metavar="REVISION", help="Copy as it was here: a revision or its number.")] = "",
    timeout: Timeout = 60,
    as_json: AsJson = False,
) -> None:
    """Copy a memory, as it is or as it was at a revision."""
    place = _place(at, "--at") if at else None
    with connect(context) as client:
        revision = _revision(client.get_memory(name), place) if place is not None else None
        _report(client, client.fork(name, new, at=revision), timeout, as_json)


def rollback(
    context: typer.Context,
    name: Name,
    to: Annotated[str, typer.Argument(metavar="REVISION", help="A revision, or its number.")],
    yes: Yes = False,
    timeout: Timeout = 60,
    as_json: AsJson = False,
) -> None:
    """Take a memory back to a revision. Later turns are gone for good."""
    agreed(yes)
    place = _place(to, "REVISION")
    with connect(context) as client:
        memory = client.get_memory(name)
        revision = _revision(memory, place)
        agreed(yes, f"Take {memory.name} back from turn {memory.head} to turn {revision.sequence}?")
        operation = client.rollback(name, revision, expected_revision=None if yes else memory.revision)
        _report(client, operation, timeout, as_json)


def forget(
    context: typer.Context,
    name: Name,
    ids: Annotated[
        list[str] | None, typer.Option("--ids", "--id", metavar="ID", help="This turn; may be repeated.")
    ] = None,
    range_: Annotated[str, typer.Option("--range", metavar="FIRST[-LAST]", help="The turns with these numbers.")] = "",
    match: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Turns with this metadata; repeated: with all of it.")
    ] = None,
    role: Annotated[Role | None, typer.Option(help="Turns of this role.")] = None,
    speaker: Annotated[str, typer.Option(metavar="NAME", help="Turns by this speaker.")] = "",
    include_forks: Annotated[bool, typer.Option("--include-forks", help="Forget them in copies of it too.")] = False,
    yes: Yes = False,
    timeout: Timeout = 60,
    as_json: AsJson = False,
) -> None:
    """Forget turns as if they had never been there: log, states, files. Cannot be undone.

    Select them by `--ids`, by `--range`, or by what was said about them: `--match`, `--role` and `--speaker`, of which all
    that are given must fit. Prints the receipt.
    """
    metadata = dict(key_value(text, "--match") for text in match or ())
    sequences = _range(range_)
    if ids and "" in ids:
        raise typer.BadParameter("no turn's id is empty", param_hint="--ids")
    if bool(ids) + bool(sequences) + bool(metadata or role or speaker) != 1:
        raise typer.BadParameter("select turns in one way: by --ids, by --range, or by --match, --role and --speaker")
    agreed(yes)
    with connect(context) as client:
        memory = client.get_memory(name)
        which = selection(ids or (), range_, metadata, role, speaker)
        agreed(yes, f"Forget {which} of {memory.name}{' and of its copies' if include_forks else ''} for good?")
        operation = client.forget(
            name,
            ids=ids or (),
            sequences=sequences,
            metadata=metadata,
            role=role,
            speaker=speaker,
            include_forks=include_forks,
        )
        _report(client, operation, timeout, as_json)


def skip(
    context: typer.Context,
    name: Name,
    sequence: Annotated[int, typer.Argument(min=1, metavar="TURN", help="Its number in the log.")],
    as_json: AsJson = False,
) -> None:
    """Leave a turn out of the state, so that a quarantined memory goes on behind it. The turn stays in the log."""
    with connect(context) as client:
        revision = client.skip_turn(name, sequence)
    if as_json:
        print_json({"revision": str(revision)})
    else:
        say(console(), f"turn {sequence} will not be folded; the log is at {revision}")


def rebuild(
    context: typer.Context,
    name: Name,
    fingerprint: Annotated[
        str,
        typer.Option(
            metavar="HEX",
            help="The model's fingerprint, as `memfold show` prints it; else the model that new memories get.",
        ),
    ] = "",
    timeout: Timeout = 600,
    as_json: AsJson = False,
) -> None:
    """Fold a memory's log with another model, and exchange the models once it has caught up."""
    with connect(context) as client:
        _report(client, client.rebuild(name, fingerprint=fingerprint), timeout, as_json)


def verify(context: typer.Context, name: Name, timeout: Timeout = 600, as_json: AsJson = False) -> None:
    """Prove that the state is that of the log: check its digests, and fold it again. Exit code 1 where it is not."""
    from memfold.client import VerifyReceipt  # noqa: PLC0415 - see above

    with connect(context) as client:
        done = _report(client, client.verify(name), timeout, as_json)
    if isinstance(done.receipt, VerifyReceipt) and not done.receipt.ok:
        raise typer.Exit(FAILURE)


def operations(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """List the operations of a memory, the newest first."""
    with connect(context) as client:
        found = list(client.operations(name))
    if as_json:
        print_json([as_dict(operation) for operation in found])
        return
    if not found:
        say(console(), "no operations")
        return
    table = Table("operation", "kind", "accepted (UTC)", "stands", box=None)
    for one in found:
        accepted = iso_time(one.create_ms)[:_SECONDS]
        table.add_row(one.name.rpartition("/")[2], str(one.kind), accepted, printable(_stands(one)))
    print_table(console(), table, whole=("operation",))


def _stands(operation: Operation) -> str:
    if operation.error is not None:
        return f"failed: {operation.error.message}"
    if operation.done:
        return "done"
    how_far = f", {operation.completed} of {operation.total}" if operation.total else ""
    return f"{operation.stage or 'accepted'}{how_far}"


def _report(client: Memfold, operation: Operation, timeout: float, as_json: bool) -> Operation:
    """Wait for an operation and print its receipt."""
    try:
        done = client.wait_operation(operation, timeout_s=timeout) if not operation.done else operation.settled()
    except DeadlineError as error:
        raise DeadlineError(f"{error.message}; it goes on, memfold operations tells how far it is") from None
    if as_json:
        print_json(as_dict(done))
    else:
        for line in sentences(done.receipt):
            say(console(), printable(line))
    return done


def _place(text: str, option: str) -> Revision | int:
    """A revision by its token, or the number of one."""
    if re.fullmatch("[0-9]{1,18}", text):
        return int(text)
    try:
        return Revision.parse(text)
    except InvalidFieldError:
        raise typer.BadParameter(
            f"{text!r} is neither a revision, such as 0123456789ab.7, nor its number; memfold revisions lists those kept",
            param_hint=option,
        ) from None


def _revision(memory: Memory, place: Revision | int) -> Revision:
    return Revision(memory.incarnation, place) if isinstance(place, int) else place


def _range(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    found = _RANGE.fullmatch(text)
    if found is None or int(found["last"] or found["first"]) < int(found["first"]):
        raise typer.BadParameter(f"{text!r} is not of the form FIRST or FIRST-LAST", param_hint="--range")
    return int(found["first"]), int(found["last"] or found["first"])
