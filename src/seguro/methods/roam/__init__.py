"""ROAM: semi-supervised segmentation by mixing samples at a random layer."""
