"""The clients that a scenario can be run with, by name."""

from __future__ import annotations

from chaos.clients.base import CLIENTS_NAME, Client, Place
from chaos.clients.guard import Guarded
from chaos.clients.pools import NaiveRetry, Plain

__all__ = ["CLIENTS", "CLIENTS_NAME", "Client", "Place"]

CLIENTS: dict[str, type[Client]] = {"guard": Guarded, "plain": Plain, "naive-retry": NaiveRetry}
"""The clients, by the names that the command line knows."""
