"""The jobs, one file per table or family of tables."""
