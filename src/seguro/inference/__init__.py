"""Prediction: networks driven slab by slab, their scores brought back to the file's own grid."""
