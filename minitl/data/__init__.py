"""Pictures on disk to batches of numbers.

    folder.py          which file has which label, and which part of the data it belongs to
    parts.py           what people call these parts
    stamps.py          whether a file is still the one it was
    decode.py          a file of any kind to RGB bytes
    doctor.py          what is wrong with a folder of pictures
    preprocessing.py   RGB bytes to the network's input
    augment.py         random variations for training
    loader.py          batches, decoded in threads while the network computes
    digits.py          a small real data set that needs no download

Nothing here knows about networks.
"""
