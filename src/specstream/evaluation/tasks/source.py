"""Where a task's examples come from: a file, or the data set of the hub that the task names."""

from __future__ import annotations

from pathlib import Path

from specstream.environment import require
from specstream.errors import UsageError, one_line
from specstream.evaluation.tasks.task import HubDataset, Task, TaskExample, examples_of, read_examples
from specstream.models.hub.data_sets import load_dataset


def load_examples(name: str, task: Task, path: str | None = None) -> list[TaskExample]:
    """All examples of a task.

    Args:
        name: of the task, for errors.
        task: how to read them.
        path: the file; None takes the data set of the hub.

    Raises:
        UsageError: a file or a data set that is not there, or that does not fit.
        MissingPackageError: the data set is on the hub and ``datasets`` is not installed.
    """
    if path is not None:
        if not Path(path).is_file():
            raise UsageError(f"data {path!r} of the task {name!r} is no file; give one, with --data or path:")
        return read_examples(task, path)
    if task.dataset is None:
        raise UsageError(f"task {name!r} names no data set of the hub; give a .{task.format} file, --data FILE")
    return _from_hub(name, task, task.dataset)


def _from_hub(name: str, task: Task, dataset: HubDataset) -> list[TaskExample]:
    datasets = require("datasets", "eval", f"the data of the task {name!r}")
    try:
        rows = load_dataset(datasets, dataset.name, dataset.config, split=dataset.split, revision=dataset.revision)
    except Exception as error:  # of the network, the hub and the data set, each library with its own
        reason = one_line(error)[:200]
        raise UsageError(
            f"data set {dataset.name!r} of the task {name!r} cannot be loaded: {reason}; give a file, --data FILE"
        ) from None
    return examples_of(task, ((dict(row), f"{dataset.name}:{at}") for at, row in enumerate(rows, 1)), dataset.name)
