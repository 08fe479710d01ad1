"""The clients that a scenario can be run with, by name."""

from __future__ import annotations

from chaos.clients.base import CLIENTS_NAME, Client, Place
from chaos.clients.guards import Guarded, Wrapped
from chaos.clients.pools import NaiveRetry, Plain
from chaos.clients.psycopg_guards import PsycopgGuarded, SyncGuarded
from chaos.clients.sqlalchemy_engine import SqlalchemyGuarded

__all__ = ["CLIENTS", "CLIENTS_NAME", "Client", "Place"]

CLIENTS: dict[str, type[Client]] = {
    "guard": Guarded,
    "psycopg": PsycopgGuarded,
    "sync": SyncGuarded,
    "wrapped": Wrapped,
    "sqlalchemy": SqlalchemyGuarded,
    "plain": Plain,
    "naive-retry": NaiveRetry,
}
"""The clients, by the names that the command line knows."""
