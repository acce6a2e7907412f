import resource

import pytest

from pruning.files import set_aside, write_whole


@pytest.fixture
def full():
    """A call that leaves room for files of so many bytes only; the room is back at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_write_whole(tmp_path, full):
    path = tmp_path / "deep" / "file"
    write_whole(path, b"old")
    assert path.read_bytes() == b"old" and path.stat().st_mode & 0o777 == 0o644
    full(1000)
    try:
        write_whole(path, b"new")
        with pytest.raises(OSError, match=f"cannot write {path}: File too large"):
            write_whole(path, bytes(2000))
    finally:
        full(None)
    assert path.read_bytes() == b"new"
    with pytest.raises(TypeError):
        write_whole(path, "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=f"cannot write {tmp_path / 'folder'}: Is a directory"):
        write_whole(tmp_path / "folder", b"")
    assert path.read_bytes() == b"new"
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["deep", "file", "folder"]


def test_set_aside_takes_a_free_name_and_lets_another_process_go_first(tmp_path):
    path = tmp_path / "a"
    for number in (1, 2):
        path.write_text(str(number))
        assert set_aside(path, tmp_path / "aside").name == f"a.{number}"
    assert (tmp_path / "aside" / "a.1").read_text() == "1"
    set_aside(path, tmp_path / "aside")  # gone already
