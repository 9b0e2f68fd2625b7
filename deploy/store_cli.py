"""``eastwest store``: what the offline store holds, whether it is sound, and sweeping it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from deploy.command import (
    DEFAULT_ADDRESS,
    INTERRUPTED,
    Address,
    ConfigPath,
    Settings,
    Tenant,
    configured,
    run,
)
from deploy.terminal import console
from eastwest.blocks import cache_salt, owner_of
from eastwest.config import StoreConfig
from eastwest.errors import ConfigError, CorruptData
from kv_store.accounts import Quotas
from kv_store.books import OwnerUse
from kv_store.survey import FormUse, Survey, Swept, Usage, surveying

# A question may be of hundreds of blocks.
_TIMEOUT_S = 60.0

store_app = typer.Typer(
    help="The offline store of inactive sessions, on a server of its own (store.url).",
    no_args_is_help=True,
)


@store_app.command()
def status(
    config: ConfigPath = None,
    settings: Settings = None,
    tenant: Annotated[
        list[str] | None, typer.Option(help="Show this one by its name; may be given again.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For machines; bytes and seconds.")
    ] = False,
) -> None:
    """Show what is stored and whose it is, how long it will be, and what the server makes of it."""

    async def call() -> None:
        store = configured(config, settings).store
        async with _survey(config, settings) as survey:
            usage = await survey.usage()
        if as_json:
            console.print_json(json.dumps({**asdict(usage), "payload": usage.payload}))
            return
        if usage.forms:
            console.print(_table(usage.forms))
        if usage.owners:
            names = ("", *store.tenant_quotas, *(tenant or ()))
            console.print(_owners(usage.owners, Quotas.of_config(store), names))
        console.print(_lines(usage), markup=False)

    run(call())


@store_app.command()
def verify(
    config: ConfigPath = None,
    settings: Settings = None,
    remove: Annotated[bool, typer.Option(help="Remove the blocks that are damaged.")] = False,
) -> None:
    """Read every stored block, and hold it against its checksums."""

    async def call() -> None:
        async with _survey(config, settings) as survey:
            found = await survey.verify(remove=remove)
        console.print(f"{found.blocks:,} blocks of {_bytes(found.bytes)} were read", markup=False)
        if found.unfinished:
            console.print(
                f"{found.unfinished:,} others have expired meanwhile, or lack something: "
                "'eastwest store sweep' removes those",
                markup=False,
            )
        for name, why in found.damaged.items():
            console.print(f"{name}: {why}", markup=False, soft_wrap=True)
        if found.damaged and not remove:
            raise CorruptData(
                f"{len(found.damaged)} blocks are damaged; nothing reads them, and --remove "
                "removes them"
            )

    run(call())


@store_app.command()
def sweep(
    config: ConfigPath = None,
    settings: Settings = None,
    form: Annotated[
        str, typer.Option(help="Remove all blocks of this form, as 'status' names it.")
    ] = "",
) -> None:
    """Remove what is left of blocks that are not whole, and settle accounts; or remove all blocks
    of one form."""

    async def call() -> None:
        async with _survey(config, settings) as survey:
            swept: Swept = await (survey.drop(form) if form else survey.sweep())
        console.print(f"{swept.keys:,} keys of {_bytes(swept.bytes)} are removed", markup=False)
        if swept.settled:
            console.print(f"{swept.settled:,} entries of accounts were not right, and are now")

    run(call())


@store_app.command("ingest")
def ingest_command(
    files: Annotated[list[Path], typer.Argument(help="UTF-8 text, a document each.")],
    address: Address = DEFAULT_ADDRESS,
    tenant: Tenant = "",
    chat: Annotated[
        bool, typer.Option(help="As the system message of chats, not as the beginning of prompts.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Until the store has all of it.")] = False,
) -> None:
    """Compute the KV of documents ahead of time: what begins with them later starts warm."""
    from deploy.ingest import Ingested, ingest, read_documents, until_stored

    documents = read_documents(files)

    def told(one: Ingested) -> None:
        console.print(
            f"{one.document.path}: {one.tokens:,} tokens, {one.computed:,} of them computed",
            markup=False, soft_wrap=True,
        )  # fmt: skip

    async def call() -> None:
        done = await ingest(address, tenant, documents, told, chat=chat)
        if wait:
            await until_stored(
                address, tenant, done,
                lambda left: console.print(f"{left:,} are not in the store yet", markup=False),
            )  # fmt: skip

    if not run(call()):
        raise SystemExit(INTERRUPTED)


@asynccontextmanager
async def _survey(config: ConfigPath, settings: Settings) -> AsyncIterator[Survey]:
    store: StoreConfig = configured(config, settings).store
    if store.url is None:
        raise ConfigError(
            "store.url is not set; allowed: the URL of a server, for an embedded one ends with the "
            "process that started it"
        )
    async with surveying(
        store.url, store.namespace, _TIMEOUT_S, store.timeout_s, store.password_file
    ) as survey:
        yield survey


def _table(forms: dict[str, FormUse]) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("form", no_wrap=True)
    for column in ("blocks", "tokens", "bytes", "first gone in", "last gone in"):
        table.add_column(column, justify="right", no_wrap=True)
    for digest, form in sorted(forms.items(), key=lambda item: -item[1].bytes):
        table.add_row(
            digest,
            f"{form.blocks:,}",
            f"{form.blocks * form.block_tokens:,}",
            _bytes(form.bytes),
            _time(form.soonest_s),
            _time(form.latest_s),
        )
    return table


def _owners(owners: dict[str, OwnerUse], quotas: Quotas, names: Sequence[str]) -> Table:
    known = {owner_of(cache_salt(name)).hex(): name for name in names}
    table = Table(box=None, padding=(0, 1))
    table.add_column("tenant", no_wrap=True)
    for column in ("blocks", "bytes", "of at most"):
        table.add_column(column, justify="right", no_wrap=True)
    for tag, use in sorted(owners.items(), key=lambda item: -item[1].bytes):
        most = quotas.of.get(bytes.fromhex(tag), quotas.owner)
        name = known.get(tag, f"tag {tag}") or "(none)"
        limit = _bytes(most) if most else "no limit"
        table.add_row(escape(name), f"{use.blocks:,}", _bytes(use.bytes), limit)
    if quotas.budget:
        blocks, size = (
            sum(use.blocks for use in owners.values()),
            sum(use.bytes for use in owners.values()),
        )
        table.add_row("all", f"{blocks:,}", _bytes(size), _bytes(quotas.budget))
    return table


def _lines(usage: Usage) -> str:
    limit = _bytes(usage.memory_max) if usage.memory_max else "no limit"
    lines = [
        f"sessions: {usage.sessions:,}, {_bytes(usage.session_bytes)}",
        f"server: {usage.server}, {_bytes(usage.memory)} in use ({limit}; {usage.eviction}), "
        f"{usage.evicted:,} keys evicted",
    ]
    if usage.payload:
        lines.append(f"of this namespace: {_bytes(usage.payload)}")
    if usage.incomplete:
        lines.append(
            f"not whole: {usage.incomplete:,} blocks, {_bytes(usage.incomplete_bytes)}; "
            "'eastwest store sweep' removes them"
        )
    if usage.doomed:
        lines.append(
            f"had to leave: {usage.doomed:,} blocks; 'eastwest store sweep' sees that they are gone"
        )
    if usage.other:
        lines.append(f"other keys in the namespace: {usage.other:,}")
    if usage.unending:
        lines.append(f"keys that never expire: {usage.unending:,}; none of ours is")
    return "\n".join(lines)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _time(seconds: float) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
