"""Migrations of Alembic's run through an engine over a guard, by the `env.py` that its documentation shows."""

from __future__ import annotations

import asyncio

from alembic import command
from alembic.config import Config

ENVIRONMENT = """
import asyncio
from alembic import context
from sqlalchemy.pool import NullPool
import dbguard
from dbguard.integrations.sqlalchemy import create_async_engine

def migrate(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()

async def main():
    async with dbguard.connect(context.config.get_main_option("dsn")) as guard:
        engine = create_async_engine(guard, poolclass=NullPool)
        async with engine.connect() as connection:
            await connection.run_sync(migrate)
        await engine.dispose()

asyncio.run(main())
"""
REVISION = """
from alembic import op
import sqlalchemy as sa

revision, down_revision = "1", None

def upgrade():
    op.create_table("migrated", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("INSERT INTO migrated VALUES (7)")
    with op.get_context().autocommit_block():
        op.create_index("migrated_id", "migrated", ["id"], postgresql_concurrently=True)

def downgrade():
    op.drop_table("migrated")
"""


async def test_migrations_run_on_the_primary(calm_cluster, tmp_path):
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ENVIRONMENT)
    (tmp_path / "versions" / "1.py").write_text(REVISION)
    config = Config()
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("path_separator", "os")
    config.set_main_option("dsn", calm_cluster.dsn("c", "b", "a"))

    def there(node):
        return calm_cluster.sql(node, "SELECT to_regclass('migrated')::text, to_regclass('migrated_id')::text")[0]

    await asyncio.to_thread(command.upgrade, config, "head")
    assert await asyncio.to_thread(there, "a") == ("migrated", "migrated_id")
    assert await asyncio.to_thread(calm_cluster.sql, "a", "SELECT id FROM migrated") == [(7,)]

    await asyncio.to_thread(command.downgrade, config, "base")
    assert await asyncio.to_thread(there, "a") == (None, None)
    await asyncio.to_thread(calm_cluster.sql, "a", "DROP TABLE alembic_version")
