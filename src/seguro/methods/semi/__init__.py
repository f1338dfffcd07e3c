"""Semi-supervised methods to compare with: Mean Teacher, CPS, UniMatch, BCP."""
