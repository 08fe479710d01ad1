"""The real Toxiproxy server, and `toxiproxy-python` made fit to be leaned on.

    with Toxiproxy() as server:
        proxy = server.proxy("app-b", upstream="127.0.0.1:5432")
        with proxy.toxic("timeout", timeout=0):  # replies are swallowed, and come no more
            ...
        with proxy.down():  # open connections end, new ones are refused
            ...

The client library (0.1.1) keeps one server's address per process, waits for ever, takes a server's error for an answer,
and cannot change a toxic. All of that is mended here, in `_Http` and below; nobody else should import it.

What a toxic does is said in Toxiproxy's own manual. *downstream* is the way of replies, *upstream* that of requests.
All methods block for some milliseconds and may be called from any thread; from a coroutine, through `asyncio.to_thread`.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from dbguard.testing.ports import HOST, claim_ports
from dbguard.testing.processes import RunAs, Sandbox, kill_tree
from dbguard.testing.toxiproxy_server import ToxiproxyUnavailable, server_binary

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    import requests

__all__ = ["TOXICS", "Proxy", "Stream", "Toxic", "ToxicKind", "Toxiproxy", "ToxiproxyError"]

Stream = Literal["downstream", "upstream"]
ToxicKind = Literal["bandwidth", "latency", "limit_data", "reset_peer", "slicer", "slow_close", "timeout"]

TOXICS: Mapping[ToxicKind, frozenset[str]] = {
    "bandwidth": frozenset({"rate"}),  # KB/s
    "latency": frozenset({"latency", "jitter"}),  # ms
    "limit_data": frozenset({"bytes"}),
    "reset_peer": frozenset({"timeout"}),  # ms
    "slicer": frozenset({"average_size", "size_variation", "delay"}),  # bytes, bytes, us
    "slow_close": frozenset({"delay"}),  # ms
    "timeout": frozenset({"timeout"}),  # ms; 0: nothing gets through, and the connection stays open
}
"""The toxics of Toxiproxy 2 and their attributes, whole numbers all. The server ignores an attribute that it does not
know, and a test would pass because nothing was broken: so they are checked here."""

START_TIMEOUT = 30.0  # seconds for the server to answer; usually 0.05
PORT_TRIES = 5
_POLL = 0.01  # seconds between two looks at a server that is starting
_LOG_TAIL = 500  # characters of the server's log that an error shows

_in_use = threading.Lock()  # held while a server runs: the client library knows the address of one


class ToxiproxyError(RuntimeError):
    """The Toxiproxy server did not do what it was asked to; the message names proxy and address.

    status: the HTTP status of its answer; None if there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Toxiproxy:
    """A Toxiproxy server on a free port of the loopback interface; a context manager.

    It is a child process that ends with this one, however that ends (`Sandbox`). One at a time in a process.

    binary: the program. Default: the one that `server_binary` finds or builds.
    timeout: seconds that it may take to answer a request, > 0. Default 5.
    say: told in one line before the program is built, which takes up to a minute. Default: nobody.
    """

    def __init__(
        self, *, binary: Path | None = None, timeout: float = 5.0, say: Callable[[str], None] = lambda _line: None
    ) -> None:
        self._binary = binary
        self._timeout = timeout
        self._say = say
        self._parts = contextlib.ExitStack()
        self._started = False
        self.port = 0

    # --- life

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises ToxiproxyError if it does not, or if this process runs one already; `ToxiproxyUnavailable`.
        """
        _library()  # before anything is built that it would be needed for
        binary = self._binary or server_binary(say=self._say)
        if not _in_use.acquire(blocking=False):
            raise ToxiproxyError("this process runs a Toxiproxy server already; share it, or stop it first")
        try:
            self._parts.callback(_in_use.release)
            http = self._parts.enter_context(_Http(self._timeout))
            exits = self._parts.enter_context(contextlib.ExitStack())  # left once the sandbox has killed all
            # below the root user's home the program can be closed to all others, so it runs as the caller
            sandbox = Sandbox(RunAs(), below=Path(tempfile.gettempdir()))
            self._parts.callback(sandbox.close)
            self._serve(binary, sandbox, http, exits)
            self._started = True
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and all its proxies; does nothing if it does not run."""
        parts, self._parts = self._parts, contextlib.ExitStack()
        self._started = False
        parts.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _serve(self, binary: Path, sandbox: Sandbox, http: _Http, exits: contextlib.ExitStack) -> None:
        log = sandbox.path / "toxiproxy.log"
        for _ in range(PORT_TRIES):
            (claim,) = claim_ports(1)
            self._parts.callback(claim.close)
            self.port = claim.getsockname()[1]
            argv: list[str | Path] = [binary, "-host", HOST, "-port", str(self.port)]
            with log.open("wb") as output:
                process = sandbox.start(argv, output=output, env={"LOG_LEVEL": "error"})
            exits.callback(process.wait)
            http.stand_in(self.port)
            if self._is_up(process, f"{binary} on port {self.port}", log):
                return
            kill_tree(process.pid)
            sandbox.reap(process)
        raise ToxiproxyError(f"{binary} found no port to listen on in {PORT_TRIES} tries: {_tail(log)}")

    def _is_up(self, process: subprocess.Popen[bytes], what: str, log: Path) -> bool:
        """Wait for the server's first answer; False if its port was taken meanwhile."""
        end = time.monotonic() + START_TIMEOUT
        while True:
            with contextlib.suppress(ToxiproxyError):
                self.version()
                return True
            if "address already in use" in _tail(log):  # it says so, and stays
                return False
            if process.poll() is not None:
                raise ToxiproxyError(f"{what} ended at once (exit code {process.returncode}): {_tail(log)}")
            if time.monotonic() > end:
                raise ToxiproxyError(f"{what} does not answer after {START_TIMEOUT:g} s: {_tail(log)}")
            time.sleep(_POLL)

    # --- what it does

    def version(self) -> str:
        """Ask the server for its version, such as ``2.12.0``."""
        answer = _library().APIConsumer.get("/version")
        try:
            return str(answer.json()["version"])
        except (ValueError, TypeError, KeyError):
            raise ToxiproxyError(f"what listens on {HOST}:{self.port} is no Toxiproxy 2") from None

    def proxy(self, name: str, upstream: str, *, port: int | None = None) -> Proxy:
        """Make a proxy on the loopback interface.

        name: letters, digits, ``-``, ``_`` and ``.``; no two proxies have one.
        upstream: ``host:port`` of the server behind it.
        port: where to listen. Default: a free one below the ephemeral range, which stays the proxy's own while it is
            down.
        Raises ToxiproxyError if the name or the port is taken.
        """
        if not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ValueError(f"the name of a proxy is made of letters, digits, -, _ and ., unlike {name!r}")
        if port is not None:
            return self._create(name, upstream, port)
        for tried in range(PORT_TRIES):
            (claim,) = claim_ports(1)
            try:
                proxy = self._create(name, upstream, claim.getsockname()[1])
            except ToxiproxyError as e:
                claim.close()
                if e.status != 500 or tried == PORT_TRIES - 1:  # 500: it could not listen there
                    raise
            else:
                self._parts.callback(claim.close)
                return proxy
        raise AssertionError("the last try returns or raises")

    def _create(self, name: str, upstream: str, port: int) -> Proxy:
        try:
            return Proxy(self._server().create(name=name, upstream=upstream, listen=f"{HOST}:{port}"))
        except (ToxiproxyError, _library().ProxyExists) as e:
            status = e.status if isinstance(e, ToxiproxyError) else 409
            raise ToxiproxyError(
                f"no proxy {name} on {HOST}:{port} to {upstream}: {_text(e.args[0])}", status=status
            ) from e

    def broken(self) -> list[str]:
        """List what is not as it was made: proxies that are down, and toxics. Empty if all is well."""
        found = []
        for name, proxy in sorted(self._server().proxies().items()):
            if not proxy.enabled:
                found.append(f"{name} is down")
            found += [f"{name} has the toxic {toxic}" for toxic in sorted(proxy.toxics())]
        return found

    def reset(self) -> None:
        """Remove all toxics and bring up all proxies."""
        self._server().reset()

    def _server(self) -> Any:
        import toxiproxy  # noqa: PLC0415  some 200 ms, through requests: for those who start a server

        if not self._started:
            raise ToxiproxyError("this Toxiproxy server is not running: use `with Toxiproxy() as server`")
        return toxiproxy.Toxiproxy()


