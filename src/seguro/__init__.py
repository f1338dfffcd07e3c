"""Segments medical images when the textbook setting fails."""

__version__ = "0.1.0"
