"""Where core meets a clock, a lock and an event loop."""
