"""Decoders and the verifier: history in, ranked items out."""
