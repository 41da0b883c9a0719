"""Pictures on disk to batches of numbers.

Which pictures, with which labels, in which part of the data:

    dataset.py         pictures with labels, by part; a split that is saved and read back
    scanner.py         which pictures are in a folder, and what is passed by
    folder.py          class folders as a dataset
    labels.py          labels from a table or from file names; from here all kinds of labels are found
    table.py           a CSV file about pictures
    task_table.py      a table with a column for each of several tasks
    targets.py         what is known of pictures in several tasks, as rows of numbers
    parts.py           what people call the parts train, val and test
    drawing.py         which pictures are in which part, where nobody says it
    stamps.py          whether a file is still the one it was
    doctor.py          what is wrong with a folder of pictures
    digits.py          a small real data set that needs no download

From a picture to the network:

    decode.py          a file of any kind to RGB bytes
    preprocessing.py   RGB bytes to the network's input
    augment.py         random variations for training
    loader.py          batches, decoded in threads while the network computes
    views.py           several views of each picture, for predictions that are averaged
    preview.py         a sheet of what the network will see

Nothing here knows about networks.
"""
