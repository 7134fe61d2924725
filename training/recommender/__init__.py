"""The recommender's trainer: examples, teacher, objectives, loop, checkpoints."""
