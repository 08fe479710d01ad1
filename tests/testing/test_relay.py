"""Servers of tests: whatever becomes of a connection, it is gone when its server is closed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import warnings
from typing import TYPE_CHECKING

import pytest

from dbguard.testing.relay import Relay, StreamServer
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = b"x" * 20_000_000  # more than the kernel keeps between two ends


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    gc.freeze()  # what was there before is not looked at
    with warnings.catch_warnings(record=True, action="always") as said:
        yield
        gc.collect()
    gc.unfreeze()
    assert [str(warning.message) for warning in said] == []


async def wait_for_more(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    pass


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(4096):
        writer.write(data.upper())


def connect(port: int) -> socket.socket:
    """Connect without a turn of the loop: the kernel does it, and the server does not know yet."""
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def has_ended(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


async def sent_to(client: socket.socket) -> bytes:
    reader, writer = await asyncio.open_connection(sock=client)
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("serve", [wait_for_more, hang_up])
@pytest.mark.parametrize("turns", range(8))
async def test_a_connection_ends_with_its_server_however_far_it_has_come(serve, turns):
    async with StreamServer(serve) as server:
        client = connect(server.port)
        for _ in range(turns):
            await asyncio.sleep(0)

    with client:
        assert has_ended(client)


@pytest.mark.parametrize("turns", range(8))
async def test_a_connection_that_is_cut_ends_at_once_or_is_served(turns):
    served = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"!")
        served.set()
        await reader.read()

    async with StreamServer(greet) as server:
        with connect(server.port) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            server.cut()
            greeted = asyncio.ensure_future(asyncio.to_thread(client.recv, 1))
            await until(greeted.done)

            assert (await greeted == b"!") is served.is_set()


async def test_what_was_written_arrives_before_the_connection_ends():
    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(LONG)

    async with StreamServer(send) as server:
        assert await sent_to(connect(server.port)) == LONG


async def test_a_connection_that_nobody_reads_ends_with_its_server():
    sent = asyncio.Event()

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(LONG)
        sent.set()

    async with StreamServer(send) as server:
        client = connect(server.port)
        await sent.wait()

    with client:
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(1_000_000):
                got += len(piece)
        assert got < len(LONG)


async def test_a_mistake_in_what_serves_is_told_and_a_peer_that_goes_is_none():
    async def need_more(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        raise LookupError("no such thing")

    async with StreamServer(need_more) as server:
        with connect(server.port) as one, connect(server.port) as other:
            one.send(b"1234")
            assert await asyncio.to_thread(has_ended, one)
            other.send(b"1")

        with pytest.raises(ExceptionGroup) as raised:
            await server.close()

    assert [repr(error) for error in raised.value.exceptions] == ["LookupError('no such thing')"]


def test_a_server_that_is_not_open_has_no_port():
    with pytest.raises(RuntimeError, match="not open yet"):
        _ = StreamServer(hang_up).port


async def test_a_relay_passes_on_both_ways_and_listens_where_it_is_told():
    async with StreamServer(answer) as server, Relay("127.0.0.1", server.port, at=("127.0.0.9", 0)) as relay:
        reader, writer = await relay.dial("127.0.0.9", relay.port)
        for word in (b"one", b"two"):
            writer.write(word)
            assert await reader.readexactly(3) == word.upper()


@pytest.mark.parametrize("end", ["client", "server"])
async def test_either_end_of_a_relay_closes_both(end):
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if end == "client":
            writer.write(b"!")
            await reader.read()
            gone.set()

    async with StreamServer(serve) as server, Relay("127.0.0.1", server.port) as relay:
        with connect(relay.port) as client:
            if end == "server":
                assert await asyncio.to_thread(has_ended, client)
                return
            assert await asyncio.to_thread(client.recv, 1) == b"!"
        await gone.wait()


@pytest.mark.parametrize("turns", range(12))
async def test_both_ends_of_a_relayed_connection_end_with_the_relay_however_far_it_has_come(turns):
    async with StreamServer(wait_for_more) as server:
        async with Relay("127.0.0.1", server.port) as relay:
            client = connect(relay.port)
            for _ in range(turns):
                await asyncio.sleep(0)

        with client:
            assert has_ended(client)


async def test_a_relay_to_where_nobody_listens_closes_what_comes_in():
    async with StreamServer(hang_up) as gone:
        pass
    async with Relay("127.0.0.1", gone.port) as relay:
        with connect(relay.port) as client:
            assert await asyncio.to_thread(has_ended, client)


async def test_connections_that_have_ended_are_not_kept():
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"!")

    def writers() -> int:
        gc.collect()
        return sum(isinstance(thing, asyncio.StreamWriter) for thing in gc.get_objects())

    async with StreamServer(greet) as server, Relay("127.0.0.1", server.port) as relay:
        before = writers()
        for _ in range(20):
            assert await sent_to(connect(relay.port)) == b"!"

        assert writers() - before < 10
