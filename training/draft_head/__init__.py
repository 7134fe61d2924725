"""Fitting a draft head to a language model that stays as it is."""
