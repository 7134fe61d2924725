"""Bad input, each kind with its documented answer and nothing lost."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from recsys.datasets.importing import import_dataset, known_datasets
from recsys.errors import ConfigError, InputError

if TYPE_CHECKING:
    from tests.recsys.datasets.importing.conftest import Workplace

HEADER = "event_id,user_id,item_id,time,position,value\n"
GOOD = "e1,u1,i1,1700000000,1,2.50\n"
KUAIRAND_HEADER = (
    "user_id,video_id,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,"
    "duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag\n"
)


@pytest.mark.parametrize(
    ("row", "reason", "raw"),
    [
        (b"e2,,i1,1700000001,1,\n", "missing_field", "e2,,i1,1700000001,1,"),
        (b"e2,u1,,1700000001,1,\n", "missing_field", "e2,u1,,1700000001,1,"),
        (b"e2,u1,i1,,1,\n", "missing_field", "e2,u1,i1,,1,"),
        (b"e2,u1,i1,yesterday,1,\n", "bad_time", "e2,u1,i1,yesterday,1,"),
        (b"e2,u1,i1,1700000000000000,1,\n", "bad_time", "e2,u1,i1,1700000000000000,1,"),
        (b"e2,u1,i1,1700000001,first,\n", "wrong_type", "e2,u1,i1,1700000001,first,"),
        (b"e2,u1,i1,1700000001,1,$5\n", "wrong_type", "e2,u1,i1,1700000001,1,$5"),
        (b"e2,u1,i1\n", "bad_syntax", "e2,u1,i1"),
        (b'e2,"u1,i1,1700000001,1,\n', "bad_syntax", 'e2,"u1,i1,1700000001,1,'),
        (b"e2,\xff\xfe,i1,1700000001,1,\n", "bad_encoding", "e2,\\xff\\xfe,i1,1700000001,1,"),
    ],
)
def test_a_bad_row_is_kept_with_its_reason(place: Workplace, row: bytes, reason: str, raw: str) -> None:
    source = place.write("log.csv", HEADER.encode() + GOOD.encode() + row + b"e3,u1,i2,1700000002,1,\n")
    report = place.take(source)
    assert place.rejected() == [(3, reason, raw)]
    assert [event["event_id"] for event in place.rows("events")] == ["e1", "e3"]
    assert [event["seq"] for event in place.rows("events")] == [0, 1]
    assert report.examples[reason][0].startswith("log.csv:3: ")


def test_the_detail_names_the_column_and_the_value(place: Workplace) -> None:
    place.take(place.write("log.csv", HEADER + GOOD + "e2,u1,i1,yesterday,1,\n"))
    assert place.rows("rejected")[0]["detail"] == "time: 'yesterday' is not a time in s since 1970"


def test_a_long_bad_row_is_cut(place: Workplace) -> None:
    place.take(place.write("log.csv", HEADER + GOOD + "e2,,i1,1," + "x" * 5_000 + ",\n"))
    assert [len(row["raw"]) for row in place.rows("rejected")] == [2_000]


def test_of_duplicate_event_ids_the_first_in_canonical_order_stays(place: Workplace) -> None:
    rows = "e1,u2,i1,1700000000,1,\ne1,u1,i2,1700000009,1,\ne1,u1,i3,1700000008,1,\n"
    place.take(place.write("log.csv", HEADER + rows))
    assert [event["item_id"] for event in place.rows("events")] == ["i3"]
    assert [(line, reason) for line, reason, _ in place.rejected()] == [
        (2, "duplicate_event_id"),
        (3, "duplicate_event_id"),
    ]
    assert json.loads(place.rejected()[0][2])["item_id"] == "i1"
    assert [user["user_id"] for user in place.rows("users")] == ["u1"]


def test_items_not_in_the_items_file_are_rejected(place: Workplace) -> None:
    place.write("log/items.csv", "item_id,title\ni1,One\ni1,Again\n")
    place.write("log/events.csv", HEADER + GOOD + "e2,u1,i9,1700000001,1,\n")
    report = place.take(place.folder / "log")
    assert report.manifest.reasons == {"duplicate_item_id": 1, "unknown_item": 1}
    assert place.rows("items") == [{"item_id": "i1", "title": "One"}]
    assert {row["table"]: row["detail"] for row in place.rows("rejected")} == {
        "items": "item_id: 'i1' stands more than once",
        "events": "item_id: 'i9' is not in the items file",
    }


def test_what_is_odd_but_good_is_counted(place: Workplace) -> None:
    place.write("log/items.csv", "item_id,title,description\ni1,,\ni2,,words\n")
    place.write("log/events.csv", HEADER + GOOD)
    report = place.take(place.folder / "log")
    assert report.manifest.notes == {"items_without_text": 1, "users_with_one_event": 1}
    assert report.manifest.reasons == {}


def test_a_log_with_one_item_is_a_log(place: Workplace) -> None:
    report = place.take(place.write("log.csv", HEADER + GOOD))
    assert (report.users, report.items) == (1, 1)
    assert report.time_range == (1_700_000_000_000_000, 1_700_000_000_000_000)


@pytest.mark.parametrize("content", ["", "\n\n", HEADER])
def test_an_empty_log_is_refused(place: Workplace, content: str) -> None:
    with pytest.raises(InputError, match=r"the log is empty.*log\.csv"):
        place.take(place.write("log.csv", content))
    assert [path.name for path in place.folder.iterdir()] == ["log.csv"]


def test_a_log_without_a_good_row_is_refused_with_its_reason(place: Workplace) -> None:
    source = place.write("log.csv", HEADER + "e1,u1,i1,01/02/2020,1,\n")
    with pytest.raises(InputError, match=r"every row was rejected; 1 for bad_time.*log\.csv:2.*--check"):
        place.take(source)
    assert not place.out.exists()
    report = import_dataset("csv", source, check=True)
    assert report.manifest.reasons == {"bad_time": 1}


def test_a_missing_column_is_named_beside_those_there_are(place: Workplace) -> None:
    with pytest.raises(
        InputError, match=r"log\.csv has no column for item_id; its columns are: user_id, sku, time.*mapping"
    ):
        place.take(place.write("log.csv", "user_id,sku,time\nu,1,1\n"))


def test_a_missing_mapped_column_is_named(place: Workplace) -> None:
    mapping = place.write_mapping({"events": {"columns": {"item_id": "product"}}})
    with pytest.raises(InputError, match=r"is not there; its columns are: user_id, sku.*'product'"):
        place.take(place.write("log.csv", "user_id,sku\nu,1\n"), mapping=mapping)


def test_a_later_file_must_have_the_columns_too(place: Workplace) -> None:
    place.write("log/1.csv", "user_id,item_id\nu,1\n")
    place.write("log/2.csv", "user_id,sku\nu,1\n")
    with pytest.raises(InputError, match=r"2\.csv is not there.*item_id"):
        place.take(place.folder / "log")


def test_two_columns_for_one_field_are_refused(place: Workplace) -> None:
    with pytest.raises(InputError, match=r"more than one column could be user_id: user, uid.*mapping file"):
        place.take(place.write("log.csv", "user,uid,item_id\nu,u,1\n"))


def test_one_name_for_two_columns_is_refused(place: Workplace) -> None:
    with pytest.raises(InputError, match="more than once"):
        place.take(place.write("log.csv", "user_id,item_id,item_id\nu,1,2\n"))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"events": {"column": {}}}, "unknown field `column`"),
        ({"events": {"columns": {"sku": "x"}}}, r"no field of this name.*'sku'.*item_id"),
        ({"events": {"time_format": "seconds"}}, "unknown form of time"),
        ({"events": {"money_unit": "dollars"}}, "dollars"),
        ({"events": {"delimiter": "::"}}, "length"),
        ({"events": {"constants": {"action": "42"}}}, "constant cannot be used"),
        ({"items": {"path": "absent.csv"}}, r"no such file.*absent\.csv"),
        ([], "mapping file"),
    ],
)
def test_a_bad_mapping_is_refused(place: Workplace, mapping: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        place.take(place.write("log.csv", HEADER + GOOD), mapping=place.write_mapping(mapping))


def test_unknown_names_and_paths(place: Workplace) -> None:
    source = place.write("log.txt", HEADER + GOOD)
    with pytest.raises(InputError, match=r"unknown dataset name.*'movies'.*amazon2014.*eventlog"):
        import_dataset("movies", source, place.out)
    with pytest.raises(InputError, match="no such file or folder"):
        import_dataset("csv", place.folder / "absent.csv", place.out)
    with pytest.raises(InputError, match=r"no file of a known format.*\.jsonl"):
        import_dataset("generic", source, place.out)
    with pytest.raises(InputError, match="needs no mapping"):
        import_dataset("movielens", place.folder, place.out, mapping=source)
    with pytest.raises(InputError, match="no directory for the tables"):
        import_dataset("csv", source)
    assert import_dataset("csv", source, place.out).items == 1


@pytest.mark.parametrize("name", ["amazon2014", "amazon2018", "movielens", "kuairand", "eventlog", "generic"])
def test_a_folder_without_the_files_is_refused(place: Workplace, name: str) -> None:
    assert name in known_datasets()
    with pytest.raises(InputError, match="Remedy"):
        import_dataset(name, place.folder, place.out)


def test_a_cut_off_gzip_leaves_nothing_behind(place: Workplace) -> None:
    data = gzip.compress((HEADER + GOOD * 1_000).encode(), mtime=0)
    before = place.write("tables/manifest.json", "{}")
    with pytest.raises(InputError, match="nothing was written"):
        place.take(place.write("log.csv.gz", data[:-12]))
    assert before.read_text() == "{}"
    assert sorted(path.name for path in place.folder.iterdir()) == ["log.csv.gz", "tables"]


def test_lines_of_the_two_amazon_files_must_agree(place: Workplace) -> None:
    place.write("b/items.tsv", 'item_id\ttitle\tcategories\n1\t"A" b\tX > Y\n2\tB\t\n')
    place.write("b/sequences.txt", "1 1 2\n2 1\n3 2 2\n\n")
    place.write("b/times.txt.gz", gzip.compress(b"1 86400 86400\n2 1 2\n4 1 2\n"))
    place.take(place.folder / "b", "amazon2014")
    assert [(line, reason) for line, reason, _ in place.rejected()] == [(2, "bad_syntax"), (3, "bad_syntax")]
    assert [(row["item_id"], row["time"], row["seq"]) for row in place.rows("events")] == [
        ("1", 86_400_000_000, 0),
        ("2", 86_400_000_000, 1),
    ]
    assert place.rows("items")[0] == {"item_id": "1", "title": '"A" b', "category_path": ["X", "Y"]}


def test_entries_of_the_wrong_kind_in_amazon_2018(place: Workplace) -> None:
    place.write("s/item.json", '{"0": {"title": "T", "categories": "A,B"}, "1": "text"}')
    place.write("s/inter.json", '{"u": [0, 1, null], "v": 7}')
    report = place.take(place.folder / "s", "amazon2018")
    assert report.manifest.reasons == {"wrong_type": 2, "missing_field": 1, "unknown_item": 1}
    assert report.manifest.time_is_order
    place.write("s/inter.json", "[")
    with pytest.raises(InputError, match="not JSON"):
        place.take(place.folder / "s", "amazon2018")


def test_tags_without_their_column_are_named(place: Workplace) -> None:
    place.write("ml/ratings.csv", "userId,movieId,rating,timestamp\n1,1,5,1700000000\n")
    place.write("ml/movies.csv", "movieId,title,genres\n1,Title,Drama\n")
    place.write("ml/tags.csv", "movieId,word\n1,slow\n")
    with pytest.raises(InputError, match=r"its columns are: movieId, word \[column = 'tag'\]"):
        place.take(place.folder / "ml", "movielens")


def test_ratings_and_signals_that_are_none(place: Workplace) -> None:
    place.write("m/movies.csv", "movieId,title,genres\n1,A,X|Y\n")
    place.write("m/tags.csv", "userId,movieId,tag,timestamp\n1,1,Fun,0\n2,1,fun ,0\n3,1,dark,0\n")
    place.write("m/ratings.csv", "userId,movieId,rating,timestamp\n1,1,4.0,0\n2,1,3.5,0\n3,1,six,0\n4,1,6,0\n")
    place.take(place.folder / "m", "movielens")
    assert [row["action"] for row in place.rows("events")] == ["like", "rating"]
    assert [reason for _, reason, _ in place.rejected()] == ["wrong_type", "wrong_type"]
    assert place.rows("items")[0]["attributes"] == [("tags", "fun, dark")]


def kuairand_row(**values: object) -> str:
    row = {**dict.fromkeys(KUAIRAND_HEADER.split(","), 0), "user_id": 1, "video_id": 7, "time_ms": 10**12, **values}
    return ",".join(map(str, row.values())) + "\n"


def test_the_strongest_signal_is_the_action(place: Workplace) -> None:
    rows = [
        kuairand_row(),
        kuairand_row(is_click=1),
        kuairand_row(is_click=1, is_like=1, tab=4),
        kuairand_row(is_like=1, is_hate=1),
        kuairand_row(is_click=1),
        kuairand_row(is_click=2),
        kuairand_row(tab="x"),
    ]
    place.write("k/log_standard_1.csv", KUAIRAND_HEADER + "\n" + "".join(rows))
    place.write("k/video_features_basic.csv", VIDEO_HEADER + "7,8,NORMAL,2022-04-10,Kmovie,0,1,2,3,4,5,39\n")
    place.take(place.folder / "k", "kuairand")
    events = place.rows("events")
    assert [row["action"] for row in events] == ["impression", "click", "like", "dislike"]
    assert events[2]["scene"] == "tab4"
    assert events[2]["attributes"] == [("is_like", "1"), ("is_click", "1")]
    assert [(line, reason) for line, reason, _ in place.rejected()] == [
        (6, "duplicate_event_id"),
        (7, "wrong_type"),
        (8, "wrong_type"),
    ]
    assert place.rows("items")[0]["category_path"] == ["39"]


@pytest.mark.parametrize("manifest", [None, "{}", "not JSON"])
def test_a_directory_with_something_else_is_never_replaced(place: Workplace, manifest: str | None) -> None:
    source = place.write("log.csv", HEADER + GOOD)
    kept = place.write("tables/notes.txt", "mine")
    if manifest is not None:
        place.write("tables/manifest.json", manifest)
    with pytest.raises(ConfigError, match="something else than tables"):
        import_dataset("csv", source, place.out)
    assert kept.read_text() == "mine"


def test_tables_do_not_replace_their_own_log(place: Workplace) -> None:
    import_dataset("csv", place.write("log.csv", HEADER + GOOD), place.out)
    source = place.write("tables/log.csv", HEADER + GOOD)
    for log in (source, place.out):
        with pytest.raises(ConfigError, match="the log stands in the directory"):
            import_dataset("csv", log, place.out)
    assert source.read_text() == HEADER + GOOD
