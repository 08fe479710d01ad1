"""The Toxiproxy server as a child of the test process, and what its client library is mended of."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import toxiproxy.api

from dbguard.testing import toxiproxy as module
from dbguard.testing.toxiproxy import TOXICS, Proxy, Toxiproxy, ToxiproxyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.chaos

SOON = 60.0  # seconds, on a busy machine; usually 0.2


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(1000):
                self.request.sendall(data)


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """The address of a server that says what it is told."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def shared() -> Iterator[Toxiproxy]:
    with Toxiproxy() as server:
        yield server


@pytest.fixture
def server(shared: Toxiproxy) -> Iterator[Toxiproxy]:
    yield shared
    shared.reset()
    assert shared.broken() == []


@pytest.fixture
def proxy(server: Toxiproxy, echo: str, request: pytest.FixtureRequest) -> Proxy:
    return server.proxy(request.node.name.replace("[", "-").replace("]", ""), echo)


@pytest.fixture
def alone(shared: Toxiproxy) -> Iterator[None]:
    """For tests that start a server of their own: the shared one makes way."""
    shared.stop()
    yield
    shared.start()


def answers(proxy: Proxy, within: float = SOON) -> bool:
    """Say whether what is sent through a new connection comes back."""
    with socket.create_connection((proxy.host, proxy.port), timeout=within) as connection:
        connection.sendall(b"hello")
        try:
            return connection.recv(100) == b"hello"
        except TimeoutError:
            return False


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- the server


def test_server_says_its_version(server: Toxiproxy) -> None:
    assert server.version().startswith("2.")


def test_second_server_in_one_process_is_refused(server: Toxiproxy) -> None:
    with pytest.raises(ToxiproxyError, match="runs a Toxiproxy server already"):
        Toxiproxy().start()

    assert server.version()


@pytest.mark.usefixtures("alone")
def test_server_is_gone_when_it_was_stopped_and_another_may_follow() -> None:
    for _ in range(2):
        with Toxiproxy() as server:
            port = server.port
            assert listening(port)
        assert not listening(port)
        with pytest.raises(ToxiproxyError, match="is not running"):
            server.broken()


@pytest.mark.usefixtures("alone")
def test_library_is_as_it_was_once_the_server_has_stopped() -> None:
    before = toxiproxy.api.requests, toxiproxy.api.APIConsumer.host, toxiproxy.api.APIConsumer.port

    with Toxiproxy() as server:
        assert toxiproxy.api.APIConsumer.port == server.port

    assert (toxiproxy.api.requests, toxiproxy.api.APIConsumer.host, toxiproxy.api.APIConsumer.port) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_does_not_outlive_the_process_that_started_it(number: signal.Signals) -> None:
    script = """if True:
        import time
        from dbguard.testing.toxiproxy import Toxiproxy
        server = Toxiproxy()
        server.start()
        print(server.port, server.proxy("x", "127.0.0.1:1").port, flush=True)
        time.sleep(1000)
    """
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ports = [int(word) for word in process.stdout.readline().split()]
        assert all(map(listening, ports))

        os.kill(process.pid, number)

    end = time.monotonic() + SOON
    while any(map(listening, ports)):
        assert time.monotonic() < end, f"{ports} still listened on"
        time.sleep(0.01)  # a poll of the world outside, not a pause


@pytest.mark.usefixtures("alone")
def test_server_takes_another_port_if_somebody_was_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    claim_ports = module.claim_ports
    with socket.socket() as faster:
        faster.bind(("127.0.0.1", 0))
        faster.listen()
        stolen = [faster.dup()]
        monkeypatch.setattr(module, "claim_ports", lambda count: [stolen.pop()] if stolen else claim_ports(count))

        with Toxiproxy(timeout=2.0) as server:
            assert server.port != faster.getsockname()[1]
            assert server.version()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("script", "said"), [("echo out of luck; exit 3", r"exit code 3\): out of luck"), ("exit 4", "it said nothing")]
)
def test_program_that_is_no_server_is_told_with_its_own_words(script: str, said: str, tmp_path: Path) -> None:
    program = tmp_path / "server"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)

    with pytest.raises(ToxiproxyError, match=said):
        Toxiproxy(binary=program).start()
    with Toxiproxy() as server:  # the failed one is out of the way
        assert server.version()


