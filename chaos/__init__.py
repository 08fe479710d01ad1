"""Scenarios: a real cluster behind Toxiproxy is broken on a timeline, and checkers judge what the clients saw.

A scenario is a YAML file (`chaos.scenario`); `python -m chaos` runs it; clients record what they did in a history
(`chaos.workloads`, `chaos.history`); checkers, pure functions of the history, give a verdict (`chaos.checkers`).
"""
