"""asyncpg: its exceptions become failures, its pools give leases, its sessions are asked who they are."""
