"""A session in asyncpg's words: each statement on it by the driver's own method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dbguard.core.outcome import is_plain
from dbguard.core.retry import Stake
from dbguard.core.statement import Token, Touch
from dbguard.drivers.asyncpg.copying import opened
from dbguard.drivers.asyncpg.listening import Listening
from dbguard.drivers.asyncpg.sending import Sender
from dbguard.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dbguard.drivers.asyncpg.outcome import CarriedTokens

__all__ = ["AsyncpgSession"]


class AsyncpgSession(Session):
    """One lease of asyncpg's in the application's hands."""

    tokens: CarriedTokens | None
    _listening: Listening | None = None

    @property
    def listening(self) -> Listening:
        """The channels that its connection listens to."""
        if self._listening is None:
            self._listening = Listening(self.con, self.missed)
        return self._listening

    def stop_listening(self) -> None:
        """Note that the application ends it by itself, so that nothing is missed."""
        if self._listening is not None:
            self._listening.stop()

    def finish(self) -> None:
        """See `Session.finish`."""
        self.stop_listening()
        super().finish()

    async def run(self, query: str, method: str, args: tuple[Any, ...], limit: float | None, **extra: Any) -> Any:
        """Run one statement by the driver's own method."""
        stake, whole = self.note(query)
        single = not self.texts.learn(query).statement.several
        con = self.con
        if method.startswith("copy_"):
            until, whose = self._until(limit, "timeout=")
            clock, copy = self.engine.state.clock, getattr(con, method)
            async with opened(extra, until - clock()) as files:
                left = until - clock()
                return await self.do(lambda: copy(*args, **files), stake, left, whole=whole, cancels=True, whose=whose)
        many = method.endswith("many")
        if self.tokens is not None and not many and stake is Stake.WRITE and not self.within:
            sender = self._sender(self.tokens, query, method, args, extra)
            if sender is not None:
                return await self._send(sender, lambda: getattr(con, method)(*args, **extra), limit)
        value = await self.do(
            lambda: getattr(con, method)(*args, **extra), stake, limit, whole=whole, single=single, cancels=many
        )
        if self.failed and not many and self.texts.learn(query).statement.verb:
            # A failed transaction answers nothing but errors, unless that was ROLLBACK TO. (For no rows, or for no
            # statement, nothing is asked.)
            self.failed = False
        return value

    def _sender(
        self, tokens: CarriedTokens, query: str, method: str, args: tuple[Any, ...], extra: dict[str, Any]
    ) -> Sender | None:
        """Return what sends an autocommit write with its token; None where its text, or the session, does not allow one."""
        text, lease = self.texts.learn(query), self.lease
        if text.token is not Token.CTE or self.closed or self.in_transaction or not tokens.on:
            return None
        if lease.raw_touched or lease.touched >= Touch.IDENTITY:
            return None
        rows, plain = text.statement.returns_rows, is_plain(text.statement, query, text.touched)
        return Sender(
            tokens, self.call, query, Token.CTE, rows=rows, plain=plain, method=method, args=args[1:], extra=extra
        )

    async def _send(self, sender: Sender, plain: Callable[[], Awaitable[Any]], limit: float | None) -> Any:
        """Send an autocommit write with its token."""
        try:
            return await self.do(
                lambda: sender.send(self.lease, plain), Stake.WRITE, limit, reserve=sender.tokens.reserve
            )
        finally:
            self.call.token = self.call.result = None
