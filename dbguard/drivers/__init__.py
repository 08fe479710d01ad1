"""One file for each driver: its exceptions become failures, its pools give leases."""
