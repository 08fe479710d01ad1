"""Whether the files that the settings of TLS name can be used.

asyncpg reads them at each dial, and what it then raises names neither file nor setting, and looks like a server that
cannot be reached.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["unusable_file"]


PROVING = frozenset({"require", "verify-ca", "verify-full"})
"""Values of sslmode with which asyncpg reads the files that prove the server."""


def unusable_file(error: OSError, dsn: str | None) -> asyncpg.ClientConfigurationError | None:
    """Return the error for the first file named in *dsn*'s query that TLS cannot use; None if there is none.

    error: what the dial raised; None is returned for one that no file can have caused.
    """
    of_a_file = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError)
    if not (of_a_file or isinstance(error, ssl.SSLError)) or isinstance(error, ssl.SSLCertVerificationError):
        return None
    said = dict(parse_qsl(urlsplit(dsn or "").query))
    mode = said.get("sslmode")
    if mode == "disable":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def authorities(path: str) -> None:
        context.load_verify_locations(cafile=path)

    def readable(path: str) -> None:
        with open(path, "rb"):  # noqa: PTH123  as asyncpg does: no pattern, no home directory
            return

    def key_pair(path: str) -> None:
        readable(path)
        if "sslkey" in said:  # without a password OpenSSL would ask for one at the terminal
            context.load_cert_chain(path, said["sslkey"], password=said.get("sslpassword", ""))

    reads: tuple[tuple[str, Callable[[str], None]], ...] = (
        ("sslrootcert", authorities),
        ("sslcrl", authorities),
        ("sslkey", readable),
        ("sslcert", key_pair),
    )
    for name, read in reads:
        if name in said and (mode in PROVING or read is not authorities):
            try:
                read(said[name])
            except OSError as found:
                why = found.reason if isinstance(found, ssl.SSLError) else found.strerror
                return asyncpg.ClientConfigurationError(f"connection.{name}: {said[name]!r} cannot be used: {why}")
    return None
