"""Datasets that a study file brings: folders, arrays, torchvision's; the real digits of scikit-learn in each form."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pruning.study import datasets, own_data
from pruning.study.benchmarks import Data
from pruning.study.datasets import DataError, fingerprint, form, load
from pruning.study.sources import find

ROOT = Path(__file__).resolve().parents[2]
BLACK = np.zeros((1, 8, 8), np.uint8)
FASHION = ROOT / (os.environ.get("PRUNING_DATA") or "data") / "FashionMNIST" / "raw"


@pytest.fixture(scope="module")
def digits():
    """Images uint8 [400, 8, 8] and labels [400], the first of scikit-learn's digits by class."""
    found = load_digits()
    chosen = np.concatenate([np.flatnonzero(found.target == label)[:40] for label in range(10)])
    return (found.images[chosen] * 15).astype(np.uint8), found.target[chosen]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A project without data whose PRUNING_DATA is a folder of this test's own, and no network."""
    (tmp_path / "named").mkdir()
    monkeypatch.setenv("PRUNING_DATA", str(tmp_path / "named"))
    monkeypatch.setenv("PRUNING_ROOT", str(tmp_path))
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "prepared"))
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    return tmp_path / "named"


def split(digits, train=30):
    """Training and test images and labels, the first ``train`` of each class for training."""
    images, labels = digits
    first = np.arange(len(labels)) % 40 < train
    return images[first], labels[first], images[~first], labels[~first]


