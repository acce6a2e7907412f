import functools
import gzip
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pruning.study import datasets
from pruning.study.datasets import KINDS, PARTS, DataError, fingerprint, load
from pruning.study.readers import batches, by_content, draw, pictures
from pruning.study.sources import OBJECTS, fetch, find

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / (os.environ.get("PRUNING_DATA") or "data")
RAW = DATA / "MNIST" / "raw"
ZIP = DATA / "cifar10-jpeg.zip"
ORIGINAL = DATA / "cifar-10-batches-py"
with_mnist = pytest.mark.skipif(not (RAW / "train-images-idx3-ubyte").is_file(), reason="no MNIST")
with_zip = pytest.mark.skipif(not ZIP.is_file() or ORIGINAL.is_dir(), reason="no zip of CIFAR-10")
with_batches = pytest.mark.skipif(not ORIGINAL.is_dir(), reason="no original of CIFAR-10")
FILES = [Path(file).name for file, _ in KINDS["mnist"].originals]

# They change with the pixels, the labels or the split: then FORMAT has to change as well, and
# no earlier result is comparable.
DIGITS = "60286a00021738e6"
MNIST = "39d8e774359a8b74"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of this test's own for prepared copies."""
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "prepared"))
    return tmp_path / "prepared"


@pytest.fixture
def place(tmp_path, monkeypatch, cache):
    """An empty folder that PRUNING_DATA names, in a project without data, and no network."""
    folder = tmp_path / "named"
    folder.mkdir()
    monkeypatch.setenv("PRUNING_DATA", str(folder))
    monkeypatch.setenv("PRUNING_ROOT", str(tmp_path))
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    return folder


@pytest.fixture
def mnist(place):
    """``place`` with links to the real files."""
    (place / "MNIST/raw").mkdir(parents=True)
    for file in FILES:
        (place / "MNIST/raw" / file).symlink_to((RAW / file).resolve())
    return place / "MNIST/raw"


def replace(path, data):
    path.unlink()
    path.write_bytes(data)


def check(data, counts, shape):
    """What holds for every dataset; ``counts`` are the sizes of the three splits."""
    assert data.shape == shape
    for split, count in zip((data.train, data.validation, data.test), counts):
        assert split.images.shape == (count, *shape) and split.images.is_contiguous()
        assert split.images.dtype == torch.float32 and split.labels.dtype == torch.int64
        assert split.labels.shape == (count,)
        assert split.labels.unique().tolist() == list(range(len(data.classes)))
    assert data.validation.labels.bincount().unique().numel() == 1
    axes = (0, 2, 3)
    assert data.train.images.mean(axes).abs().max() < 1e-4
    assert (data.train.images.std(axes) - 1).abs().max() < 1e-3
    assert torch.equal(data.black, data.train.images.amin(axes))
    white = (1 - torch.tensor(data.mean)) / torch.tensor(data.std)
    torch.testing.assert_close(white, data.train.images.amax(axes))


def test_unknown_name_lists_the_names():
    for function in (load, fingerprint):
        with pytest.raises(ValueError, match="'minst'; there are digits, mnist, cifar10"):
            function("minst")


def test_digits(cache):
    data = load("digits")
    check(data, (1077, 360, 360), (1, 28, 28))
    assert data.title == "Digits" and data.classes == tuple("0123456789")
    assert data.test.labels.bincount().tolist() == [36] * 10
    assert data.fingerprint.startswith(DIGITS)


def test_digits_are_scikit_learns_enlarged(cache):
    from sklearn.datasets import load_digits

    data = load("digits")
    with np.load(cache / "digits.npz") as stored:
        where = [stored[f"{part}_indices"] for part in PARTS]
    assert sorted(np.concatenate(where)) == list(range(1797))
    found = load_digits()
    small = torch.from_numpy(found.images).unsqueeze(1) / 16 * 255
    large = F.pad(F.interpolate(small, scale_factor=3, mode="bilinear"), (2, 2, 2, 2))
    for split, indices in zip((data.train, data.validation, data.test), where):
        assert np.array_equal(split.labels, found.target[indices])
        pixels = (split.images.double() * data.std[0] + data.mean[0]) * 255
        assert (pixels - large[torch.from_numpy(indices)]).abs().max() < 0.501


