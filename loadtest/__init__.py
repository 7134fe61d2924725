"""Honest load tests over HTTP: open loop, rate sweep, closed loop beside it, journeys; imports nothing of Windfire."""
