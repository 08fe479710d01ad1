"""`dbguard demo`: a real cluster, a real failover, and the same work with and without dbguard beside each other."""

from dbguard.cli.demo.run import run

__all__ = ["run"]
