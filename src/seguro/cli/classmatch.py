"""Classes of predictions and truth: whether they agree, and one in terms of the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seguro.core.errors import DataError
from seguro.core.types import Classes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def refuse_other_classes(predicted: Classes, classes: Classes, what: Path) -> None:
    """Refuse predictions of other classes than the truth's, or of classes that are built otherwise.

    Values of exclusive classes are matched by name; a region's values mean what they say, so they must agree.

    Raises:
        DataError: both are shown.
    """
    if set(predicted.foreground) != set(classes.foreground):
        raise DataError(
            f"{what}: predicts the classes {', '.join(predicted.foreground)}, the truth has "
            f"{', '.join(classes.foreground)}; evaluate against the dataset these predictions are of"
        )
    ours, theirs = (dict(zip(c.names, c.values, strict=True)) for c in (predicted, classes))
    if predicted.regions != classes.regions or (classes.regions and ours != theirs):
        raise DataError(
            f"{what}: predicts {_described(predicted)}, the truth has {_described(classes)}; "
            "evaluate against the dataset these predictions are of"
        )


def _described(classes: Classes) -> str:
    values = (f"{n} ({' or '.join(map(str, v))})" for n, v in zip(classes.names, classes.values, strict=True))
    return f"{'overlapping regions' if classes.regions else 'exclusive classes'} {', '.join(values)}"


def translated(label: NDArray[Any], predicted: Classes, classes: Classes, what: str) -> NDArray[np.uint8]:
    """Return a prediction's file values as stored labels of the truth's classes, matched by name."""
    import numpy as np

    from seguro.evaluation.scores import to_stored

    stored = to_stored(label, predicted, what=what)
    if predicted.names == classes.names or classes.regions:
        return stored
    table = np.zeros(256, np.uint8)
    for i, name in enumerate(predicted.names):
        table[i] = classes.names.index(name) if name in classes.foreground else 0
    out: NDArray[np.uint8] = table[stored]
    return out


def read_probabilities(path: Path, predicted: Classes, classes: Classes) -> NDArray[np.float32]:
    """Return (C, Z, Y, X) probabilities with channels in the order of `classes.names`."""
    import numpy as np

    from seguro.data import formats

    if path.suffix == ".npy":
        array = np.load(path, allow_pickle=False)  # (rows, columns, C)
        array = np.moveaxis(array, -1, 0)[:, None]
    else:
        array = formats.read_image([path], channels=predicted.n).array
    order = [predicted.names.index(n) if n in predicted.names else 0 for n in classes.names]
    return np.asarray(array, np.float32)[order]
