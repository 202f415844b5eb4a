"""Prepares photographs as torchvision does, for tests/preprocessing.rs to compare with.

Usage: preprocessing.py OUTPUT PHOTOGRAPH...

Into the folder OUTPUT go, for each photograph (numbered from 0):
    N.png     its pixels as Pillow decodes them, upright
    N.colour  the input of a network of colours, 3 x 224 x 224 f32 in the machine's order
    N.grey    the input of a network of greys, 28 x 28 f32 likewise
Means and deviations are those of the manifests in the test.
"""

import sys

try:
    from PIL import Image, ImageOps
    from torchvision import transforms
except ImportError as error:
    print(f"{error}: pip install torch torchvision", file=sys.stderr)
    sys.exit(3)

COLOUR = transforms.Compose([
    transforms.Resize(256),
    transforms.CenterCrop(224),
    transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
])
GREY = transforms.Compose([
    transforms.Grayscale(),
    transforms.Resize(28),
    transforms.CenterCrop(28),
    transforms.ToTensor(),
    transforms.Normalize([0.1307], [0.3081]),
])

output = sys.argv[1]
for number, path in enumerate(sys.argv[2:]):
    # torchvision's own loader leaves a photograph lying on its side.
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    # Four bytes a pixel, as JPEG files are decoded to.
    image.convert("RGBA").save(f"{output}/{number}.png", compress_level=1)
    COLOUR(image).numpy().tofile(f"{output}/{number}.colour")
    GREY(image).numpy().tofile(f"{output}/{number}.grey")
