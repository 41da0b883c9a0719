"""Which pictures a run is about, and what their labels are."""

from pathlib import Path

from minitl import run_files
from minitl.data.dataset import Dataset, load_split
from minitl.data.labels import find_dataset
from minitl.errors import UserError
from minitl.feature_file import FeatureFile
from minitl.tasks import parse
from minitl.train import feature_runs
from minitl.train.config import Config


def dataset_of(config: Config) -> Dataset:
    """Return the dataset that the settings name: a folder, with a table or a pattern, or features.

    Raises UserError for whatever is wrong with it, and for a fraction of a part that is there already.
    """
    if config.features is not None:
        file = FeatureFile(config.features)
        feature_runs.require_same_pictures(file)
        return feature_runs.dataset_from_features(file)
    dataset = find_dataset(
        Path(config.data),
        labels=config.labels,
        label_from_name=config.label_from_name,
        tasks=parse(config.task, config.task_weight),
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.seed,
        follow_links=config.follow_links,
    )
    refuse_idle_fractions(dataset, config.val_fraction, config.test_fraction)
    return dataset


def dataset_of_run(folder: Path, config: Config) -> Dataset:
    """Return the dataset of a run that has begun, in the parts that its split.json says.

    Raises UserError where the split or pictures of it are gone, and where they have been moved says how to go
    on.
    """
    root = Path(config.data)
    if not root.is_dir():
        raise UserError(
            f"{root}, the folder of the pictures of {folder}, is not there; put it back, or write the place "
            f"where it is now as data into {folder / run_files.SETTINGS}"
        )
    return load_split(folder / run_files.SPLIT, root)


def refuse_idle_fractions(dataset: Dataset, val_fraction: float, test_fraction: float) -> None:
    """Raise UserError for a fraction other than the usual one of a part that the dataset has by itself."""
    given = {"val": val_fraction != Config.val_fraction, "test": test_fraction > 0}
    for part, unusual in given.items():
        if unusual and part not in dataset.drawn:
            raise UserError(
                f"--{part}-fraction has no effect here: {dataset.root} has a {part} part of its own; leave "
                "it out"
            )


__all__ = ["dataset_of", "dataset_of_run", "refuse_idle_fractions"]
