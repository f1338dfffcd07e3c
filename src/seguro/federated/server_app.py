"""The Flower app of the server; the run's configuration names the federation's file, which stays there."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from pydantic import ValidationError

from seguro.core.errors import ConfigError
from seguro.core.settings import read_yaml
from seguro.federated import waits
from seguro.federated.grid import GridFleet
from seguro.federated.rounds import Server
from seguro.federated.strategies import Federation

log = logging.getLogger(__name__)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that `federation` of the run's configuration names, in the folder `folder`."""
    waits.of_server()
    path, folder = (Path(str(context.run_config[k])) for k in ("federation", "folder"))
    Server(read(path), folder, GridFleet(grid), say=log.warning).run()


def read(path: Path) -> Federation:
    """Return the federation in a YAML file.

    Raises:
        ConfigError: unknown fields, or values out of range; each is listed.
    """
    try:
        return Federation.model_validate(read_yaml(path))
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{path}:\n  " + "\n  ".join(lines)) from error
