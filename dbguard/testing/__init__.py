"""For tests, ours and our users': a manual clock, a fake driver, a local cluster."""
