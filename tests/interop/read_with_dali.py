"""Print as JSON what DALI's ``fn.readers.mxnet`` gives for a record set; run in an environment that has DALI.

``read_with_dali.py TRAIN.REC``: no GPU is needed. An image is told by the SHA-256 of its bytes.
"""

import hashlib
import json
import sys

from nvidia.dali import fn, pipeline_def


@pipeline_def(batch_size=1, num_threads=1, device_id=None)
def reading(rec):
    return tuple(fn.readers.mxnet(path=[rec], index_path=[rec[:-3] + "idx"], name="reader"))


if __name__ == "__main__":
    pipeline = reading(sys.argv[1])
    pipeline.build()
    found = []
    for _ in range(pipeline.epoch_size("reader")):
        image, label = (output.as_array()[0] for output in pipeline.run())
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        found.append({"labels": label.tolist(), "sha256": digest})
    print(json.dumps({"dali": found}))
