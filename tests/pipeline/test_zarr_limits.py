"""A store's metadata is believed only as far as a stage of ours could have written it."""

import copy
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.shard_files import write_shard
from pipeline.store import ArraySpec, create_store, open_store
from pipeline.zarr_limits import check_metadata, open_arrays, specs_of_plan

SPECS = (
    ArraySpec(name="mask", dtype="uint8", row_shape=(8, 4), chunk_rows=1),
    ArraySpec(name="row", dtype="int32", fill_value=-1),
    ArraySpec(name="score", dtype="float16"),
    ArraySpec(name="bytes", dtype="uint8", payload=True),
)


@pytest.fixture
def store(tmp_path):
    """A store of six rows in shards of three, the second of which is not written."""
    path = tmp_path / "some.zarr"
    create_store(path, SPECS, 6, 3, {})
    columns = {spec.name: np.ones((3, *spec.row_shape), spec.dtype) for spec in SPECS[:3]}
    write_shard(path, SPECS, 0, range(3), columns | {"bytes": np.arange(7, dtype=np.uint8)})
    return path


def change(store, array, **entries):
    """Replace entries of an array's zarr.json; `a__b` is b within a."""
    path = store / array / "zarr.json"
    document = json.loads(path.read_text())
    for key, value in entries.items():
        *way, last = key.split("__")
        place = document
        for name in way:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value
    path.write_text(json.dumps(document))


def refusal(store, **how):
    with pytest.raises(StoreError) as caught:
        open_arrays(open_store(store), str(store), **how)
    message = str(caught.value)
    assert message.startswith(f"{store}: ")
    assert "\n" not in message
    return message


def test_what_create_store_makes_is_admitted(store):
    arrays = open_arrays(open_store(store), str(store), SPECS, 6)
    assert sorted(arrays) == ["bytes", "mask", "row", "score"]
    assert arrays["row"][:].tolist() == [1, 1, 1, -1, -1, -1]
    assert arrays["bytes"][0, :7].tolist() == list(range(7))
    open_arrays(open_store(store), str(store))


TERABYTE = 1 << 40
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}
GZIP = {"name": "gzip", "configuration": {"level": 3}}


