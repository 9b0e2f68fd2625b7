"""What is left of a session that was deleted: its KV on workers and in the store."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from eastwest import messages
from eastwest.blocks import cache_salt
from eastwest.errors import StoreUnavailable
from kv_store.sessions import SessionRecord
from router.session_book import SessionBook
from router.shell import Shell

Erase = Callable[[SessionRecord], Awaitable[None]]

log = logging.getLogger(__name__)


async def erase(shell: Shell, book: SessionBook, record: SessionRecord) -> None:
    """Tell every worker that is up; each erases what it has, and what the store has.

    record: the last of the session. What other sessions begin with as well stays, as far as that is
    known; where the store does not say, they compute it again. KV of another model than is served
    has no workers here, and expires.
    """
    if record.fingerprint != shell.model().fingerprint:
        return
    try:
        keep = await book.common_tokens(record)
    except StoreUnavailable as error:
        log.warning("session %r is erased whole: %s", record.session_id, error.message)
        keep = 0
    salt = cache_salt(record.tenant)
    shell.tell_all(messages.Erase(salt, record.session_id, record.tokens, keep))