def test_loading_leaves_the_random_generators_alone(cache):
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    load("digits")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_prepared_copy_gives_the_same_and_is_not_made_twice(cache):
    first = load("digits")
    written = (cache / "digits.npz").stat().st_mtime_ns
    second = load("digits")
    assert (cache / "digits.npz").stat().st_mtime_ns == written
    assert [path.name for path in cache.iterdir()] == ["digits.npz"]
    for part in PARTS:
        assert torch.equal(getattr(first, part).images, getattr(second, part).images)
        assert torch.equal(getattr(first, part).labels, getattr(second, part).labels)
    assert (first.mean, first.std, first.shape) == (second.mean, second.std, second.shape)
    assert first.fingerprint == second.fingerprint == fingerprint("digits")


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_truncated_prepared_copy_is_made_again(cache, share):
    load("digits")
    copy = cache / "digits.npz"
    whole = copy.read_bytes()
    copy.write_bytes(whole[: int(share * len(whole))])
    assert load("digits").fingerprint.startswith(DIGITS)
    assert len(copy.read_bytes()) == len(whole)


def test_prepared_copy_with_other_pixels_is_made_again(cache):
    load("digits")
    with np.load(cache / "digits.npz") as stored:
        arrays = dict(stored)
    arrays["test_images"][0, 0, 14, 14] ^= 1
    np.savez(cache / "digits.npz", **arrays)
    good = load("digits")
    with np.load(cache / "digits.npz") as stored:
        assert stored["test_images"][0, 0, 14, 14] == arrays["test_images"][0, 0, 14, 14] ^ 1
    assert good.fingerprint.startswith(DIGITS)


def test_prepared_copy_of_another_source_is_made_again(cache):
    load("digits")
    with np.load(cache / "digits.npz") as stored:
        arrays = dict(stored)
    header = arrays["header"].tobytes()
    other = header.replace(b'"scikit-learn": "', b'"scikit-learn": "0.')
    assert other != header
    np.savez(cache / "digits.npz", **arrays | {"header": np.frombuffer(other, np.uint8)})
    load("digits")
    with np.load(cache / "digits.npz") as stored:
        assert stored["header"].tobytes() == header


def test_loads_with_a_warning_where_no_copy_can_be_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "file" / "prepared"))
    with pytest.warns(UserWarning, match="no prepared copy is kept.*PRUNING_CACHE"):
        assert load("digits").fingerprint.startswith(DIGITS)


def test_split_is_drawn_by_class_and_without_overlap():
    labels = np.arange(600) % 3
    among = np.arange(100, 600)
    drawn = draw(labels, among, 20)
    assert np.bincount(labels[drawn]).tolist() == [20, 20, 20]
    assert len(set(drawn)) == 60 and set(drawn) <= set(among)
    assert drawn.tolist() == sorted(drawn)
    assert drawn[:3].tolist() != among[:3].tolist()


@pytest.fixture(scope="module")
def loaded():
    """Name to dataset, from the prepared copy alone; once each."""

    @functools.cache
    def from_copy(name):
        fingerprint(name)  # makes the prepared copy
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datasets, "read", lambda *given: pytest.fail("the source was read again"))
            return load(name)

    return from_copy


