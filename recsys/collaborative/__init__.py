"""Item vectors and neighbours from co-occurrence in training interactions."""