class Proxy:
    """One way from a client to a server. `Toxiproxy.proxy` makes it.

    name: its name. upstream: ``host:port`` of the server. host, port: where clients reach it instead.
    """

    def __init__(self, real: Any) -> None:
        self._real = real
        self.name: str = real.name
        self.upstream: str = real.upstream
        self.host, _, port = real.listen.rpartition(":")
        self.port = int(port)
        self._numbers = itertools.count(1)

    def __str__(self) -> str:
        return f"{self.name} ({self.host}:{self.port} -> {self.upstream})"

    __repr__ = __str__

    @property
    def enabled(self) -> bool:
        """Whether it takes connections, as the server says."""
        return bool(_library().APIConsumer.get(f"/proxies/{self.name}").json()["enabled"])

    def enable(self) -> None:
        """Take connections again."""
        self._real.enable()

    def disable(self) -> None:
        """End all connections, and refuse new ones."""
        self._real.disable()

    @contextlib.contextmanager
    def down(self) -> Iterator[Proxy]:
        """End all connections and refuse new ones; afterwards it is as it was before, up or down."""
        was = self.enabled
        self.disable()
        try:
            yield self
        finally:
            if was:
                self.enable()

    @contextlib.contextmanager
    def hole(self) -> Iterator[Proxy]:
        """Swallow all that is said, both ways: nobody is refused, nothing is answered. Connections end with the hole."""
        with self.toxic("timeout", stream="upstream", timeout=0), self.toxic("timeout", timeout=0):
            yield self

    def toxic(
        self, kind: ToxicKind, *, stream: Stream = "downstream", toxicity: float = 1.0, **attributes: int
    ) -> Toxic:
        """Add a toxic, at once; as a context manager it is removed at the end.

        kind and attributes: see `TOXICS`; what is left out is 0.
        stream: which way it poisons. Default: the replies.
        toxicity: the share of connections that it is for, 0 to 1. Default 1.
        Raises ValueError if there is no such toxic or attribute; ToxiproxyError.
        """
        if kind not in TOXICS:
            raise ValueError(f"no toxic {kind}; there are {', '.join(TOXICS)}")
        _check(kind, attributes)
        name = f"{kind}-{stream}-{next(self._numbers)}"  # the library's own would collide with a second one
        self._real.add_toxic(type=kind, name=name, stream=stream, toxicity=toxicity, attributes=attributes)
        return Toxic(self, name, kind)