def planted(root, images, labels):
    """A folder ``<class>/<number>.png``; returns it."""
    for number, (image, label) in enumerate(zip(images, labels)):
        (root / f"{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / f"{label}" / f"{number:04}.png")
    return root


def halves(root, digits):
    """A folder with ``train`` and ``test``."""
    train_images, train_labels, test_images, test_labels = split(digits)
    planted(root / "train", train_images, train_labels)
    planted(root / "test", test_images, test_labels)
    return root


def stored(path, digits, **other):
    """An .npz with the four arrays, some of them replaced."""
    arrays = dict(zip(own_data.ARRAYS, split(digits)))
    np.savez(path, **{name: array for name, array in (arrays | other).items() if array is not None})
    return Data(npz=str(path))


def test_a_folder_and_arrays_of_the_same_images_are_the_same_dataset(digits, tmp_path):
    folder = Data(folder=str(halves(tmp_path / "digits", digits)))
    arrays = stored(tmp_path / "digits.npz", digits)
    first, second = load(folder), load(arrays)
    assert first.fingerprint == second.fingerprint == fingerprint(folder) == fingerprint(arrays)
    assert first.shape == (1, 8, 8) and first.classes == tuple("0123456789") and first.title == "digits"
    assert form(folder) == ((1, 8, 8), 10)
    counts = [part.labels.bincount().tolist() for part in (first.train, first.validation, first.test)]
    assert counts == [[24] * 10, [6] * 10, [10] * 10], "a fifth of the training images of each class for validation"


def test_pixels_and_labels_are_those_of_the_files(digits, tmp_path):
    data = load(Data(folder=str(halves(tmp_path / "digits", digits))))
    _, _, images, labels = split(digits)
    pixels = (data.test.images[:, 0].double().numpy() * data.std[0] + data.mean[0]) * 255
    assert np.abs(pixels - images).max() < 1e-3 and data.test.labels.tolist() == labels.tolist()


def test_an_undivided_folder_is_split_by_class_and_always_alike(digits, tmp_path):
    data = Data(folder=str(planted(tmp_path / "all", *digits)))
    loaded = load(data)
    counts = [part.labels.bincount().tolist() for part in (loaded.train, loaded.validation, loaded.test)]
    assert counts == [[26] * 10, [6] * 10, [8] * 10]
    again = Data(folder=str(planted(tmp_path / "elsewhere", *digits)))
    assert load(again).fingerprint == loaded.fingerprint
    with np.load(next((tmp_path / "prepared").glob("all-*.npz"))) as copy:
        indices = [copy[f"{part}_indices"] for part in datasets.PARTS]
    assert sorted(np.concatenate(indices)) == list(range(400))


def test_the_prepared_copy_is_used_until_a_file_changes(digits, tmp_path, monkeypatch):
    root = halves(tmp_path / "digits", digits)
    data = Data(folder=str(root))
    before = load(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_data, "read", lambda *given: pytest.fail("the files were read again"))
        assert load(data).fingerprint == fingerprint(data) == before.fingerprint
    (root / "train" / "3" / "more.png").write_bytes(next((root / "train" / "3").iterdir()).read_bytes())
    assert load(data).fingerprint != before.fingerprint and fingerprint(data) != before.fingerprint


def test_images_are_cut_to_the_middle_and_scaled(tmp_path, digits):
    images, labels = digits
    wide = np.pad(images, ((0, 0), (0, 0), (4, 4)))
    data = load(Data(folder=str(planted(tmp_path / "wide", wide, labels)), size=8))
    square = load(Data(folder=str(planted(tmp_path / "square", images, labels))))
    assert data.fingerprint == square.fingerprint and data.title == "wide at 8x8"
    scaled = load(Data(folder=str(tmp_path / "square"), size=(16, 12)))
    assert scaled.shape == (1, 16, 12) and scaled.title == "square at 16x12"


def test_one_coloured_image_makes_three_channels_of_all(tmp_path, digits):
    root = planted(tmp_path / "mixed", *digits)
    Image.new("RGB", (8, 8), (255, 0, 9)).save(root / "0" / "red.png")
    data = Data(folder=str(root))
    assert form(data) == ((3, 8, 8), 10)
    found = own_data.read(data, own_data.find(data))
    grey = found.images[found.labels == 5]
    assert (grey == grey[:, :1]).all() and (found.images[40] == np.array([255, 0, 9])[:, None, None]).all()


def test_labels_may_be_text_and_images_have_channels_first_or_last(tmp_path, digits):
    train_images, train_labels, test_images, test_labels = split(digits)
    names = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    data = stored(
        tmp_path / "named.npz",
        digits,
        train_images=np.repeat(train_images[..., None], 3, axis=3),
        train_labels=names[train_labels],
        test_images=np.repeat(test_images[:, None], 3, axis=1),
        test_labels=names[test_labels],
    )
    loaded = load(data)
    assert loaded.shape == (3, 8, 8) and loaded.classes == tuple(sorted(names))


def empty(root):
    for file in root.glob("*/*/*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: (root / "train/3/0001.png").write_bytes(b"no image"), r"train/3/0001.png cannot be read: cannot"),
        (lambda root: cut(root / "train/5"), r"train/5/.*png cannot be read: .*truncated"),
        (lambda root: (root / "train/3/notes.txt").write_text(""), r"notes.txt is not an image that Pillow reads"),
        (lambda root: (root / "train/list.csv").write_text(""), r"list.csv lies beside the folders of the classes"),
        (lambda root: (root / "test").rename(root / "tests"), r"there is .*/train and no .*/test"),
        (lambda root: (root / "train").rename(root / "training"), r"there is .*/test and no .*/train"),
        (
            lambda root: save(root / "test/3/0001.png", (9, 8)),
            r"has 8 x 9 pixels, the images before it 8 x 8: .*'size'",
        ),
        (lambda root: save(root / "test/3/0001.png", (8, 8), "I;16"), r"0001.png cannot be read: .*not of 8 bits"),
        (
            lambda root: planted(root / "test", [np.zeros((8, 8), np.uint8)], ["x"]),
            r"0 training images of the class 'x'",
        ),
        (lambda root: [path.unlink() for path in sorted((root / "train/3").iterdir())[4:]], r"4 training .* class '3'"),
        (empty, "holds no image"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(damage, said, digits, tmp_path):
    root = halves(tmp_path / "digits", digits)
    for name in ("train/3", "test/3"):
        save(root / name / "0001.png", (8, 8))
    damage(root)
    with pytest.raises(DataError, match=f"(?s)^digits: .*{said}"):
        load(Data(folder=str(root)))


def cut(folder):
    path = min(folder.iterdir())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save(path, size, mode="L"):
    Image.new(mode, size).save(path)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"test_labels": None}, "has no array test_labels; it takes train_images, train_labels"),
        ({"train_images": np.zeros((300, 8, 8))}, "train_images must be uint8, 0 to 255, and are float64"),
        ({"train_images": np.zeros((300, 8, 8, 2), np.uint8)}, r"1 or 3 channels, and have the shape \(300, 8, 8, 2\)"),
        (
            {"train_labels": np.zeros(7, int)},
            r"train_labels must be one label an image, 300, and have the shape \(7",
        ),
        ({"test_images": np.zeros((100, 9, 8), np.uint8)}, r"differ in shape: \(1, 8, 8\) and \(1, 9, 8\)"),
        ({"train_labels": np.array([{}] * 300)}, "cannot be read: Object arrays"),
        ({"train_labels": np.full(300, 4), "test_labels": np.full(100, 4)}, "all images are of the class 4"),
    ],
)
def test_what_is_wrong_with_arrays_is_named(other, said, digits, tmp_path):
    data = stored(tmp_path / "digits.npz", digits, **other)
    with pytest.raises(DataError, match=f"^digits: .*{said}"):
        load(data)


def test_a_file_that_is_no_npz_and_data_that_is_missing(tmp_path):
    (tmp_path / "digits.npz").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"digits.npz cannot be read"):
        load(Data(npz=str(tmp_path / "digits.npz")))
    for data, what in ((Data(folder=str(tmp_path / "no")), "folder"), (Data(npz=str(tmp_path / "no.npz")), "file")):
        assert fingerprint(data) is None and form(data) is None
        with pytest.raises(DataError, match=f"^no: there is no {what} .*/no"):
            load(data)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "one of 'torchvision', 'folder' and 'npz'"),
        ({"folder": "a", "npz": "b"}, "one of 'torchvision', 'folder' and 'npz'"),
        ({"npz": "a", "size": 8}, "leave 'size' out"),
        ({"folder": "a", "size": 0}, "greater than or equal to 1"),
        ({"folder": "a", "split": "letters"}, "option of torchvision's datasets alone"),
        ({"folder": "a", "sise": 8}, "Extra inputs"),
    ],
)
def test_a_dataset_is_checked_strictly(given, said):
    with pytest.raises(ValueError, match=said):
        Data(**given)


