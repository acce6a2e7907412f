"""Make the data of the examples from scikit-learn's digits, without a download: a folder of images, and arrays.

python examples/data.py     # writes examples/data/digits/<class>/*.png and examples/data/digits.npz
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

PLACE = Path(__file__).with_name("data")


def main() -> None:
    """Write the same 1,797 images of 8 x 8 pixels in both forms."""
    found = load_digits()
    images, labels = (found.images / 16 * 255).round().astype(np.uint8), found.target
    for number, (image, label) in enumerate(zip(images, labels)):
        folder = PLACE / "digits" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:04}.png")
    train = {"train_images": images[:1437], "train_labels": labels[:1437]}
    np.savez_compressed(PLACE / "digits.npz", **train, test_images=images[1437:], test_labels=labels[1437:])
    print(f"{len(images):,} images in {PLACE}")


if __name__ == "__main__":
    main()
