"""Print as JSON what the readers of MXNet give for a record set; run in an environment that has mxnet 1.9.1.

``read_with_mxnet.py TRAIN.REC LABEL_WIDTH [HEIGHT WIDTH]``: with the size of the images, which must all have it, the
readers that decode are asked as well. An image is told by the SHA-256 of its bytes, or of its RGB pixels.
"""

import hashlib
import json
import sys

import mxnet as mx
import numpy as np


def entry(label: object, image: bytes, **more: object) -> dict[str, object]:
    labels = np.atleast_1d(label).astype(float).tolist()
    return {"labels": labels, "sha256": hashlib.sha256(image).hexdigest(), **more}


def pixels(image: np.ndarray) -> bytes:
    assert (image == image.astype(np.uint8)).all()
    return image.astype(np.uint8).tobytes()


def indexed(rec: str) -> list[dict[str, object]]:
    file = mx.recordio.MXIndexedRecordIO(rec[:-3] + "idx", rec, "r")
    found = []
    for key in file.keys:
        header, image = mx.recordio.unpack(file.read_idx(key))
        found.append(entry(header.label, image, key=key, id=header.id, flag=header.flag))
    return found


def in_order(rec: str) -> list[dict[str, object]]:
    """Without the index, one record after the other."""
    file = mx.recordio.MXRecordIO(rec, "r")
    unpacked = [mx.recordio.unpack(payload) for payload in iter(file.read, None)]
    return [entry(header.label, image, key=header.id) for header, image in unpacked]


def record_iter(rec: str, label_width: int, height: int, width: int) -> list[dict[str, object]]:
    batches = mx.io.ImageRecordIter(
        path_imgrec=rec, path_imgidx=rec[:-3] + "idx", data_shape=(3, height, width), batch_size=1,
        label_width=label_width, shuffle=False, preprocess_threads=1,
    )  # fmt: skip
    return [
        entry(batch.label[0].asnumpy().ravel(), pixels(batch.data[0].asnumpy()[0].transpose(1, 2, 0)))
        for batch in batches
    ]


def gluon(rec: str) -> list[dict[str, object]]:
    dataset = mx.gluon.data.vision.ImageRecordDataset(rec)
    return [
        entry(label, pixels(image.asnumpy())) for image, label in (dataset[i] for i in range(len(dataset)))
    ]


if __name__ == "__main__":
    rec, label_width, *size = sys.argv[1:]
    assert mx.__version__ == "1.9.1"
    readers = {"indexed": indexed(rec), "in_order": in_order(rec)}
    if size:
        readers["record_iter"] = record_iter(rec, int(label_width), *map(int, size))
        readers["gluon"] = gluon(rec)
    print(json.dumps(readers))
