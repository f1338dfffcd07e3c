"""Adaptation of RobustMedSeg: segments at a site without labels, by way of a site that has them."""
