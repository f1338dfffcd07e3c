"""A site's SuperNode: Flower's own program with its own options, only with shorter waits (see `waits`)."""

from __future__ import annotations

from seguro.federated import startup, waits


def main() -> None:
    """Run Flower's `flower-supernode` with the arguments of this process."""
    startup.quiet()
    from flwr.supernode.cli import flower_supernode

    waits.of_node()
    flower_supernode()


if __name__ == "__main__":
    main()
