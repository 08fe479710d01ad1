"""Backends that were given up with something in flight: ended where that is safe, and watched until they are gone.

A backend is a process of one running server. It is asked about there, under whatever name that server is reached now,
and never where its name has come to lead since: the same process number is somebody else's there, and that it is missing
there says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbguard.core.causal import Orphan
    from dbguard.core.topology import View
    from dbguard.drivers.base import Control

__all__ = ["bury"]

AT_ONCE = 50
"""Backends looked after per round, so that a storm of cancellations does not hold up the probes."""


async def bury(orphans: list[Orphan], controls: Mapping[str, Control], view: View, *, within: float) -> None:
    """End those of *orphans* that are doomed, and take out those that are gone or can do no more.

    controls: connections that may be used, by the name of their node. within: seconds for each question.
    """
    for orphan in orphans[:AT_ONCE]:
        orphan.gone = orphan.is_past(view) or await _is_gone(orphan, controls, view, within)
    orphans[:] = [orphan for orphan in orphans if not orphan.gone]


async def _is_gone(orphan: Orphan, controls: Mapping[str, Control], view: View, within: float) -> bool:
    for name in orphan.names(view):
        control = controls.get(name)
        if control is None or not control.alive:
            continue
        try:
            gone = await control.end_backend(
                orphan.pid, orphan.started, instance=orphan.instance, doomed=orphan.doomed, timeout=within
            )
        except Exception:  # noqa: BLE001, S112  another name may lead there; else it is asked again in the next round
            continue
        if gone is not None:
            return gone
    return False
