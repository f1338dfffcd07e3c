"""Data from folder to patch: layouts, formats, checks, the plan, the store, sampling and augmentation."""
