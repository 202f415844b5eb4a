"""ONNX Runtime and OpenVINO on the project's own weights, for `make bench-models`.

    peers.py onnxruntime|openvino lenet|resnet50 WEIGHTS.safetensors SIDE THREADS

Builds the network as an ONNX graph from the weights, then answers each line
`BATCH SECONDS` on standard input with one line: the median milliseconds of an
image over as many runs as fit into that time, and the first image's logits.
The input is the same as the benchmark's own: pixel i of a batch is sin(i).
"""

import statistics
import sys
import time

import numpy
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file


class Graph:
    """Nodes and weights of a network that is being written down."""

    def __init__(self, weights):
        self.weights, self.nodes, self.initializers, self.count = weights, [], [], 0

    def tensor(self, name):
        array = self.weights[name].astype(numpy.float32)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind, inputs, **attributes):
        self.count += 1
        name = f"{kind.lower()}{self.count}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def linear(self, x, name):
        return self.node("Gemm", [x, self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")], transB=1)

    def model(self, output, channels, side, classes):
        value = helper.make_tensor_value_info
        x = value("x", TensorProto.FLOAT, ["n", channels, side, side])
        y = value(output, TensorProto.FLOAT, ["n", classes])
        graph = helper.make_graph(self.nodes, "network", [x], [y], self.initializers)
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def lenet(weights, side):
    graph = Graph(weights)
    x = "x"
    for name, padding in (("conv1", 2), ("conv2", 0)):
        tensors = [graph.tensor(f"{name}.weight"), graph.tensor(f"{name}.bias")]
        x = graph.node("Conv", [x, *tensors], kernel_shape=[5, 5], pads=[padding] * 4)
        x = graph.node("MaxPool", [graph.node("Relu", [x])], kernel_shape=[2, 2], strides=[2, 2])
    x = graph.node("Flatten", [x])
    for name in ("fc1", "fc2"):
        x = graph.node("Relu", [graph.linear(x, name)])
    return graph.model(graph.linear(x, "fc3"), 1, side, 10), 1


def resnet50(weights, side):
    graph = Graph(weights)

    def layer(x, conv, norm, stride):
        kernel = weights[f"{conv}.weight"].shape[2]
        x = graph.node(
            "Conv", [x, graph.tensor(f"{conv}.weight")],
            kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4,
        )
        tensors = [graph.tensor(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
        return graph.node("BatchNormalization", [x, *tensors], epsilon=1e-5)

    def relu(x):
        return graph.node("Relu", [x])

    x = relu(layer("x", "conv1", "bn1", 2))
    x = graph.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = relu(layer(x, f"{name}.conv1", f"{name}.bn1", 1))
            y = relu(layer(y, f"{name}.conv2", f"{name}.bn2", stride))
            y = layer(y, f"{name}.conv3", f"{name}.bn3", 1)
            if block == 0:
                x = layer(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = relu(graph.node("Add", [y, x]))
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x])])
    return graph.model(graph.linear(x, "fc"), 3, side, len(weights["fc.bias"])), 3


def onnxruntime(model, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda shape: lambda batch: session.run(None, {"x": batch})[0]


def openvino(model, threads):
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = {}

    def for_shape(shape):
        if shape not in compiled:
            network = core.read_model(model)
            network.reshape(list(shape))
            compiled[shape] = core.compile_model(network, "CPU", settings).create_infer_request()
        request = compiled[shape]
        return lambda batch: request.infer([batch])[0]

    return for_shape


def main():
    runtime, network, path, side, threads = sys.argv[1:]
    side = int(side)
    model, channels = {"lenet": lenet, "resnet50": resnet50}[network](load_file(path), side)
    for_shape = {"onnxruntime": onnxruntime, "openvino": openvino}[runtime](model, int(threads))
    print("ready", flush=True)
    for line in sys.stdin:
        count, seconds = line.split()
        shape = (int(count), channels, side, side)
        batch = numpy.sin(numpy.arange(numpy.prod(shape), dtype=numpy.float64))
        batch = batch.astype(numpy.float32).reshape(shape)
        run = for_shape(shape)
        logits = run(batch)
        times, end = [], time.perf_counter() + float(seconds)
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            run(batch)
            times.append(time.perf_counter() - start)
        milliseconds = 1e3 * statistics.median(times) / shape[0]
        print(milliseconds, *logits[0].tolist(), flush=True)


if __name__ == "__main__":
    main()
