"""The asynchronous reinforcement learning core: a schedule without I/O and thin processes around it."""
