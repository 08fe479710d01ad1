"""What a scenario can break. Each kind of fault is a dataclass whose fields are its YAML keys."""

from __future__ import annotations

from chaos.faults.base import Breakage
from chaos.faults.links import Down, Hole, Link, Toxic
from chaos.faults.nodes import Freeze, Kill, Promote, Restart, Stop, Switchover
from chaos.faults.servers import Crash, PauseReplay, Sql, Terminate
from chaos.faults.storms import Cancel, Conflict, Connections, Ddl
from chaos.faults.strikes import Strike

__all__ = [
    "FAULTS",
    "Breakage",
    "Cancel",
    "Conflict",
    "Connections",
    "Crash",
    "Ddl",
    "Down",
    "Freeze",
    "Hole",
    "Kill",
    "Link",
    "PauseReplay",
    "Promote",
    "Restart",
    "Sql",
    "Stop",
    "Strike",
    "Switchover",
    "Terminate",
    "Toxic",
]

FAULTS: dict[str, type[Breakage]] = {
    "toxic": Toxic,
    "down": Down,
    "hole": Hole,
    "kill": Kill,
    "freeze": Freeze,
    "stop": Stop,
    "restart": Restart,
    "promote": Promote,
    "switchover": Switchover,
    "crash": Crash,
    "terminate": Terminate,
    "pause-replay": PauseReplay,
    "sql": Sql,
    "strike": Strike,
    "connections": Connections,
    "cancel": Cancel,
    "conflict": Conflict,
    "ddl": Ddl,
}
"""The faults, by their names in a scenario."""
