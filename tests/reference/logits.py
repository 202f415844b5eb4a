"""Logits of PyTorch's own networks, for the test that compares ours with them.

    logits.py OUT [MODELS]

Writes into the folder OUT, for torchvision's ResNet-50 and a LeNet written with
torch.nn, each with random weights and, where the folder MODELS has weights
under the project's names, with those: NAME.safetensors (the state dictionary
as torchvision names it), NAME.images (100 inputs, f32) and NAME.logits (f32).
"""

import pathlib
import sys

import torch
import torchvision
from safetensors.torch import load_file, save_file

IMAGES = 100


class LeNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = torch.nn.Conv2d(6, 16, 5)
        self.fc1 = torch.nn.Linear(400, 120)
        self.fc2 = torch.nn.Linear(120, 84)
        self.fc3 = torch.nn.Linear(84, 10)

    def forward(self, x):
        pool, relu = torch.nn.functional.max_pool2d, torch.relu
        x = pool(relu(self.conv1(x)), 2)
        x = pool(relu(self.conv2(x)), 2).flatten(1)
        return self.fc3(relu(self.fc2(relu(self.fc1(x)))))


def write(out, name, network, images):
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(part) for part in images.split(10)])
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, out / f"{name}.safetensors")
    (out / f"{name}.images").write_bytes(images.contiguous().numpy().tobytes())
    (out / f"{name}.logits").write_bytes(logits.contiguous().numpy().tobytes())


def main():
    out = pathlib.Path(sys.argv[1])
    models = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
    torch.manual_seed(7)
    photographs = torch.randn(IMAGES, 3, 224, 224)
    digits = torch.rand(IMAGES, 1, 28, 28)

    resnet50 = torchvision.models.resnet50(num_classes=1000)
    # Norms that do something: statistics of these images, random scales and shifts.
    for module in resnet50.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.3, 1.0)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
    resnet50.train()
    with torch.no_grad():
        for part in photographs.split(10):
            resnet50(part)
    write(out, "resnet50-random", resnet50, photographs)
    write(out, "lenet-random", LeNet(), digits)

    for name, images in (("resnet50", photographs), ("lenet", digits)):
        path = models / f"{name}.safetensors" if models else None
        if path is None or not path.exists():
            continue
        weights = {key: value.float() for key, value in load_file(path).items()}
        if name == "lenet":
            network = LeNet()
        else:
            network = torchvision.models.resnet50(num_classes=len(weights["fc.bias"]))
        missing, unexpected = network.load_state_dict(weights, strict=False)
        if unexpected or any(not key.endswith("num_batches_tracked") for key in missing):
            sys.exit(f"{path}: missing {missing}, unexpected {unexpected}")
        write(out, f"{name}-trained", network, images)


main()
