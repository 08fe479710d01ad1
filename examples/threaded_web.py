"""A web application in threads: one guard for all of them, one causal context per request, and a graceful end.

    DATABASE_URL=postgresql://app@db1,db2,db3/shop python threaded_web.py 8000

    curl -X PUT -d 3 localhost:8000/articles/7; curl localhost:8000/articles/7; curl localhost:8000/health

The server is the standard library's, so that there is nothing else to see; in Flask or Django the calls are the same. A
server that forks its workers opens the guard in each of them (docs/forking.md).
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dbguard

guard = dbguard.SyncGuard(os.environ["DATABASE_URL"])  # no I/O yet, so it can live here
shop = guard.using(timeout=5)  # seconds for each call, waiting for a new primary included

Answer = tuple[int, Any, dict[str, str]]


def put_article(article: int, price: int) -> Answer:
    """Write, and read it back: a PUT may be sent twice, so its client can repeat it after a 503."""
    shop.execute(
        "INSERT INTO article VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET price = excluded.price", (article, price)
    )
    return get_article(article)


def get_article(article: int) -> Answer:
    """Read from a replica, or from the primary if this request has written."""
    row = shop.fetchone("SELECT id, price FROM article WHERE id = %s", (article,))
    if row is None:
        return 404, "no such article", {}
    return 200, {"id": row[0], "price": row[1]}, {}


def health() -> Answer:
    """Show what the guard knows, and send nothing. In a failover reads go on, so only a silent cluster is a 503."""
    status = guard.status()
    nodes = {node.name: node.role if node.reachable else "does not answer" for node in status.nodes}
    serves = any(node.reachable for node in status.nodes)
    return 200 if serves else 503, {"writes": status.writes, "why": status.why, "nodes": nodes}, {}


def answered(method: str, path: str, body: bytes) -> Answer:
    """Answer one request, in a causal context of its own: its writes hold nobody else's reads on the primary."""
    article = re.fullmatch(r"/articles/(\d{1,9})", path)
    try:
        with guard.causal():
            if method == "GET" and path == "/health":
                return health()
            if method == "GET" and article:
                return get_article(int(article[1]))
            if method == "PUT" and article:
                return put_article(int(article[1]), int(body)) if body.isdigit() else (400, "a price is a number", {})
            return 404, "no such page", {}
    except (dbguard.NotAttempted, dbguard.DeadlineExceeded) as error:
        again = str(math.ceil(error.retry_after or 1))
        return 503, "The database is away for a moment. Nothing was changed.", {"Retry-After": again}
    except dbguard.OutcomeUnknown:
        return 503, "The change may have been made. Look before you send it again.", {}


class Handler(BaseHTTPRequestHandler):
    """One request; the server runs each in a thread of its own."""

    def do_GET(self) -> None:
        """Answer."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, told, headers = answered(self.command, self.path, body)
        content = json.dumps(told).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_PUT(self) -> None:
        """Answer."""
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Waits, when it is closed, for the requests that it has begun."""

    daemon_threads = False


def main(port: int) -> None:
    """Serve until SIGTERM or Ctrl-C; then let the requests under way end, and close the guard after them."""
    with guard:
        shop.execute("CREATE TABLE IF NOT EXISTS article (id int PRIMARY KEY, price int NOT NULL)")
        with Server(("127.0.0.1", port), Handler) as server:

            def stop(*_: Any) -> None:
                threading.Thread(target=server.shutdown).start()  # it waits for the loop below, which this interrupts

            signal.signal(signal.SIGTERM, stop)
            signal.signal(signal.SIGINT, stop)
            print("serving on port", server.server_port, flush=True)
            server.serve_forever(poll_interval=0.1)
    print("closed")


if __name__ == "__main__":
    main(int(sys.argv[1]))
