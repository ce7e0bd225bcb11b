import pytest

from renal_utils.tables import read_results, read_table

READERS = [read_table, read_results]


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("name,dice,steps\n001,0.5,3\nunet,,4\n")
    return path


def test_a_table_holds_texts_as_they_were_written(csv):
    table = read_table(csv, ["name", "dice"])
    assert table["name"].tolist() == ["001", "unet"]
    assert table["dice"].tolist() == ["0.5", ""]


def test_results_are_numbers_and_an_empty_cell_is_no_number(csv):
    table = read_results(csv, ["dice", "steps"])
    assert table["dice"].isna().tolist() == [False, True]
    assert table["steps"].sum() == 7


@pytest.mark.parametrize("read", READERS)
def test_missing_columns_are_named_beside_those_that_are_there(csv, read):
    message = r"results\.csv: no column 'seed', 'minutes'; it has \['name', 'dice', 'steps'\]"
    with pytest.raises(ValueError, match=message):
        read(csv, ["name", "seed", "minutes"])


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("content", ["", "a,b\n1,2,3\n1,2,3,4\n", b"\xff\xfe\x00"])
def test_what_is_no_csv_is_named_with_what_was_expected(csv, read, content):
    csv.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"results\.csv: .*\['dice'\]"):
        read(csv, ["dice"])


@pytest.mark.parametrize("read", READERS)
def test_an_absent_file_is_named(tmp_path, read):
    with pytest.raises(ValueError, match=r"absent\.csv: no such file"):
        read(tmp_path / "absent.csv", ["dice"])


def test_results_without_a_row_are_refused(csv):
    csv.write_text("name,dice\n")
    with pytest.raises(ValueError, match=r"results\.csv: has columns but no row"):
        read_results(csv, ["dice"])
    assert read_table(csv, ["dice"]).empty