@with_mnist
def test_mnist(loaded):
    data = loaded("mnist")
    check(data, (55_000, 5000, 10_000), (1, 28, 28))
    assert data.title == "MNIST" and data.fingerprint.startswith(MNIST)
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["digits", pytest.param("mnist", marks=with_mnist), pytest.param("cifar10", marks=with_zip)]
)
def test_of_the_prepared_copy_the_header_alone_tells_the_fingerprint(loaded, monkeypatch, name):
    data = loaded(name)
    for name_of_reader in (
        "read",
        "_fingerprint",
    ):  # CIFAR-10's images take seconds to decode, their digest half a second
        monkeypatch.setattr(datasets, name_of_reader, lambda *given: pytest.fail("pixels were read"))
    assert fingerprint(name) == data.fingerprint


@pytest.mark.slow
@with_mnist
def test_mnist_from_gzipped_files(mnist):
    for file in FILES:
        replace(mnist / file, b"")
        (mnist / file).rename(mnist / f"{file}.gz")
        (mnist / f"{file}.gz").write_bytes(gzip.compress((RAW / file).read_bytes(), 0))
    assert load("mnist").fingerprint.startswith(MNIST)
    (mnist / f"{FILES[1]}.gz").write_bytes((mnist / f"{FILES[1]}.gz").read_bytes()[:1000])
    with pytest.raises(DataError, match=f"{FILES[1]}.gz cannot be read"):
        load("mnist")


@with_mnist
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("file", [FILES[1], FILES[2]])
def test_truncated_file_is_named(mnist, file, prepared):
    if prepared:
        load("mnist")
    replace(mnist / file, (RAW / file).read_bytes()[:5000])
    for function in (load, fingerprint):
        with pytest.raises(DataError) as caught:
            function("mnist")
        message = str(caught.value)
        assert str(mnist / file) in message and "5,000 bytes" in message
        assert dict(KINDS["mnist"].originals)[f"MNIST/raw/{file}"] in message
        assert "PRUNING_DATA" in message and "network" in message


@with_mnist
def test_one_flipped_bit_is_seen(mnist):
    data = bytearray((RAW / FILES[3]).read_bytes())
    data[-1] ^= 1
    replace(mnist / FILES[3], data)
    with pytest.raises(DataError, match=f"{FILES[3]} is damaged: its 10,008 bytes have the MD5"):
        load("mnist")


@with_mnist
def test_missing_file_beside_others_is_named(mnist):
    (mnist / FILES[3]).unlink()
    with pytest.raises(DataError, match=f"{FILES[3]} cannot be read"):
        load("mnist")


@with_mnist
def test_prepared_copy_stands_in_for_a_source_that_is_gone(mnist, cache):
    load("mnist")
    shutil.rmtree(mnist.parent)
    assert load("mnist").fingerprint.startswith(MNIST)
    assert fingerprint("mnist").startswith(MNIST)
    with (cache / "mnist.npz").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"damage")
    with pytest.raises(DataError, match="not at hand"):
        load("mnist")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_data_without_network_is_one_clear_error(place, name):
    assert fingerprint(name) is None
    with pytest.raises(DataError) as caught:
        load(name)
    for way in ("could not be fetched", "set PRUNING_DATA", KINDS[name].forms, "network"):
        assert way in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_failed_download_leaves_nothing(place, name):
    with pytest.raises(DataError, match="could not be fetched"):
        fetch(name)
    assert list((place.parent / "data").iterdir()) == []


def test_outside_a_project_nothing_is_fetched(place, tmp_path, monkeypatch):
    monkeypatch.delenv("PRUNING_ROOT")
    monkeypatch.chdir(tmp_path)
    assert fingerprint("mnist") is None
    with pytest.raises(DataError, match="MNIST: .*no project to fetch it into.*\n.*set PRUNING_DATA"):
        load("mnist")
    assert [path.name for path in tmp_path.iterdir()] == ["named"]


@with_mnist
def test_outside_a_project_data_is_found_by_its_variable(mnist, tmp_path, monkeypatch):
    monkeypatch.delenv("PRUNING_ROOT")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNING_DATA", "named")
    assert find("mnist").path == tmp_path / "named" and load("mnist").fingerprint.startswith(MNIST)
    assert load("digits").fingerprint.startswith(DIGITS)


