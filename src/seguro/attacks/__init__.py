"""Attacks on any predictor, with a worst case that can be believed, and natural corruptions beside them."""
