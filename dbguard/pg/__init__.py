"""What applications hold in the facades over psycopg: connections, cursors and results, for tasks and for threads."""
