"""Pictures on disk to batches of numbers.

    folder.py          which file has which label, and which part of the data it belongs to
    labels.py          labels from a table, or from the files' names
    table.py           tables about pictures
    task_table.py      several tasks from one table
    targets.py         what is known of pictures in several tasks
    parts.py           what people call these parts
    stamps.py          whether a file is still the one it was
    decode.py          a file of any kind to RGB bytes
    doctor.py          what is wrong with a folder of pictures
    preprocessing.py   RGB bytes to the network's input
    augment.py         random variations for training
    loader.py          batches, decoded in threads while the network computes
    views.py           several views of each picture, for predictions
    preview.py         a contact sheet of what the network will see
    digits.py          a small real data set that needs no download

Nothing here knows about networks.
"""
