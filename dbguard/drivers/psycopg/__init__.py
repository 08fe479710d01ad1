"""psycopg 3 as a driver, for asyncio and for threads."""
