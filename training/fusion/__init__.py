"""Fitting what the `fused` decoder ranks by to a finished run."""
