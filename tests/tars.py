"""WebDataset tars for tests, sound and hostile."""

import json
import tarfile

import numpy as np


def write(path, *files, **changes):
    """A tar of (name, content); ``changes`` are made to the header of the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = []
    for name, content in files:
        header = tarfile.TarInfo(name)
        header.size = len(content)
        for key, value in changes.items() if name == files[-1][0] else ():
            setattr(header, key, value)
        blocks += [header.tobuf(), content, bytes(-len(content) % 512)]
    path.write_bytes(b"".join([*blocks, bytes(1024)]))
    return path


def write_tars(folder, dataset, count=3):
    """A data set as webdataset and img2dataset write one, and as `tar c .` does."""
    parts = np.array_split(np.arange(len(dataset)), count)
    for number, part in enumerate(parts):
        files = []
        for index in part.tolist():
            encoded, label = dataset.read(index)
            told = json.dumps({"label": label, "url": "x"}) if number else f"{label}\n"
            sample = [
                (f"./{index:06}.jpg", encoded),
                (f"./{index:06}.{'json' if number else 'cls'}", told.encode()),
            ]
            files += sample if number == 1 else reversed(sample)
        write(folder / f"part-{number}.tar", *files)
    return folder
