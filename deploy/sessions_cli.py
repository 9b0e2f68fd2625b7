"""``eastwest sessions``: list, show, fork, delete, export and import the sessions of a tenant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from deploy.command import DEFAULT_ADDRESS, Address, Tenant, run
from deploy.terminal import console
from deploy.writing import writing
from eastwest.errors import ConfigError, NotFound
from eastwest.sessions_client import SessionDetail, SessionInfo, SessionsClient

sessions_app = typer.Typer(help="Conversations that the deployment keeps.", no_args_is_help=True)

SessionName = Annotated[str, typer.Argument(help="Id of the session.")]


@sessions_app.command("list")
def list_sessions(address: Address = DEFAULT_ADDRESS, tenant: Tenant = "") -> None:
    """Show all sessions of the tenant, with their sizes and ages."""

    async def call() -> None:
        async with SessionsClient(address, tenant=tenant) as client:
            console.print(_table([session async for session in client.list()]))

    run(call())


@sessions_app.command()
def show(session: SessionName, address: Address = DEFAULT_ADDRESS, tenant: Tenant = "") -> None:
    """Show a session, and where its KV is."""

    async def call() -> None:
        async with SessionsClient(address, tenant=tenant) as client:
            console.print(_lines(await client.get(session)), markup=False)

    run(call())


@sessions_app.command()
def fork(
    session: SessionName,
    new: Annotated[str, typer.Argument(help="Id of the other one, which must not exist.")],
    address: Address = DEFAULT_ADDRESS,
    tenant: Tenant = "",
) -> None:
    """Begin another session that has everything that this one has; their KV is kept once."""

    async def call() -> None:
        async with SessionsClient(address, tenant=tenant) as client:
            forked = await client.fork(session, new)
        console.print(f"{forked.id} has {forked.tokens:,} tokens, as {session}", markup=False)

    run(call())


@sessions_app.command()
def delete(session: SessionName, address: Address = DEFAULT_ADDRESS, tenant: Tenant = "") -> None:
    """Forget a session's tokens and messages, and erase its KV."""

    async def call() -> None:
        async with SessionsClient(address, tenant=tenant) as client:
            if not await client.delete(session):
                raise NotFound(f"session {session!r} does not exist; see 'eastwest sessions list'")
        console.print(f"{session} is deleted", markup=False)

    run(call())


@sessions_app.command()
def export(
    session: SessionName,
    output: Annotated[Path, typer.Argument(help="File to write; '-' for standard output.")],
    address: Address = DEFAULT_ADDRESS,
    tenant: Tenant = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write a session to a file that 'import' takes."""
    to_file = str(output) != "-"
    if to_file and output.exists() and not force:
        raise ConfigError(f"{output} exists; allowed: another file, or --force to replace it")

    async def call() -> None:
        async with SessionsClient(address, tenant=tenant) as client:
            data = await client.export(session)
        if to_file:
            with writing(output):
                output.write_bytes(data)
            console.print(f"{session} is in {output}, {len(data):,} bytes", markup=False)
        else:
            sys.stdout.buffer.write(data)

    run(call())


@sessions_app.command("import")
def import_session(
    source: Annotated[Path, typer.Argument(help="File that 'export' wrote; '-' for input.")],
    name: Annotated[str, typer.Option("--as", help="Another id than it had.")] = "",
    address: Address = DEFAULT_ADDRESS,
    tenant: Tenant = "",
) -> None:
    """Begin a session from a file; its KV is computed when it goes on."""
    try:
        data = sys.stdin.buffer.read() if str(source) == "-" else source.read_bytes()
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from error

    async def call() -> None:
        async with SessionsClient(address, tenant=tenant) as client:
            begun = await client.import_(data, name)
        console.print(f"{begun.id} has {begun.tokens:,} tokens", markup=False)

    run(call())


def _table(sessions: list[SessionInfo]) -> Table:
    table = Table(caption=None if sessions else "no sessions", caption_justify="left")
    table.add_column("session")
    for heading in ("kind", "tokens", "messages", "requests", "last used", "model"):
        table.add_column(heading, justify="right")
    for s in sessions:
        table.add_row(
            s.id,
            _kind(s),
            f"{s.tokens:,}",
            f"{s.messages:,}" if s.messages else "",
            f"{s.version:,}",
            f"{_age(s.age_s)} ago",
            "served" if s.model_matches else "another",
        )
    return table


def _lines(detail: SessionDetail) -> str:
    s = detail.session
    messages = f" in {s.messages:,} messages" if s.messages else ""
    lines = [
        f"{s.id}: {_kind(s)}, {s.tokens:,} tokens{messages}, last used {_age(s.age_s)} ago",
        f"KV of all of it: {detail.kv_bytes / (1 << 20):,.1f} MiB",
        f"in the store: {detail.stored_tokens:,} tokens",
    ]
    lines += [f"on {worker}: {tokens:,} tokens" for worker, tokens in detail.workers.items()]
    if not s.model_matches:
        lines.append("its tokens are of another model: it goes on from its messages")
    return "\n".join(lines)


def _kind(session: SessionInfo) -> str:
    return "chat" if session.messages else "text"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
