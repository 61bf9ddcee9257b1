"""Local copies: fetched once, never believed unseen."""

import hashlib

import pytest

from pipeline import local_copies
from pipeline.errors import StoreError
from pipeline.local_copies import download, files_below, local_copy, scratch, upload
from pipeline.places import lengths_below, place, remove_tree

CONTENT = b"columns" * 100
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache, as a process finds it that has just begun."""
    monkeypatch.setenv("SEMIRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(local_copies, "_SEEN", set())
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """A folder in memory with one object."""
    found = place(f"memory://{tmp_path.name}/run")
    (found / "x.npy").write_bytes(CONTENT)
    yield found
    remove_tree(found.parent)


def test_an_object_is_copied_once(cache, folder, monkeypatch):
    first = local_copy(folder / "x.npy", SHA)
    assert first.read_bytes() == CONTENT
    assert first.is_relative_to(cache)
    monkeypatch.setattr(type(folder.fs), "get_file", None)
    assert local_copy(folder / "x.npy", SHA) == first
    assert files_below(cache) == [first.relative_to(cache).as_posix()]


def test_a_file_of_a_disk_is_itself(cache, tmp_path):
    assert local_copy(tmp_path / "x.npy", SHA) == tmp_path / "x.npy"
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], b"k" + CONTENT[1:]])
def test_a_damaged_copy_is_fetched_again(cache, folder, damage):
    copy = local_copy(folder / "x.npy", SHA)
    copy.write_bytes(damage)
    assert local_copy(folder / "x.npy", SHA).read_bytes() == CONTENT


def test_a_copy_is_hashed_once_in_a_process(cache, folder, monkeypatch):
    local_copy(folder / "x.npy", SHA)
    hashed = []
    real = local_copies._sha256_of
    monkeypatch.setattr(local_copies, "_sha256_of", lambda file: hashed.append(file) or real(file))
    for _ in range(3):
        local_copy(folder / "x.npy", SHA)
    assert len(hashed) == 1


def test_an_object_of_another_content_is_refused_and_not_kept(cache, folder):
    (folder / "x.npy").write_bytes(b"other")
    with pytest.raises(StoreError, match=f"sha256 {SHA} expected, found"):
        local_copy(folder / "x.npy", SHA)
    assert files_below(cache) == []


@pytest.mark.parametrize("sha256", ["", "../../etc/passwd", SHA.upper(), SHA + "0"])
def test_what_is_no_sha256_names_no_file(cache, folder, sha256):
    with pytest.raises(StoreError, match="expected a sha256"):
        local_copy(folder / "x.npy", sha256)
    assert not cache.exists()


def test_a_missing_object_is_named(cache, folder):
    with pytest.raises(StoreError, match=r"y\.npy: cannot be copied here \(No such file"):
        local_copy(folder / "y.npy", SHA)


def test_a_cut_connection_is_no_damage(cache, folder, monkeypatch):
    def cut(*_arguments, **_options):
        raise OSError(16, "Slow Down")

    monkeypatch.setattr(type(folder.fs), "get_file", cut)
    with pytest.raises(OSError, match="Slow Down"):
        local_copy(folder / "x.npy", SHA)
    assert files_below(cache) == []


def test_a_full_disk_is_named(cache, folder, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(folder.fs), "get_file", full)
    with pytest.raises(StoreError, match=r"cannot be copied here \(No space left"):
        local_copy(folder / "x.npy", SHA)


def test_what_is_sent_is_what_is_fetched(folder):
    with scratch() as there, scratch() as back:
        for name in ("a", "b/c", "b/d.json"):
            (there / name).parent.mkdir(exist_ok=True)
            (there / name).write_bytes(name.encode())
        upload(there, folder / "sent")
        upload(there, folder / "some", ["b/c"])
        upload(there, folder / "none", [])
        assert lengths_below(folder / "sent") == {"a": 1, "b/c": 3, "b/d.json": 8}
        assert lengths_below(folder / "some") == {"b/c": 3}
        assert lengths_below(folder / "none") == {}
        download(folder / "sent", ["a", "b/d.json"], back)
        download(folder / "sent", [], back)
        assert files_below(back) == ["a", "b/d.json"]
        assert (back / "b" / "d.json").read_bytes() == b"b/d.json"
    assert not there.exists()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a//x", "./x"])
def test_no_name_of_an_object_leads_out_of_the_folder(folder, tmp_path, name):
    with pytest.raises(StoreError, match="expected names of files"):
        download(folder, ["x.npy", name], tmp_path / "here")
    assert not (tmp_path / "x").exists()
