"""Prediction: a network driven over a volume slab by slab, and its scores brought back to the file's own grid."""
