"""The command line: one module per command; nothing heavy is imported before it is needed."""
