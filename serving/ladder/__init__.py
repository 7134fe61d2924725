"""The request path that always answers: tiers, deadlines, breakers, the limit of concurrency, kept answers."""
