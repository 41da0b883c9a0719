"""A model to a weights file and back (the format is described in weights/README.md)."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from minitl.models.classifier import Classifier

if TYPE_CHECKING:
    from minitl.hdf5 import WeightsFile


def to_weights_file(model: Classifier, **extra: Any) -> WeightsFile:
    """Describe a model as the contents of a weights file; `extra` sets further fields of it."""
    from minitl.hdf5 import WeightsFile

    fields: dict[str, Any] = {
        "arch": model.arch,
        "arch_options": model.arch_options,
        "state": model.state_dict(),
        "class_names": model.class_names,
        "preprocessing": model.preprocessing,
        "source": model.source,
        "source_sha256": model.source_sha256,
        "license": model.license,
    }
    return WeightsFile(**fields | extra)


def empty_model(arch: str, options: Mapping[str, Any], what: str) -> Classifier:
    """Make a network of zeros as a file or a user describes it; `what` names the origin in errors.

    Raises UserError for an architecture or option that cannot be.
    """
    from minitl import models
    from minitl.errors import UserError

    if reserved := options.keys() & {"seed", "num_classes"}:
        raise UserError(f"{what}: {', '.join(sorted(reserved))} is no option of an architecture")
    try:
        return models.create(arch, seed=None, **options)
    except MemoryError:
        raise UserError(f"{what}: no memory for {arch} with {dict(options)}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{what}: {error}") from None


def from_weights_file(contents: WeightsFile, what: str) -> Classifier:
    """Make the model that a weights file describes; `what` names the file in errors."""
    model = _fitting_model(contents, what)
    model.load_state_dict(contents.state)
    model.class_names = contents.class_names
    model.preprocessing = contents.preprocessing
    model.source, model.source_sha256 = contents.source, contents.source_sha256
    model.license = contents.license
    return model


def _fitting_model(contents: WeightsFile, what: str) -> Classifier:
    """Make the network, of zeros, that a file's weights and names are for; UserError if they do not fit."""
    from minitl.errors import UserError
    from minitl.hdf5 import check_state

    model = empty_model(contents.arch, contents.arch_options, what)
    last = f"{model.last_name}.weight"
    head, width = contents.state.get(last), model.state_dict()[last].shape[1]
    # Tasks say the number of outputs themselves. A head of another width or of no rows would be made as large
    # as the file says, not as it is; check_state refuses it.
    if (
        head is not None
        and head.ndim == 2
        and len(head)
        and head.shape[1] == width
        and not model.tasks
    ):
        model.replace_head(len(head), seed=None, hidden=model.arch_options.get("head", ()))
    check_state(
        {name: array.shape for name, array in model.state_dict().items()}, contents.state, what
    )
    names = contents.class_names
    if names is not None and len(names) != model.num_classes:
        raise UserError(
            f"{what}: {len(names)} class names for {model.num_classes} classes; "
            "make it again with one name for each"
        )
    return model


def save_model(model: Classifier, path: str | PathLike[str], **extra: Any) -> None:
    """Write a model to an HDF5 weights file, atomically: a file of that name stays whole until the
    new one is complete.

    extra: further fields of `hdf5.WeightsFile`, or others than the model's own, such as `source`.

    Raises UserError where the file cannot be written, and, writing nothing, where `load_model` could not
    read it: where layers are not those of the architecture any more, or class names not those of its head.
    """
    from minitl import hdf5
    from minitl.errors import UserError

    contents = to_weights_file(model, **extra)
    try:
        _fitting_model(contents, str(path))
    except UserError as error:
        raise UserError(
            f"{error}\nNothing was written, as load_model could not read it. To give a model another head, "
            "call model.replace_head(num_classes) before training it, and set model.class_names; what has "
            "been trained is in model.state_dict()"
        ) from None
    hdf5.write(path, contents)


def load_model(path: str | PathLike[str]) -> Classifier:
    """Read a model from an HDF5 weights file, in training mode as new models are.

    Raises UserError for a file that is missing, damaged, altered, or does not fit its architecture.
    """
    from minitl import hdf5

    return from_weights_file(hdf5.read(path), str(path))
