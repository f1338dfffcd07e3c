"""PFSeg: whole volumes at once, guided by super-resolution, no patches."""
