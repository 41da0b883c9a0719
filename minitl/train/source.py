"""Which pictures a run is about, and what their labels are."""

from pathlib import Path

from minitl.data.folder import Dataset
from minitl.data.labels import find_dataset
from minitl.feature_file import FeatureFile
from minitl.tasks import parse
from minitl.train import extract
from minitl.train.config import Config


def dataset_of(config: Config) -> Dataset:
    """Return the dataset that the settings name: a folder, with a table or a pattern, or features.

    Raises UserError for whatever is wrong with it.
    """
    if config.features is not None:
        file = FeatureFile(config.features)
        extract.require_same_pictures(file)
        return extract.dataset_of(file)
    return find_dataset(
        Path(config.data),
        labels=config.labels,
        label_from_name=config.label_from_name,
        tasks=parse(config.task, config.task_weight),
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.seed,
        follow_links=config.follow_links,
    )


__all__ = ["dataset_of"]