def test_importing_loads_neither_the_library_nor_requests() -> None:
    script = "import sys, dbguard.testing.toxiproxy; print({'requests', 'toxiproxy'} & set(sys.modules))"

    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert said.stdout.strip() == "set()"


# --- requests to it


@pytest.mark.usefixtures("alone")
def test_request_without_answer_ends_and_names_the_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf, module._Http(0.1) as http:
        port = deaf.getsockname()[1]
        http.stand_in(port)
        at_last = threading.Timer(SOON, deaf.close)  # otherwise a client without a limit would wait for ever
        at_last.start()

        said = rf"127\.0\.0\.1:{port} gave no answer to GET /version \(ReadTimeout; 0\.1 s allowed\)"
        with pytest.raises(ToxiproxyError, match=said) as e:
            toxiproxy.api.APIConsumer.get("/version")
        at_last.cancel()
        assert e.value.status is None


def test_proxies_of_the_environment_are_not_asked(server: Toxiproxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    assert server.version()


def test_requests_of_several_threads_do_not_mix(server: Toxiproxy, echo: str) -> None:
    def change(name: str) -> None:
        proxy = server.proxy(name, echo)
        for _ in range(10):
            with proxy.toxic("latency", latency=1):
                pass
        done.append(proxy.name)

    done: list[str] = []
    names = [f"thread-{n}" for n in range(4)]
    threads = [threading.Thread(target=change, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(done) == names


# --- proxies


def test_proxy_passes_on_what_is_said(proxy: Proxy, echo: str) -> None:
    assert proxy.upstream == echo
    assert proxy.enabled
    assert answers(proxy)


def test_port_that_is_taken_is_told_with_proxy_and_port(server: Toxiproxy, echo: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ToxiproxyError, match=rf"no proxy busy on 127\.0\.0\.1:{port} to {echo}: .*already in use"):
            server.proxy("busy", echo, port=port)


def test_name_that_is_taken_is_told_with_proxy_and_port(server: Toxiproxy, proxy: Proxy, echo: str) -> None:
    with pytest.raises(ToxiproxyError, match=rf"no proxy {proxy.name} on 127\.0\.0\.1:\d+ to {echo}: .*exists"):
        server.proxy(proxy.name, echo)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a?", "-", "ä%"])
def test_name_that_does_not_fit_into_a_request_is_refused(name: str, server: Toxiproxy, echo: str) -> None:
    with pytest.raises(ValueError, match="the name of a proxy"):
        server.proxy(name, echo)


def test_proxy_that_is_down_ends_connections_and_refuses_new_ones(server: Toxiproxy, proxy: Proxy) -> None:
    with socket.create_connection((proxy.host, proxy.port), timeout=SOON) as connection:
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"

        with proxy.down():
            assert connection.recv(100) == b""
            assert not listening(proxy.port)
            assert server.broken() == [f"{proxy.name} is down"]

    assert answers(proxy)


def test_proxy_that_was_down_before_stays_down(proxy: Proxy) -> None:
    proxy.disable()

    with proxy.down():
        pass

    assert not proxy.enabled
    proxy.enable()
    assert answers(proxy)


def test_proxy_comes_up_again_whatever_happens(proxy: Proxy) -> None:
    with pytest.raises(KeyboardInterrupt), proxy.down():
        raise KeyboardInterrupt

    assert answers(proxy)


def test_hole_swallows_both_ways_keeps_connections_and_takes_new_ones(server: Toxiproxy, echo: str) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as silent:
        proxy = server.proxy("hole", f"127.0.0.1:{silent.server_address[1]}")
        with socket.create_connection((proxy.host, proxy.port), timeout=SOON) as client:
            behind, _ = silent.socket.accept()
            with behind, proxy.hole():
                client.sendall(b"a request")
                behind.sendall(b"a reply")
                for end in (client, behind):
                    end.settimeout(0.2)
                    with pytest.raises(TimeoutError):  # neither what was said, nor an end
                        end.recv(100)
                assert not answers(proxy, within=0.1)
                assert len(server.broken()) == 2

            assert server.broken() == []
            client.settimeout(SOON)
            assert client.recv(100) == b""


# --- toxics


def test_toxic_works_until_its_end(server: Toxiproxy, proxy: Proxy) -> None:
    with proxy.toxic("timeout", timeout=0) as toxic:
        assert not answers(proxy, within=0.1)
        assert server.broken() == [f"{proxy.name} has the toxic {toxic.name}"]

    assert server.broken() == []
    assert answers(proxy)


def test_toxic_is_removed_whatever_happens(server: Toxiproxy, proxy: Proxy) -> None:
    with pytest.raises(KeyboardInterrupt), proxy.toxic("timeout", timeout=0):
        raise KeyboardInterrupt

    assert server.broken() == []


def test_removing_a_toxic_that_is_gone_is_no_error(server: Toxiproxy, proxy: Proxy) -> None:
    with proxy.toxic("latency", latency=5) as toxic:
        server.reset()
    toxic.remove()

    assert server.broken() == []


def test_toxic_goes_even_though_the_server_is_asked_for_another_reason(proxy: Proxy) -> None:
    toxic = proxy.toxic("latency", latency=5)
    with pytest.raises(ToxiproxyError) as e, toxic:
        toxic.update(toxicity="much")  # type: ignore[arg-type]

    assert e.value.status == 400


def test_two_toxics_of_one_kind_stand_beside_each_other(server: Toxiproxy, proxy: Proxy) -> None:
    with proxy.toxic("latency", latency=1) as one, proxy.toxic("latency", latency=2) as two:
        assert one.name != two.name
        assert len(server.broken()) == 2


def test_update_changes_what_it_names_and_nothing_else(proxy: Proxy) -> None:
    with proxy.toxic("latency", latency=1, jitter=2) as toxic:
        toxic.update(latency=3)
        assert proxy._real.toxics()[toxic.name].attributes == {"latency": 3, "jitter": 2}
        assert proxy._real.toxics()[toxic.name].toxicity == 1.0

        toxic.update(toxicity=0.5)
        assert proxy._real.toxics()[toxic.name].attributes == {"latency": 3, "jitter": 2}
        assert proxy._real.toxics()[toxic.name].toxicity == 0.5


def test_update_is_felt_by_an_open_connection(proxy: Proxy) -> None:
    with (
        proxy.toxic("latency", latency=60_000) as toxic,
        socket.create_connection((proxy.host, proxy.port), timeout=SOON) as connection,
    ):
        toxic.update(latency=0)
        connection.sendall(b"hello")

        assert connection.recv(100) == b"hello"


def test_update_of_a_toxic_that_is_gone_names_proxy_and_toxic(proxy: Proxy) -> None:
    toxic = proxy.toxic("latency", latency=1)
    toxic.remove()

    with pytest.raises(ToxiproxyError, match=rf"/proxies/{proxy.name}/toxics/{toxic.name}: toxic not found") as e:
        toxic.update(latency=2)
    assert e.value.status == 404


@pytest.mark.parametrize(
    ("kind", "attribute"), [(kind, name) for kind, names in TOXICS.items() for name in sorted(names)]
)
def test_server_knows_every_attribute_of_every_toxic(kind: Any, attribute: str, proxy: Proxy) -> None:
    with proxy.toxic(kind, **{attribute: 7}) as toxic:
        assert proxy._real.toxics()[toxic.name].attributes[attribute] == 7


@pytest.mark.parametrize(
    ("kind", "attributes"), [("lag", {}), ("latency", {"latencyy": 5}), ("timeout", {"latency": 5})]
)
def test_toxic_that_would_do_nothing_is_refused(kind: Any, attributes: dict[str, int], proxy: Proxy) -> None:
    with pytest.raises(ValueError, match=r"no toxic lag|has no latency"):
        proxy.toxic(kind, **attributes)


def test_update_that_would_do_nothing_is_refused(proxy: Proxy) -> None:
    with proxy.toxic("latency", latency=1) as toxic, pytest.raises(ValueError, match="has no timeout"):
        toxic.update(timeout=1)
