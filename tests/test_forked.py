"""Sockets of a process that forks: in the child they lead nowhere, and nothing else is touched."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from dbguard import forked

PROGRAM = """
import os, socket, sys
from dbguard import forked

class Owner:
    def forked(self):
        told.append(ours.recv(1))

told = []
ours, theirs = socket.socketpair()
used, again = socket.socketpair()
forked.dialled(ours.fileno())
forked.dialled(used.fileno())
number = used.fileno()
used.close()
file = os.open(sys.executable, os.O_RDONLY)
assert file == number, "the number of a closed socket is used again"
owner = Owner()
forked.watch(owner)
if SCARCE:
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
pid = os.fork()
if pid:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) or (theirs.send(b"x"), ours.recv(1)) != (1, b"x"))
os.read(file, 1)
if SCARCE:
    try:
        ours.send(b"y")
    except OSError as error:
        os._exit(error.errno != 9)
assert told == [b""], told
try:
    ours.send(b"y")
except BrokenPipeError:
    theirs.setblocking(False)
    try:
        theirs.recv(1)
    except BlockingIOError:
        os._exit(0)
os._exit(1)
"""


def run(*, scarce: bool) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("SCARCE", str(scarce))],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stderr


def test_in_a_child_a_servers_socket_is_at_its_end_before_its_owner_is_told() -> None:
    assert run(scarce=False) == (0, "")


def test_where_no_file_descriptors_are_left_the_inherited_ones_are_closed() -> None:
    code, said = run(scarce=True)

    assert code == 0
    assert "Bad file descriptor" in said  # the owner's own look at it


def test_a_connection_to_a_server_is_noted_whatever_it_is_dialled_by() -> None:
    # What asyncpg dials through is tested with real servers; this is the way of unix sockets.
    program = """
import asyncio, os, socket, tempfile
from dbguard.drivers.asyncpg.naming import NamingLoop
from dbguard.drivers.names import Names

async def main():
    loop = asyncio.get_running_loop()
    path = os.path.join(tempfile.mkdtemp(), "s")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    made, _ = await NamingLoop(loop, Names()).create_unix_connection(asyncio.Protocol, path)
    sock = made.get_extra_info("socket")
    pid = os.fork()
    if not pid:
        try:
            os.write(sock.fileno(), b"y")
        except BrokenPipeError:
            os._exit(0)
        os._exit(1)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_lock_is_free_in_a_child_though_a_thread_of_the_parents_had_it() -> None:
    program = """
import os, threading
from dbguard.forked import Turn

turn, taken, over = Turn(), threading.Event(), threading.Event()

def hold():
    with turn:
        taken.set()
        over.wait()

holder = threading.Thread(target=hold)
holder.start()
taken.wait()
pid = os.fork()
if not pid:
    with turn:
        os._exit(0)
ended = os.waitpid(pid, 0)[1]
over.set()
holder.join()
with turn:
    os._exit(os.waitstatus_to_exitcode(ended))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_does_not_fork_keeps_its_sockets() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        forked.dialled(ours.fileno())
        # A program that is started is no fork of this one: its copies of what was open are closed by the kernel.
        subprocess.run([sys.executable, "-c", ""], check=True, preexec_fn=os.getpid)
        theirs.send(b"x")

        assert ours.recv(1) == b"x"
