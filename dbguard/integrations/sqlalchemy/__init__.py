"""SQLAlchemy 2 over a guard: engines that follow the cluster's roles, and sessions that read from the right node.

    engine = create_async_engine(guard, pool_size=20)
    Sessions = async_sessionmaker(engine, class_=AsyncSession)

Needs the extra ``sqlalchemy``.
"""

try:
    import sqlalchemy
except ModuleNotFoundError as error:
    if error.name != "sqlalchemy":
        raise
    raise ModuleNotFoundError(
        "dbguard.integrations.sqlalchemy needs SQLAlchemy 2: pip install 'sqlalchemy[asyncio]>=2.0.22', or dbguard with "
        "its extra `sqlalchemy`",
        name="sqlalchemy",
    ) from error
if int(sqlalchemy.__version__.split(".")[0]) < 2:
    raise ImportError(
        f"dbguard.integrations.sqlalchemy needs SQLAlchemy 2, and {sqlalchemy.__version__} is installed: "
        "pip install 'sqlalchemy[asyncio]>=2.0.22'",
        name="sqlalchemy",
    )

from dbguard.integrations.sqlalchemy.engines import create_async_engine, create_engine, replica_engine
from dbguard.integrations.sqlalchemy.errors import LoadedFromReplica, NotARead
from dbguard.integrations.sqlalchemy.sessions import AsyncSession, Session

__all__ = [
    "AsyncSession",
    "LoadedFromReplica",
    "NotARead",
    "Session",
    "create_async_engine",
    "create_engine",
    "replica_engine",
]
