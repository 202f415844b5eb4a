"""LeNet in ONNX Runtime over the files of `make bench-jobs`: a plain process of a peer.

    plain_onnx.py WEIGHTS.safetensors DIR STEM EXTENSION COUNT BATCH PART PARTS RESULT

Speaks as `bench-plain` does: prints `ready`, then, for each line on standard input, classifies
the batches of the files that fall to it, writes the rows and prints how many they were.
"""

import pathlib
import sys

import numpy
import onnxruntime
from PIL import Image
from safetensors.numpy import load_file

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import peers


def main():
    path, folder, stem, extension, *numbers, result = sys.argv[1:]
    count, batch, part, parts = map(int, numbers)
    model, _ = peers.lenet(load_file(path), 28)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    print("ready", flush=True)
    for _ in sys.stdin:
        rows = ["file,label,confidence,error"]
        for start in range(part * batch, count, parts * batch):
            names = [f"{stem}{number}.{extension}" for number in range(start, min(start + batch, count))]
            pixels = [numpy.asarray(Image.open(f"{folder}/{name}"), dtype=numpy.float32) for name in names]
            images = (numpy.stack(pixels)[:, None] / 255 - 0.1307) / 0.3081
            logits = session.run(None, {"x": images.astype(numpy.float32)})[0]
            shares = numpy.exp(logits - logits.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            for name, share in zip(names, shares):
                label = int(share.argmax())
                rows.append(f"{name},{label},{share[label]:.6f},")
        pathlib.Path(result).write_text("\n".join(rows) + "\n")
        print(len(rows) - 1, flush=True)


main()
