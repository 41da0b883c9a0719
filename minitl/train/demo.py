"""`minitl finetune --demo`: real handwritten digits, few labels, and what pretraining is worth.

The weights were pretrained on drawings made by a formula (weights/README.md). The same network, the
same pictures and the same number of steps are then used twice: from these weights, and from scratch.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minitl.data.digits import write_digits
from minitl.errors import InterruptedRunError
from minitl.files import write_json
from minitl.train.config import make_config
from minitl.train.console import percent, say
from minitl.train.contradictions import refuse_given
from minitl.train.finetune import finetune
from minitl.train.run_folder import holds_run
from minitl.weights import STROKES

RUNS_INSIDE = ("finetuned", "scratch")
LABELS_PER_CLASS = 10
# The best for each on other splits (python -m minitl.weights.transfer --tune).
LR_PRETRAINED, LR_FROM_SCRATCH = 0.02, 0.1

# What the demo cannot be told: its pictures are its own, and from scratch nothing can be frozen.
_BROUGHT = (
    *("data", "weights", "arch", "from_scratch", "recipe", "features", "labels", "label_from_name"),
    *("task", "task_weight", "val_fraction", "test_fraction", "follow_links", "skip_bad"),
    *("freeze", "freeze_until", "unfreeze_schedule", "feature_cache", "cached_views"),
)


def demo(folder: Path, **overrides: Any) -> dict[str, Any]:
    """Fine-tune on the digits, then train the same network from scratch; return both in a summary.

    Raises UserError for options that contradict this, before anything is written. Where it ends before a run
    was saved, nothing is left of it.
    """
    reason = "--demo brings its own DATA, with labels and parts, --weights and settings, and compares with "
    reason += "training from scratch, where all layers train"
    refuse_given(overrides, _BROUGHT, reason)
    data = folder / "digits"
    settings: dict[str, Any] = {
        "data": str(data),
        "weights": str(STROKES),
        "epochs": 30,
        "batch_size": 25,
        "optimizer": "sgd",
        "lr": LR_PRETRAINED,
        "nesterov": True,
        "weight_decay": 5e-4,
        "decay_norms": True,
        # 10 of the 120 steps, and always fewer than there are.
        "warmup_steps": min(10, overrides.get("epochs", 30) - 1),
        "augment": False,
    }
    pretrained = make_config(None, overrides, settings)
    settings |= {"from_scratch": True, "lr": LR_FROM_SCRATCH}
    from_scratch = make_config(None, overrides, settings)
    with _ending(folder, data):
        say(f"writing scikit-learn's handwritten digits to {data} as an image folder")
        write_digits(data, labels_per_class=LABELS_PER_CLASS)
        say("\n1. fine-tuning the pretrained network")
        tuned = finetune(pretrained, folder / RUNS_INSIDE[0])
        say("\n2. the same network from scratch, same pictures, same steps")
        scratch = finetune(from_scratch, folder / RUNS_INSIDE[1])
    summary = {
        **tuned,
        "transfer": {
            "labels_per_class": LABELS_PER_CLASS,
            "pretrained_test_accuracy": tuned["test"]["accuracy"],
            "scratch_test_accuracy": scratch["test"]["accuracy"],
        },
    }
    write_json(folder / "summary.json", summary)
    gain = 100 * (tuned["test"]["accuracy"] - scratch["test"]["accuracy"])
    say(
        f"\nWhat transfer bought, with {LABELS_PER_CLASS} labelled pictures of each digit, judged on "
        f"{tuned['test']['images']} others:\n"
        f"  from scratch  {percent(scratch['test']['accuracy'])}\n"
        f"  pretrained    {percent(tuned['test']['accuracy'])}   ({gain:+.1f} points)\n"
        f"Try it: minitl predict {folder / 'finetuned'} {data / 'test' / '7'}/*.png"
    )
    return summary


@contextlib.contextmanager
def _ending(folder: Path, data: Path) -> Iterator[None]:
    """Where the block ends early, take the digits away that it wrote if no run is there to keep them for.

    They would stand in the way of another try. Raises InterruptedRunError with what continues both runs.
    """
    there = [path for path in (data, folder, *folder.parents) if path.exists()]
    try:
        yield
    except BaseException as error:
        if data not in there and not any(holds_run(folder / run) for run in RUNS_INSIDE):
            shutil.rmtree(data, ignore_errors=True)
            for path in (folder, *folder.parents):
                if path not in there:
                    with contextlib.suppress(OSError):  # it holds something, or is gone
                        path.rmdir()
        if isinstance(error, KeyboardInterrupt | InterruptedRunError):
            raise InterruptedRunError(
                "interrupted; a demo is two runs, and --resume continues one alone; begin it again with: "
                f"minitl finetune --demo --out {folder} --overwrite"
            ) from None
        raise
