"""The plain ways to adapt: labelled images in the look of unlabelled ones."""
