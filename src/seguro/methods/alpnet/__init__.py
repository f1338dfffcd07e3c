"""SSL-ALPNet: a new organ from one annotated scan, trained without any annotation."""
