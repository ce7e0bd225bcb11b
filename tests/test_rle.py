"""Run lengths: HuBMAP's rules, against a literal loop over pixels."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from renal_utils.rle import check_rle, decode_rle, encode_rle, parse_rle, read_rle_table

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


def encode_literally(mask: np.ndarray) -> str:
    """Walk down each column, counting pixels from 1, and note each run."""
    runs: list[list[int]] = []
    number = 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            number += 1
            if not mask[row, column]:
                continue
            if runs and sum(runs[-1]) == number:
                runs[-1][1] += 1
            else:
                runs.append([number, 1])
    return " ".join(f"{start} {length}" for start, length in runs)


def test_published_example_in_both_directions():
    mask = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], bool)
    assert encode_rle(mask) == "2 1 4 2 7 1 12 1"
    np.testing.assert_array_equal(decode_rle("2 1 4 2 7 1 12 1", (4, 3)), mask)


@given(masks)
@settings(max_examples=150, deadline=None)
def test_encoding_equals_a_literal_loop_and_decoding_undoes_it(mask):
    text = encode_rle(mask)
    assert text == encode_literally(mask)
    np.testing.assert_array_equal(decode_rle(text, mask.shape[::-1]), mask)


@given(masks, st.data())
@settings(max_examples=100, deadline=None)
def test_sampling_equals_indexing_the_whole_mask(mask, data):
    height, width = mask.shape
    columns = np.array(data.draw(st.lists(st.integers(0, width - 1), max_size=9)), np.int64)
    rows = np.sort(np.array(data.draw(st.lists(st.integers(0, height - 1), max_size=9)), np.int64))
    runs = parse_rle(encode_rle(mask), (width, height))
    np.testing.assert_array_equal(runs.sample(columns, rows), mask[rows[:, None], columns])


@pytest.mark.parametrize("row", [0, -1])
@pytest.mark.parametrize("column", [0, -1])
def test_corner_pixels_survive_the_round_trip(row, column):
    mask = np.zeros((5, 7), bool)
    mask[row, column] = True
    np.testing.assert_array_equal(decode_rle(encode_rle(mask), (7, 5)), mask)


def test_empty_and_full_masks():
    assert encode_rle(np.zeros((3, 4), bool)) == ""
    assert not decode_rle("", (4, 3)).any()
    assert encode_rle(np.ones((3, 4), bool)) == "1 12"
    assert decode_rle("1 12", (4, 3)).all()


def test_touching_runs_are_accepted_and_counted():
    runs = parse_rle("1 2 3 4", (2, 3))
    assert runs.area_px == 6
    assert runs.sample(np.arange(2), np.arange(3)).all()


def test_a_window_of_a_huge_slide_is_decoded_from_its_runs_alone():
    side = 60_000  # the whole mask would take 3.6 GB
    starts = np.arange(side) * side + 30_000
    text = " ".join(f"{start + 1} 100" for start in starts.tolist())
    runs = parse_rle(text, (side, side))
    assert runs.area_px == side * 100
    window = runs.sample(np.arange(20_000, 20_256), np.arange(29_950, 30_206))
    assert window[50:150].all()
    assert not window[:50].any()
    assert not window[150:].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3", "odd count"),
        ("0 2", "counts from 0"),
        ("-4 2", "starts at pixel -4"),
        ("3 -2", "length -2"),
        ("3 0", "length 0"),
        ("11 3", "ends at pixel 13, but an image of 4 x 3 has 12"),
        ("40 1", "ends at pixel 40"),
        ("7 1 2 1", "must be sorted"),
        ("2 3 4 2", "inside run 1"),
        ("2 2 2 2", "inside run 1"),
        ("2 x", "'x' is not a whole number"),
        ("2.5 1", "'2.5' is not a whole number"),
        ("1_0 1", "'1_0' is not a whole number"),
        ("4-2 1", "'4-2' is not a whole number"),
        ("1 99999999999999999999", "not a whole number of a usable size"),
        ("9000000000000000000 9000000000000000000", "ends at pixel|usable size"),
    ],
)
def test_broken_texts_are_refused_with_the_place_and_what_was_found(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_rle(text, (4, 3), where="train.csv, image 'abc'")
    assert str(caught.value).startswith("train.csv, image 'abc': ")


def test_table_gives_texts_by_id_with_empty_cells_as_empty_masks(tmp_path: Path):
    path = tmp_path / "train.csv"
    path.write_text(f"id,encoding\na,{'1 1 ' * 100_000}\nb,\n")
    table = read_rle_table(path)
    assert list(table) == ["a", "b"]
    assert len(table["a"].split()) == 200_000
    assert table["b"] == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,mask\na,1 1\n", r"train.csv: no column 'encoding'; it has \['id', 'mask'\]"),
        ("image,mask\na,1 1\n", "no column 'id', 'encoding'"),
        ("", "train.csv: not a readable csv"),
        ("id,encoding\na,1 1\na,2 1\n", "id 'a' stands twice"),
        ("id,encoding\na,1 1\nb,2,1,5\n", "train.csv: not a readable csv"),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, content, message):
    path = tmp_path / "train.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_rle_table(path)


def test_missing_table_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"nothing\.csv: no such file"):
        read_rle_table(tmp_path / "nothing.csv")
