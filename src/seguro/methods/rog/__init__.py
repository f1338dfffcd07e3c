"""ROG: a network that does not break when its input is perturbed."""