def test_folder_that_does_not_exist_is_named(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("PRUNING_DATA", str(tmp_path / "typo"))
    with pytest.raises(DataError, match="typo, which is not a folder"):
        load("mnist")


@pytest.mark.slow
@with_zip
def test_cifar10_from_the_zip(loaded):
    data = loaded("cifar10")
    check(data, (45_000, 5000, 10_000), (3, 32, 32))
    assert data.title == "CIFAR-10 (JPEG copy)" and data.classes == OBJECTS
    assert data.train.labels.bincount().tolist() == [4500] * 10
    with zipfile.ZipFile(ZIP) as archive, archive.open("cifar10/test/frog/0000.jpg") as file:
        pixels = np.asarray(Image.open(file)).transpose(2, 0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    frogs = data.test.images[data.test.labels == OBJECTS.index("frog")]
    difference = (frogs * std + mean) * 255 - torch.tensor(pixels)
    assert (difference.abs().amax((1, 2, 3)) < 1e-3).sum() == 1


@with_batches
def test_cifar10_from_the_batches(loaded):
    data = loaded("cifar10")
    check(data, (45_000, 5000, 10_000), (3, 32, 32))
    assert data.title == "CIFAR-10" and data.test.labels.bincount().tolist() == [1000] * 10


def grey(label, size=(32, 32)):
    """The bytes of a PNG of one grey level, 20 times the class's number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (20 * OBJECTS.index(label),) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def sprout(place, skip=(), train=1, test=1, suffix="png"):
    """A tree ``cifar10/{train,test}/<class>`` of ``train`` and ``test`` images a class."""
    for half, count in (("train", train), ("test", test)):
        for label in set(OBJECTS) - set(skip):
            folder = place / "cifar10" / half / label
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.{suffix}").write_bytes(grey(label))
    return place / "cifar10"


def test_tree_of_png(tmp_path):
    tree = sprout(tmp_path, train=3, test=2)
    (tree / "train/cat/._0.png").write_text("what an operating system leaves behind")
    images, labels, jpeg = pictures(tree, train=3, test=2)
    assert labels.tolist() == [n for n in range(10) for _ in range(3)] + [n for n in range(10) for _ in range(2)]
    assert images.shape == (50, 3, 32, 32) and images.dtype == np.uint8
    assert (images == 20 * labels[:, None, None, None]).all()
    assert not jpeg


def test_colours_and_position_of_pixels_are_kept(tmp_path):
    tree = sprout(tmp_path, test=0)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tree / "train/truck/0.png")
    images, _, _ = pictures(tree, train=1, test=0)
    assert np.array_equal(images[9].transpose(1, 2, 0), pixels)


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        (lambda: grey("ship", size=(1, 1)), "1 x 1 pixels"),
        (lambda: grey("ship")[:-30], "truncated"),
        (lambda: b"", "cannot identify"),
    ],
)
def test_image_that_cannot_be_used_is_named(tmp_path, damaged, reason):
    tree = sprout(tmp_path)
    (tree / "test/ship/0.png").write_bytes(damaged())
    with pytest.raises(DataError, match=f"test/ship/0.png is not a whole image.*{reason}"):
        pictures(tree, train=1, test=1)


def test_order_comes_from_the_content_not_the_source():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 3, 32, 32), np.uint8)
    labels = generator.integers(0, 10, 30).astype(np.uint8)
    shuffled = np.concatenate([generator.permutation(20), 20 + generator.permutation(10)])
    first = by_content(images, labels, train=20)
    second = by_content(images[shuffled], labels[shuffled], train=20)
    assert all(map(np.array_equal, first, second))
    assert sorted(first[1][:20]) == sorted(labels[:20])


def test_tree_without_a_class_names_it(place):
    sprout(place, skip=["airplane"])
    with pytest.raises(DataError, match="cifar10 holds 0 images in test/airplane, expected 1,000"):
        load("cifar10")


def test_folder_that_is_no_class_is_named(place):
    tree = sprout(place)
    (tree / "test/aeroplane").mkdir()
    (tree / "test/aeroplane/0.png").write_bytes(grey("airplane"))
    with pytest.raises(DataError, match="cifar10 holds 1 images in test/aeroplane, expected 0"):
        load("cifar10")


def zipped(path, suffix="png"):
    """A zip of one image."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"cifar10/train/cat/0.{suffix}", grey("cat"))


def test_original_pixels_go_before_copies(place):
    sprout(place, suffix="jpg")
    zipped(place / "cifar10-a.zip", suffix="JPEG")
    zipped(place / "cifar10-b.zip", suffix="PNG")
    assert find("cifar10").path == place / "cifar10-b.zip"
    (place / "cifar-10-batches-py").mkdir()
    (place / "cifar-10-batches-py/test_batch").write_bytes(b"")
    with pytest.raises(DataError, match="data_batch_1 cannot be read"):
        load("cifar10")


def test_zip_with_too_few_images_or_cut_short_is_named(place):
    zipped(place / "cifar10.zip")
    with pytest.raises(DataError, match="cifar10.zip holds 0 images in test/airplane"):
        load("cifar10")
    (place / "cifar10.zip").write_bytes((place / "cifar10.zip").read_bytes()[:100])
    with pytest.raises(DataError, match="cifar10.zip is not a whole zip file"):
        load("cifar10")


@with_zip
def test_damaged_image_in_the_zip_is_named(place):
    damaged = bytearray(ZIP.read_bytes())
    with zipfile.ZipFile(ZIP) as archive:
        start = archive.getinfo("cifar10/train/airplane/0002.jpg").header_offset
    damaged[start + 200] ^= 255
    (place / "cifar10-jpeg.zip").write_bytes(damaged)
    with pytest.raises(DataError, match="train/airplane/0002.jpg is not a whole image.*CRC"):
        load("cifar10")
    assert not list(place.parent.glob("prepared/*"))


def test_batches_are_read_as_they_were_pickled():
    def batch(numbers, labels):
        data = np.array(numbers, np.uint8)[:, None] + np.arange(3072, dtype=np.uint8)
        return pickle.dumps({"data": data, "labels": labels}, protocol=2)

    images, labels = batches([batch([0, 7], [3, 9]), batch([50], [0])])
    assert images.shape == (3, 3, 32, 32) and labels.tolist() == [3, 9, 0]
    assert images.dtype == labels.dtype == np.uint8
    assert images[1, 2, 31, 31] == (7 + 3071) % 256 and images[2, 0, 0, 1] == 51


def test_damaged_batches_are_not_unpickled(place):
    folder = place / "cifar-10-batches-py"
    folder.mkdir()
    for file, _ in KINDS["cifar10"].originals:
        (place / file).write_bytes(b"cos\nabort\n(tR.")  # would end the process
    with pytest.raises(DataError, match="data_batch_1 is damaged: its 14 bytes have the MD5"):
        load("cifar10")


def test_checksums_are_torchvisions():
    from pruning.study._torchvision import datasets as published

    batches = published.CIFAR10.train_list + published.CIFAR10.test_list
    assert [(f"cifar-10-batches-py/{file}", md5) for file, md5 in batches] == list(KINDS["cifar10"].originals)
    names = [name.removesuffix(".gz") for name, _ in published.MNIST.resources]
    assert {f"MNIST/raw/{name}" for name in names} == {file for file, _ in KINDS["mnist"].originals}


@pytest.mark.slow
def test_torchvision_imports_in_a_fresh_process():
    code = "from pruning.study._torchvision import datasets, transforms; datasets.MNIST, transforms.Pad"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)