def idx(path, array):
    """An IDX file as MNIST's: uint8, gzipped as published."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + array.astype(np.uint8).tobytes())
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(b"what was fetched"))


def in_torchvisions_layout(place, digits, folder="KMNIST", form="{}-{}-idx{}-ubyte", halves=("train", "t10k")):
    train_images, train_labels, test_images, test_labels = split(digits)
    for half, images, labels in ((halves[0], train_images, train_labels), (halves[1], test_images, test_labels)):
        idx(place / folder / "raw" / form.format(half, "images", 3), np.pad(images, ((0, 0), (10, 10), (10, 10))))
        idx(place / folder / "raw" / form.format(half, "labels", 1), labels)


def test_a_dataset_of_torchvision_by_name(place, digits, tmp_path):
    in_torchvisions_layout(place, digits)
    data = Data(torchvision="KMNIST")
    assert own_data.find(data).path == place
    loaded = load(data)
    assert (
        loaded.shape == (1, 28, 28) and loaded.title == "KMNIST" and loaded.test.labels.bincount().tolist() == [10] * 10
    )
    assert form(Data(torchvision="KMNIST", size=14)) == ((1, 14, 14), 10)
    elsewhere = tmp_path / "data"
    place.rename(elsewhere)  # the project's own folder
    place.mkdir()
    assert own_data.find(data).path == elsewhere and fingerprint(data) == loaded.fingerprint


def test_emnist_says_which_part(place, digits):
    in_torchvisions_layout(place, digits, "EMNIST", "emnist-digits-{}-{}-idx{}-ubyte", ("train", "test"))
    assert load(Data(torchvision="EMNIST", split="digits")).title == "EMNIST-digits"
    with pytest.raises(DataError, match="comes in several parts: say which by 'split'"):
        load(Data(torchvision="EMNIST"))
    with pytest.raises(DataError, match="EMNIST-letters: torchvision cannot open its train split in .*named"):
        load(Data(torchvision="EMNIST", split="letters"))


def test_pictures_of_torchvision_that_cannot_be_read_are_counted(place, digits):
    images, _ = digits
    for half in ("train", "dev", "test"):
        root = planted(place / "rendered-sst2" / half, images[:80], ["negative"] * 40 + ["positive"] * 40)
        if half == "test":
            (root / "positive" / "0041.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"RenderedSST2: image 41 of its test split cannot be read: .*0041.png"):
        load(Data(torchvision="RenderedSST2"))


def test_torchvisions_names_are_checked_and_what_has_no_test_split_is_said(place):
    with pytest.raises(DataError, match="torchvision has no dataset 'FashoinMNIST'; near it are FashionMNIST"):
        load(Data(torchvision="FashoinMNIST"))
    with pytest.raises(DataError, match="torchvision has no dataset 'FakeData'; it has .*MNIST|near it are"):
        load(Data(torchvision="FakeData"))
    with pytest.raises(DataError, match="Imagenette: torchvision cannot open its test split .*'val'"):
        load(Data(torchvision="Imagenette"))
    (place / "eurosat").mkdir()
    with pytest.raises(DataError, match="EuroSAT: torchvision has no test split of it"):
        load(Data(torchvision="EuroSAT"))


def test_what_is_not_at_hand_is_one_clear_error(tmp_path):
    data = Data(torchvision="KMNIST")
    assert fingerprint(data) is None
    with pytest.raises(DataError, match="(?s)KMNIST: .*could not be fetched.*set PRUNING_DATA.*network connection"):
        load(data)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="no Fashion-MNIST")
def test_fashion_mnist(monkeypatch):
    monkeypatch.setenv("PRUNING_DATA", str(FASHION.parents[1]))
    data = load(Data(torchvision="FashionMNIST"))
    counts = [part.labels.bincount().tolist() for part in (data.train, data.validation, data.test)]
    assert counts == [[5500] * 10, [500] * 10, [1000] * 10]
    assert data.fingerprint.startswith("b937f5f504933aa4"), "another split or other pixels: records are not current"


@pytest.mark.slow
@pytest.mark.skipif(not (FASHION.parents[1] / "MNIST/raw/train-images-idx3-ubyte").is_file(), reason="no MNIST")
def test_mnist_read_by_torchvision_is_our_own(monkeypatch):
    monkeypatch.setenv("PRUNING_DATA", str(FASHION.parents[1]))
    assert find("mnist") is not None
    assert fingerprint(Data(torchvision="MNIST")) == fingerprint("mnist")
