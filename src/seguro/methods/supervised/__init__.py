"""The plain supervised baseline."""