class Toxic:
    """A toxic at work. `Proxy.toxic` makes it; a context manager, which removes it.

    proxy: where. name: its name, unlike any other on this proxy. kind: latency, timeout, ...
    """

    def __init__(self, proxy: Proxy, name: str, kind: ToxicKind) -> None:
        self.proxy = proxy
        self.name = name
        self.kind = kind

    def __str__(self) -> str:
        return f"{self.name} on {self.proxy}"

    __repr__ = __str__

    def update(self, *, toxicity: float | None = None, **attributes: int) -> None:
        """Change what is named, at once, also for open connections; the rest stays.

        Raises ValueError if it has no such attribute; ToxiproxyError if it is gone.
        """
        _check(self.kind, attributes)
        change: dict[str, object] = {"attributes": attributes}
        if toxicity is not None:
            change["toxicity"] = toxicity
        _library().APIConsumer.post(f"/proxies/{self.proxy.name}/toxics/{self.name}", json=change)

    def remove(self) -> None:
        """Remove it; nothing happens if it is gone already."""
        try:
            _library().APIConsumer.delete(f"/proxies/{self.proxy.name}/toxics/{self.name}")
        except ToxiproxyError as e:
            if e.status != 404:
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.remove()


# --- what toxiproxy-python lacks --------------------------------------------------------------------------------------


class _Http:
    """Stands in for the module `requests` inside toxiproxy-python, and sets its address; both are put back at the end.

    Each request has a time-out and a connection of its own (a kept one may be closed by the server just as it is used
    again), pays no heed to HTTP proxies of the environment, and raises on every answer that is an error.
    """

    def __init__(self, timeout: float) -> None:
        import requests  # noqa: PLC0415  some 200 ms: for those who start a server

        self._timeout = timeout
        self._lost = requests.RequestException
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Connection"] = "close"
        self._lock = threading.Lock()  # a session is not made for several threads

    def stand_in(self, port: int) -> None:
        api = _library()
        api.requests = self
        api.APIConsumer.host, api.APIConsumer.port = HOST, port

    def __enter__(self) -> Self:
        consumer = _library().APIConsumer
        self._before = _library().requests, consumer.host, consumer.port
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        api = _library()
        api.requests, api.APIConsumer.host, api.APIConsumer.port = self._before
        self._session.close()

    def get(self, url: str, **options: Any) -> requests.Response:
        return self._send("GET", url, options)

    def post(self, url: str, **options: Any) -> requests.Response:
        return self._send("POST", url, options)

    def delete(self, url: str, **options: Any) -> requests.Response:
        return self._send("DELETE", url, options)

    def _send(self, method: str, url: str, options: dict[str, Any]) -> requests.Response:
        try:
            with self._lock:
                answer = self._session.request(method, url, **{"timeout": self._timeout} | options)
        except self._lost as e:
            at = urlsplit(url)
            raise ToxiproxyError(
                f"Toxiproxy on {at.netloc} gave no answer to {method} {at.path} ({type(e).__name__}; {self._timeout:g} s allowed)"
            ) from e
        if answer.status_code >= 400:
            raise ToxiproxyError(
                f"{method} {urlsplit(url).path}: {_reason(answer)} ({answer.status_code})", status=answer.status_code
            )
        return answer


def _library() -> Any:
    """Return the module of toxiproxy-python in which its requests are made. Raises `ToxiproxyUnavailable`."""
    try:
        import toxiproxy.api  # noqa: PLC0415  see above
    except ModuleNotFoundError as e:
        raise ToxiproxyUnavailable(
            f"{str(e.name).partition('.')[0]} is not installed: pip install 'dbguard-postgres[test]'"
        ) from e
    return toxiproxy.api


def _reason(answer: requests.Response) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(answer.json()["error"])
    return answer.text.strip() or answer.reason


def _text(said: object) -> str:
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)


def _check(kind: ToxicKind, attributes: Mapping[str, int]) -> None:
    if unknown := attributes.keys() - TOXICS[kind]:
        raise ValueError(
            f"the toxic {kind} has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(TOXICS[kind]))}"
        )


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_LOG_TAIL:].strip() or "it said nothing"
