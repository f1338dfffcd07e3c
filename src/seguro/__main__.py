"""`python -m seguro` does what `seguro` does, and `torchrun -m seguro train ...` one process per device."""

from __future__ import annotations

from seguro.cli.main import run

run()
