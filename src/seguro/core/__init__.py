"""Types, errors, files, seeds and stages: what every other part of seguro builds on. Never imports torch."""
