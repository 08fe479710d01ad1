"""Pure decisions: no clock, no randomness, no I/O, no driver, no logging; the standard library alone."""