@pytest.mark.parametrize(
    ("array", "entries", "message"),
    [
        (
            "row",
            {"shape": [TERABYTE], "chunk_grid__configuration__chunk_shape": [TERABYTE]},
            f"expected chunks of at most {1 << 30} bytes, found {4 * TERABYTE}",
        ),
        (
            "mask",
            {
                "shape": [6, 1 << 20, 1 << 20],
                "chunk_grid__configuration__chunk_shape": [3, 1 << 20, 1 << 20],
                "codecs__0__configuration__chunk_shape": [1, 1 << 20, 1 << 20],
            },
            f"expected chunks of at most {1 << 30} bytes, found {TERABYTE}",
        ),
        ("mask", {"shape": [6, 1 << 20, 1 << 20]}, "expected rows of at most"),
        (
            "mask",
            {"chunk_grid__configuration__chunk_shape": [3 << 30, 8, 4]},
            "expected at most 1048576 chunks a shard, found 3221225472",
        ),
        (
            "mask",
            {"shape": [6, 8, 4 << 20]},
            "expected at most 4096 chunks a row, found 1048576",
        ),
        ("row", {"shape": [1 << 33]}, "expected 6 rows, found 8589934592"),
        ("row", {"shape": [5]}, "expected 6 rows, found 5"),
        (
            "row",
            {"data_type": "string", "fill_value": "", "codecs": [{"name": "vlen-utf8"}]},
            "array row: expected plain numbers, found type 'string'",
        ),
        (
            "row",
            {
                "data_type": "variable_length_bytes",
                "fill_value": "",
                "codecs": [{"name": "vlen-bytes"}],
            },
            "array row: expected plain numbers, found type 'variable_length_bytes'",
        ),
        ("row", {"codecs": [{"name": "numcodecs.pickle"}]}, "UnknownCodecError"),
        (
            "row",
            {"codecs": [{"name": "bytes"}, {"name": "numcodecs.zlib", "configuration": {}}]},
            "expected codecs of bytes, crc32c, zstd, gzip, blosc, transpose, sharding_indexed, "
            "found 'numcodecs.zlib'",
        ),
        (
            "row",
            {"codecs": [LITTLE, ZSTD, {"name": "crc32c"}, GZIP]},
            "expected at most 8 codecs, of which one packs, found ['bytes', 'zstd', 'crc32c', 'gzi",
        ),
        ("row", {"codecs": [LITTLE] + [{"name": "crc32c"}] * 8}, "expected at most 8 codecs"),
        (
            "mask",
            {"codecs__0__configuration__codecs": [{"name": "bytes"}, ZSTD, ZSTD]},
            "expected at most 8 codecs, of which one packs, found ['bytes', 'zstd', 'zstd']",
        ),
        (
            "mask",
            {"codecs__0__configuration__index_codecs": [LITTLE]},
            "expected little-endian bytes and crc32c as index_codecs, found [{",
        ),
        (
            "mask",
            {"codecs__0__configuration__index_codecs__0__configuration__endian": "big"},
            "expected little-endian bytes and crc32c as index_codecs",
        ),
        (
            "mask",
            {"codecs__0__configuration__index_codecs": [LITTLE, ZSTD]},
            "expected little-endian bytes and crc32c as index_codecs",
        ),
        ("row", {"fill_value": "many"}, "metadata that zarr cannot read"),
        (
            "row",
            {"storage_transformers": [{"name": "x"}]},
            "expected no storage transformers, found some",
        ),
        ("row", {"shape": [-6]}, "metadata that zarr cannot read"),
        ("row", {"shape": [[]]}, "metadata that zarr cannot read"),
        ("row", {"chunk_grid": 5}, "metadata that zarr cannot read"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(data type|codec).*:UserWarning")
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_metadata_of_others_is_refused_before_anything_is_read(store, array, entries, message):
    change(store, array, **entries)
    assert message in refusal(store)


@pytest.mark.filterwarnings("ignore:Combining a .sharding_indexed. codec")
def test_shards_are_not_packed_again(store):
    """What comes out of the outer codec is a shard, the length of which nothing says."""
    path = store / "mask" / "zarr.json"
    document = json.loads(path.read_text())
    document["codecs"].append(ZSTD)
    path.write_text(json.dumps(document))
    assert "of which one packs, found ['sharding_indexed', 'zstd']" in refusal(store)


@pytest.mark.parametrize(
    ("array", "entries", "message"),
    [
        ("row", {"data_type": "int64"}, "expected int32 in rows () as in the plan, found int64"),
        ("row", {"fill_value": 0}, "expected fill value -1, found 0"),
        ("score", {"fill_value": "NaN"}, "expected fill value 0, found 'NaN'"),
        ("score", {"fill_value": -1.0}, "expected fill value 0, found -1.0"),
        (
            "bytes",
            {"shape": [2, 1 << 20]},
            "expected uint8 in rows (1099511627776,) as in the plan",
        ),
    ],
)
def test_another_array_than_the_plan_states_is_refused(store, array, entries, message):
    change(store, array, **entries)
    assert message in refusal(store, specs=SPECS, num_rows=6)


def test_rows_are_the_plans_or_as_many_as_may_be(store, tmp_path):
    assert "expected 7 rows, found 6" in refusal(store, specs=SPECS, num_rows=7)
    path = tmp_path / "long.zarr"
    create_store(path, SPECS[1:2], 1 << 31, 3, {})
    assert "expected at most 1073741824 rows, found 2147483648" in refusal(path)


def test_an_array_too_many_or_too_few_is_refused(store):
    message = refusal(store, specs=SPECS[:3])
    assert "expected arrays mask, row, score, found bytes, mask, row, score" in message


def test_metadata_in_the_group_is_checked_like_the_arrays_own(store):
    """zarr takes arrays from `consolidated_metadata` of the group's zarr.json, if there is any."""
    inner = json.loads((store / "row" / "zarr.json").read_text())
    inner["shape"] = inner["chunk_grid"]["configuration"]["chunk_shape"] = [TERABYTE]
    group = json.loads((store / "zarr.json").read_text())
    group["consolidated_metadata"] = {
        "kind": "inline", "must_understand": False, "metadata": {"row": inner}
    }  # fmt: skip
    (store / "zarr.json").write_text(json.dumps(group))
    assert "expected chunks of at most" in refusal(store)


def test_specs_come_back_from_a_plan():
    from pipeline.config import to_plain

    assert specs_of_plan({"arrays": json.loads(json.dumps(to_plain(SPECS)))}) == SPECS
    for plan in ({}, {"arrays": 5}, {"arrays": [{"name": "a"}]}):
        with pytest.raises(StoreError, match="arrays in the plan"):
            specs_of_plan(plan)


LIMITED = """
    import resource, sys
    from pathlib import Path
    import zarr
    from pipeline.errors import StoreError
    from pipeline.store import open_store
    from pipeline.zarr_limits import open_arrays

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 29), used + (3 << 29)))
    group = open_store(Path(sys.argv[1]))
    try:
        open_arrays(group, "store")
    except StoreError as error:
        print("refused:", error)
    try:
        group["row"][:]
    except MemoryError:
        print("zarr itself asks for the memory")
"""


def test_plain_zarr_would_ask_for_the_memory_and_we_do_not(store):
    side = 1 << 38
    change(store, "row", shape=[side], chunk_grid__configuration__chunk_shape=[side])
    shutil.rmtree(store / "row" / "c")  # what is not there is the fill value
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(store)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.count("\n") == 2, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("refused: store: array row: expected chunks of at most"), done.stderr
    assert second == "zarr itself asks for the memory"


def _ways(value, way=()):
    yield way
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, one in inner:
        yield from _ways(one, (*way, key))


ODD = st.sampled_from(
    [None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1.5, float("nan"), "", "x", "\ud800", [], {},
     [[]], [1, 2], {"name": "zstd"}, "sharding_indexed", [2**62, 2**62]]
)  # fmt: skip


@settings(max_examples=300)
@given(data=st.data())
def test_whatever_the_metadata_says_it_is_admitted_or_one_line(data):
    """The admitted ones never ask for more than the limits."""
    base = json.loads(SHARDED)
    document = copy.deepcopy(base)
    for _ in range(data.draw(st.integers(1, 3))):
        way = data.draw(st.sampled_from([way for way in _ways(document) if way]))
        place = document
        for key in way[:-1]:
            place = place[key]
        place[way[-1]] = copy.deepcopy(data.draw(ODD))
    try:
        check_metadata({"mask": document}, "store")
    except StoreError as error:
        assert str(error).startswith("store: array mask: ")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert np.prod(document["shape"][1:], dtype=object) <= 1 << 30


SHARDED = """{"shape": [6, 8, 4], "data_type": "uint8", "fill_value": 0,
"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [3, 8, 4]}},
"codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": [1, 8, 4],
"codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3, "checksum": true}}],
"index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
"index_location": "end"}}],
"attributes": {}, "zarr_format": 3, "node_type": "array", "storage_transformers": []}"""


def test_the_documents_of_hypothesis_are_what_zarr_writes(store):
    array = zarr.open_group(store, mode="r")["mask"]
    assert array.shape == (6, 8, 4)
    stored = json.loads((store / "mask" / "zarr.json").read_text())
    ours = json.loads(SHARDED)
    assert {key: stored[key] for key in ("shape", "data_type", "fill_value", "chunk_grid")} == {
        key: ours[key] for key in ("shape", "data_type", "fill_value", "chunk_grid")
    }
    check_metadata({"mask": ours}, "store", SPECS[:1], 6)
