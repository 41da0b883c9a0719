"""A pretrained network and labelled pictures to a better classifier, and to what people judge it by.

Settings
    config.py              all that a run is told, and its config.toml
    options.py             settings as the command line gives them, for messages
    contradictions.py      settings that cannot be meant together
    recipes.py             settings by name
    rates.py               learning rates of parts of their own
    source.py              which pictures, with which labels
    usable_data.py         which of them can be read, and what a quick look finds
    run_folder.py          where a run goes, and what it must not replace

The network
    trained_model.py       loaded or fresh, with its new head and what is frozen
    prepared_pictures.py   how pictures were prepared for its weights
    heads.py               the kinds of heads
    freezing.py            what never trains
    unfreezing.py          what begins to train later
    averaging.py           the moving average of its weights

The loop
    finetune.py            epoch after epoch, from the data folder to summary.json
    run.py                 what a run is, and what computes it
    run_state.py           what it writes as it goes on, and how it is read back
    checkpoint.py          when that is written
    step.py                one step: forward, loss, backward, update
    optimisation.py        optimizer, rates, schedule, early stopping
    task_loss.py           the loss of several tasks
    mixing.py              mixup and cutmix
    attack.py              pictures that are changed to mislead the network
    batches.py             from the loader to the device
    computing.py           a device, ready to compute
    recording.py           steps and forward passes as CUDA graphs
    clock.py               what took how long
    console.py             what the screen says
    lr_finder.py           which learning rate to begin with
    preview.py             what a run will show the network
    demo.py                the built-in example

Features of frozen layers
    forward.py             a network on a loader's pictures, its frozen front only once
    inference.py           batches that are only looked at
    features.py            what frozen layers compute
    feature_cache.py       kept on disk
    feature_runs.py        as a file of their own: written, and trained on

Judging
    evaluate.py            a run or weights on labelled pictures
    predict.py             and on others
    view_probabilities.py  what a network says, as the mean over views
    metrics.py             how good that is
    figures.py             these figures in a run's history and in words
    robustness.py          how good it is under attack
    activation_map.py      where the network looked
    shift.py               how far pictures are from those of the pretraining
    transfer.py            did transfer help?

Reports
    evidence.py            what a run leaves for people to judge it by
    report_page.py         report.html
    plots.py               curves, confusion, calibration
    pictures.py            pictures and maps in a page

Several tasks (see tasks.py)
    task_metrics.py        how good predictions are
    task_predictions.py    predictions as people and programs read them
    task_report.py         their part of the report
"""
