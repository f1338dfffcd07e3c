"""The data factory of RobustMedSeg: slices of every site from one generator."""
