"""Preprocessed cases on disk, memory-mapped: what training reads."""

from __future__ import annotations
