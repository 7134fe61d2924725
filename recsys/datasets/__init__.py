"""Reading logs into tables: importers, the marketplace simulator, prepared arrays."""
