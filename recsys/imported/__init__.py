"""Bringing in generators that were trained elsewhere: SID files, prompts, licences, checks."""
