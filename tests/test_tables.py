"""Recordings: any plain CSV is read with no options, and what cannot be read says where and what to do."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel.adapters.tables import Recording, ScoresWriter, read_table, read_tables
from sentinel.adapters.tables.csvfile import CHUNK_ROWS
from sentinel.adapters.tables.times import BadTimeError, parse_times
from sentinel.errors import DataError

NEW_YEAR = 1577836800.0  # 2020-01-01T00:00:00Z


def read(tmp_path: Path, text: str | bytes, name: str = "pump.csv", **options: Any) -> Recording:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_table(path, **options)


def assert_plain(recording: Recording) -> None:
    """As the two rows of two channels that most tests write in one form or another."""
    assert recording.channels == ("flow", "pressure")
    assert recording.time.tolist() == [NEW_YEAR, NEW_YEAR + 60]
    assert recording.values.tolist() == [[1.5, 2.0], [3.0, -4e3]]


PLAIN = {
    "commas": "time,flow,pressure\n2020-01-01 00:00:00,1.5,2\n2020-01-01 00:01:00,3.0,-4e3\n",
    "semicolons": "time;flow;pressure\n2020-01-01 00:00:00;1.5;2\n2020-01-01 00:01:00;3.0;-4e3\n",
    "tabs": "time\tflow\tpressure\n2020-01-01 00:00:00\t1.5\t2\n2020-01-01 00:01:00\t3.0\t-4e3\n",
    "bars": "time|flow|pressure\n2020-01-01 00:00:00|1.5|2\n2020-01-01 00:01:00|3.0|-4e3\n",
    "carriage returns": "time,flow,pressure\r\n2020-01-01 00:00:00,1.5,2\r\n2020-01-01 00:01:00,3.0,-4e3\r\n",
    "no newline at the end": "time,flow,pressure\n2020-01-01 00:00,1.5,2\n2020-01-01 00:01,3.0,-4e3",
    "a byte order mark": "\ufefftime,flow,pressure\n2020-01-01 00:00:00,1.5,2\n2020-01-01 00:01:00,3.0,-4e3\n",
    "quotes": '"time","flow","pressure"\n"2020-01-01 00:00:00","1.5","2"\n"2020-01-01 00:01:00","3.0","-4e3"\n',
    "spaces": "time, flow, pressure\n2020-01-01 00:00:00, 1.5, 2\n 2020-01-01 00:01:00 , 3.0, -4e3\n",
    "blank lines": "time,flow,pressure\n\n2020-01-01 00:00:00,1.5,2\n\n,,\n2020-01-01 00:01:00,3.0,-4e3\n\n",
    "blank lines at the start": "\n\ntime,flow,pressure\n2020-01-01 00:00:00,1.5,2\n2020-01-01 00:01:00,3.0,-4e3\n",
    "decimal commas": "time;flow;pressure\n2020-01-01 00:00:00;1,5;2\n2020-01-01 00:01:00;3,0;-4e3\n",
    "a delimiter at every end": "time;flow;pressure\n2020-01-01 00:00:00;1.5;2;\n2020-01-01 00:01:00;3.0;-4e3;\n",
    "text columns": "time,wind,flow,pressure\n2020-01-01 00:00:00,NNW,1.5,2\n2020-01-01 00:01:00,S,3.0,-4e3\n",
    "an unnamed time": ",flow,pressure\n2020-01-01 00:00:00,1.5,2\n2020-01-01 00:01:00,3.0,-4e3\n",
    "row numbers without a name": '"date","flow","pressure"\n"7","2020-01-01",1.5,2\n"8","2020-01-01 00:01",3.0,-4e3\n',
    "row numbers with a name": "No,time,flow,pressure\n1,2020-01-01,1.5,2\n2,2020-01-01 00:01,3.0,-4e3\n",
    "the time elsewhere": "flow,pressure,Timestamp\n1.5,2,2020-01-01 00:00:00\n3.0,-4e3,2020-01-01 00:01:00\n",
    "a time of any name": "recorded at,flow,pressure\n2020-01-01 00:00:00,1.5,2\n2020-01-01 00:01:00,3.0,-4e3\n",
    "date and time apart": "Date;Time;flow;pressure\n01/01/2020;00.00.00;1,5;2\n01/01/2020;00.01.00;3;-4e3\n",
    "a calendar": "year,month,day,hour,minute,flow,pressure\n2020,1,1,0,0,1.5,2\n2020,1,1,0,1,3.0,-4e3\n",
}


@pytest.mark.parametrize("form", PLAIN)
def test_these_forms_read_alike(tmp_path: Path, form: str) -> None:
    recording = read(tmp_path, PLAIN[form])
    assert_plain(recording)
    assert recording.devices == ("pump",)
    assert recording.device.tolist() == [0, 0]
    assert recording.label is None


def test_a_gz_file_reads_as_what_it_holds_whatever_its_name(tmp_path: Path) -> None:
    packed = gzip.compress(PLAIN["commas"].encode())
    for name in ("pump.csv.gz", "pump.csv"):
        recording = read(tmp_path, packed, name)
        assert_plain(recording)
        assert recording.name == "pump"


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_other_encodings_are_recognised(tmp_path: Path, encoding: str) -> None:
    text = "time,°C\n2020-01-01,1\n2020-01-02,2\n"
    assert read(tmp_path, text.encode(encoding)).channels == ("°C",)


def test_a_file_without_a_header_has_numbered_channels(tmp_path: Path) -> None:
    recording = read(tmp_path, "2020-01-01,1.5,2\n2020-01-02,3,4\n")
    assert recording.channels == ("c1", "c2")
    assert recording.time.tolist() == [NEW_YEAR, NEW_YEAR + 86400]
    bare = read(tmp_path, "0.5,2\n3.5,4\n")
    assert bare.channels == ("c0", "c1")
    assert bare.time.tolist() == [0.0, 1.0]
    assert any("counted from 0" in note for note in bare.notes)


def test_a_header_of_counting_numbers_is_a_header(tmp_path: Path) -> None:
    assert read(tmp_path, "0,1,2\n5,6,7\n8,8,8\n").channels == ("0", "1", "2")


def test_names_that_come_twice_are_told_apart(tmp_path: Path) -> None:
    assert read(tmp_path, "time,v,v\n1,2,3\n").channels == ("v", "v_2")


def test_a_row_number_serves_as_seconds_where_there_is_no_time(tmp_path: Path) -> None:
    recording = read(tmp_path, ",flow\n10,1\n11,2\n12,3\n")
    assert recording.time.tolist() == [10.0, 11.0, 12.0]
    assert recording.channels == ("flow",)
    assert "no time column: row numbers taken as seconds" in recording.notes


@pytest.mark.parametrize("cell", ["", "NA", "NaN", "nan", "null", "None", "n/a", "?", "inf", "-Infinity", " ", "N/A"])
def test_missing_and_infinite_values_are_nan(tmp_path: Path, cell: str) -> None:
    recording = read(tmp_path, f"time,flow,pressure\n1,{cell},2\n2,3,{cell}\n3,5,6\n")
    np.testing.assert_array_equal(recording.values, [[np.nan, 2.0], [3.0, np.nan], [5.0, 6.0]])


def test_a_few_words_among_numbers_are_missing_and_said(tmp_path: Path) -> None:
    recording = read(tmp_path, "time,flow\n1,1\n2,broken\n3,3\n")
    np.testing.assert_array_equal(recording.values[:, 0], [1.0, np.nan, 3.0])
    assert "flow: 1 cells are not numbers and count as missing" in recording.notes


def test_columns_without_numbers_are_left_out_and_said(tmp_path: Path) -> None:
    recording = read(tmp_path, "time,wind,void,flow\n1,N,,1\n2,S,,2\n")
    assert recording.channels == ("flow",)
    assert "not numbers, ignored: wind" in recording.notes
    assert "without numbers, ignored: void" in recording.notes


def test_a_device_column_is_recognised_or_named(tmp_path: Path) -> None:
    text = 'time,Device,site,flow\n1,b,x,1\n1,"a,1",x,2\n2,b,y,3\n2,,y,4\n'
    recording = read(tmp_path, text)
    assert [recording.devices[code] for code in recording.device] == ["b", "a,1", "b", "pump"]
    assert recording.channels == ("flow",)
    other = read(tmp_path, text, device_column="site")
    assert other.devices == ("x", "y")


LABELLED = "time,flow,anomaly,changepoint\n1,1,0,0\n2,2,1.0,1\n3,3,1,0\n"


def test_labels_are_no_channels(tmp_path: Path) -> None:
    for options in ({}, {"label_column": "anomaly"}):
        recording = read(tmp_path, LABELLED, **options)
        assert recording.channels == ("flow",)
        assert recording.label is not None
        assert recording.label.tolist() == [0, 1, 1]
    chosen = read(tmp_path, LABELLED, label_column="changepoint")
    assert chosen.label is not None
    assert chosen.label.tolist() == [0, 1, 0]
    assert chosen.channels == ("flow",)


def test_a_label_column_that_is_not_there_is_said(tmp_path: Path) -> None:
    recording = read(tmp_path, "time,flow\n1,1\n", label_column="anomaly")
    assert recording.label is None
    assert "no label column 'anomaly'" in recording.notes


def test_a_measured_anomaly_is_a_channel(tmp_path: Path) -> None:
    assert read(tmp_path, "time,anomaly\n1,0.25\n2,-0.5\n").channels == ("anomaly",)


def test_labels_may_be_words(tmp_path: Path) -> None:
    recording = read(tmp_path, "time,flow,state\n1,1,Normal\n2,2,Attack\n3,3,\n", label_column="state")
    assert recording.label is not None
    assert recording.label.tolist() == [0, 1, 0]
    with pytest.raises(DataError, match=r"pump.csv:3: label 'maybe'.*write 0 or 1"):
        read(tmp_path, "time,flow,state\n1,1,Normal\n2,2,maybe\n", label_column="state")


def test_the_text_of_the_time_is_kept(tmp_path: Path) -> None:
    recording = read(tmp_path, "time,flow\n2020-01-01T01:00:00.250+01:00,1\n2020-01-01T00:00Z,2\n")
    assert recording.time_text.tolist() == [b"2020-01-01T01:00:00.250+01:00", b"2020-01-01T00:00Z"]
    assert recording.time.tolist() == [NEW_YEAR + 0.25, NEW_YEAR]


TIMES = [
    (["2020-01-01", "2020-01-02"], [0, 86400]),
    (["2020-01-01T00:00:00.5", "2020-01-01 00:00:00"], [0.5, 0]),
    (["2020-01-01T00:00:00.123456789"], [0.123456]),
    (["2020-01-01T00:00:00Z", "2020-01-01T02:00:00+02:00"], [0, 0]),
    (["2020-01-01 00:00:01 UTC"], [1]),
    (["2020-01-01 00:00:00", "2020-01-01 01:00:00+01:00"], [0, 0]),
    (["2020/01/01 00:00", "2020/1/1 0:01"], [0, 60]),
    (["1/1/2020 0:00", "1/13/2020 12:00 AM", "1/13/2020 1:30 PM"], [0, 12 * 86400, 12 * 86400 + 13.5 * 3600]),
    (["01/02/2020 00:00", "13/02/2020 00:00"], [31 * 86400, 43 * 86400]),
    (["01.02.2020 00:00", "02.02.2020"], [31 * 86400, 32 * 86400]),
    (["1/1/20 00:00:01.5"], [1.5]),
    (["20200101", "20200102"], [0, 86400]),
    (["1577836800", "1577836801.5"], [0, 1.5]),
    (["1577836800000", "1577836801500"], [0, 1.5]),
    (["1577836800000000", "1577836801500000"], [0, 1.5]),
    (["1577836800000000000", "1577836801500000000"], [0, 1.5]),
    (["1.5778368e9"], [0]),
]


@pytest.mark.parametrize(("texts", "expected"), TIMES, ids=lambda value: str(value[0]))
def test_times_are_read_in_the_forms_people_write(texts: list[str], expected: list[float]) -> None:
    times, _ = parse_times(texts)
    np.testing.assert_allclose(times - NEW_YEAR, expected, rtol=0, atol=2e-7)


def test_small_numbers_are_seconds(tmp_path: Path) -> None:
    assert read(tmp_path, "time,flow\n0,1\n0.5,2\n12,3\n").time.tolist() == [0.0, 0.5, 12.0]


@pytest.mark.parametrize("text", ["", "yesterday", "now", "NaT", "2020-13-01", "1/1", "nan", "2020-01-01 25:00"])
def test_what_is_no_time_is_refused_with_its_row(text: str) -> None:
    for first in ("2020-01-01", "1577836800"):
        with pytest.raises(BadTimeError) as raised:
            parse_times([first, text])
        assert raised.value.row in {0, 1}


@settings(max_examples=50)
@given(st.lists(st.datetimes(), min_size=1, max_size=20))
def test_every_iso_time_is_read_to_the_microsecond(moments: list[Any]) -> None:
    times, _ = parse_times([moment.isoformat() for moment in moments])
    expected = np.array(moments, dtype="datetime64[us]").astype(np.int64) / 1e6
    assert times.tolist() == expected.tolist()


REFUSED: dict[str, tuple[str | bytes, dict[str, str], str]] = {
    "an empty file": ("", {}, "is empty"),
    "a header alone": ("time,flow\n", {}, r"pump.csv:1: a header and no rows"),
    "no numbers": ("time,wind\n1,N\n", {}, "no column of numbers among 'time', 'wind'"),
    "a short row": ("time,flow\n1,2\n3\n", {}, r"pump.csv:3: 1 fields where there are 2 columns.*correct"),
    "a short row far down": (
        "time,flow\n" + "1,2\n" * (CHUNK_ROWS + 10) + "\n3,4,5\n",
        {},
        rf"pump.csv:{CHUNK_ROWS + 13}: 3 fields",
    ),
    "a bad time": ("time,flow\n2020-01-01,1\n\n2020-01-99,2\n", {"time_column": "time"}, r"pump.csv:4: '2020-01-99'"),
    "no such time column": ("time,flow\n1,1\n", {"time_column": "tme"}, "no time column 'tme'.*did you mean 'time'"),
    "no such device column": ("time,flow\n1,1\n", {"device_column": "pump"}, "no device column 'pump'"),
    "a broken gz": (
        gzip.compress(b"time,flow\n" + bytes(range(48, 58)) * 9999)[:-9],
        {},
        "cannot be read.*whole",
    ),
    "a field without end": ('time,flow\n1,"' + "x" * 200_000, {}, "pump.csv:.*field larger"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_says_where_and_what_to_do(tmp_path: Path, case: str) -> None:
    text, options, complaint = REFUSED[case]
    with pytest.raises(DataError, match=complaint):
        read(tmp_path, text, **options)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv cannot be read \(No such file"):
        read_table(tmp_path / "none.csv")


CELLS = st.sampled_from(
    ["", "1", "-2.5", "nan", "inf", "x", "2020-01-01", "1e400", "1/2/2020", '"', '"a,b"', "\r", "\n", "\x00", "é", ";"]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(CELLS, max_size=5).map(",".join), max_size=8).map("\n".join) | st.binary(max_size=60))
def test_any_file_is_a_recording_or_a_data_error(text: str | bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            recording = read(Path(folder), text)
        except DataError:
            return
    assert recording.values.shape == (len(recording), len(recording.channels))
    assert len(recording.time_text) == len(recording.device) == len(recording)
    assert np.isfinite(recording.time).all()


def test_chunks_join_without_a_seam(tmp_path: Path) -> None:
    count = 2 * CHUNK_ROWS + 5
    cells = np.random.default_rng(1).normal(size=(count, 2))
    lines = [f'{row},"dev\n{row % 3}",{a!r},{b!r}' for row, (a, b) in enumerate(cells.tolist())]
    lines[CHUNK_ROWS + 7] = lines[CHUNK_ROWS + 7].rsplit(",", 1)[0] + ",NA"
    cells[CHUNK_ROWS + 7, 1] = np.nan
    recording = read(tmp_path, "\n".join(["time,device,a,b", *lines]))
    np.testing.assert_array_equal(recording.values, cells)
    assert recording.time.tolist() == list(range(count))
    assert recording.devices == ("dev\n0", "dev\n1", "dev\n2")
    assert recording.device.tolist() == [row % 3 for row in range(count)]


def test_a_device_name_of_any_length_is_kept(tmp_path: Path) -> None:
    name = "ü" * 200
    assert read(tmp_path, f"time,device,flow\n1,{name},2\n").devices == (name,)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [tmp_path / folder / name for folder, name in (("a", "0.csv"), ("b", "0.csv"), ("b", "1.csv"))]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(PLAIN["commas"])
    assert [recording.name for recording in read_tables(paths)] == ["a/0", "b/0", "b/1"]
    assert [recording.devices for recording in read_tables(paths[1:])] == [("0",), ("1",)]


def scores(count: int, channels: int) -> dict[str, Any]:
    values = np.random.default_rng(2).normal(size=(count, channels)) * 1e3
    return {
        "time": [f"t,{row}" for row in range(count)],
        "device": ['pump "7"'] * count,
        "score": np.linspace(0.9, 1.1, count),
        "p_value": np.full(count, 1.2345678901234e-12),
        "anomaly": np.linspace(0.9, 1.1, count) >= 1,
        "alert_id": ["", *(["id"] * (count - 1))],
        "value": values,
        "expected": values.astype(np.float32).astype(np.float64),
        "low": values - 1,
        "high": values + 1,
    }


def test_scores_come_back_from_the_file_in_order(tmp_path: Path) -> None:
    part = scores(25_000, 3)
    part["score"][0] = part["p_value"][0] = part["value"][0, 0] = np.nan
    with ScoresWriter(tmp_path / "scores.csv", ["a", "b,b", "c"]) as writer:
        writer.write(**part)
        writer.write(**part)
    with (tmp_path / "scores.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0][:8] == ["time", "device", "score", "p_value", "anomaly", "alert_id", "a_value", "a_expected"]
    assert rows[0][10] == "b,b_value"
    assert len(rows) == 50_001
    assert {len(row) for row in rows} == {18}
    assert rows[1][:7] == ["t,0", 'pump "7"', "", "", "0", "", ""]
    assert rows[1][1:] == rows[25_001][1:]
    assert [float(row[2]) for row in rows[2:25_001]] == part["score"][1:].tolist()
    assert [row[4] == "1" for row in rows[1:25_001]] == part["anomaly"].tolist()
    table = np.array([row[6:] for row in rows[2:25_001]], dtype=np.float64).reshape(-1, 3, 4)
    np.testing.assert_array_equal(table[:, :, 0], part["value"][1:])
    for place, name in enumerate(("expected", "low", "high"), 1):
        np.testing.assert_allclose(table[:, :, place], part[name][1:], rtol=5e-7)


def test_what_was_forecast_is_written_with_seven_digits(tmp_path: Path) -> None:
    part = scores(4, 1) | {"expected": np.array([[np.float64(np.float32(0.1))], [0.0], [1.23456789e20], [np.nan]])}
    with ScoresWriter(tmp_path / "scores.csv", ["a"]) as writer:
        writer.write(**part)
    cells = [line.split(",")[-3] for line in (tmp_path / "scores.csv").read_text().splitlines()[1:]]
    assert [cells[0], cells[1], cells[3]] == ["0.1", "0.0", ""]
    assert float(cells[2]) == pytest.approx(1.234568e20, rel=1e-12)


def test_scores_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        ScoresWriter(tmp_path / "none" / "scores.csv", [])


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"sentinel\[parquet\]"):
        read(tmp_path, b"PAR1", "pump.parquet")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")
class TestParquet:
    def test_a_parquet_file_reads_as_its_csv(self, tmp_path: Path) -> None:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
        moments = np.array(["2020-01-01T00:00", "2020-01-01T00:01"], dtype="datetime64[ns]")
        table = arrow.table(
            {
                "time": arrow.array(moments, arrow.timestamp("us", "UTC")),
                "device": arrow.array(["a", "b"]).dictionary_encode(),
                "flow": arrow.array([1.5, 3.0], arrow.float32()),
                "pressure": arrow.array([2, -4000], arrow.int32()),
                "label": [False, True],
                "void": arrow.array([None, None], arrow.float64()),
            }
        )
        parquet.write_table(table, tmp_path / "pump.parquet")
        recording = read_table(tmp_path / "pump.parquet")
        assert_plain(recording)
        assert recording.devices == ("a", "b")
        assert recording.label is not None
        assert recording.label.tolist() == [0, 1]

    def test_missing_values_are_nan(self, tmp_path: Path) -> None:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
        parquet.write_table(arrow.table({"time": [1, 2, 3], "n": [1, None, 3]}), tmp_path / "p.parquet")
        np.testing.assert_array_equal(read_table(tmp_path / "p.parquet").values[:, 0], [1.0, np.nan, 3.0])

    def test_a_damaged_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="whole Parquet file"):
            read(tmp_path, b"PAR1 and nothing else", "pump.parquet")
