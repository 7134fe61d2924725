"""Online features and user history."""
