"""The parts of `windfire bench serving`, and what they share: bundles, processes, traffic."""
