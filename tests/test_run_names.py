import pytest
from hypothesis import given
from hypothesis import strategies as st

from renal_utils.run_names import CODES, format_run_name, parse_run_name

SLIDES = "ps2048_po0_ep20_bs16_lr0p0001_bceW0p8_ds1e-06_posW25"
PARAMETERS = {
    "patch_px": 2048,
    "patch_overlap_px": 0,
    "epochs": 20,
    "batch_size": 16,
    "learning_rate": 1e-4,
    "bce_weight": 0.8,
    "smooth": 1e-6,
    "positive_weight": 25.0,
}

plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
identifiers = st.sampled_from([*CODES, "model_name", "x", "bs16_x", "_", "été", "lr"])
parameters = st.dictionaries(
    identifiers, plain | st.lists(plain, max_size=3), min_size=1, max_size=4
)


def test_a_name_of_the_slides_is_written_and_read_as_they_have_it():
    assert format_run_name(PARAMETERS) == SLIDES
    assert parse_run_name(SLIDES) == PARAMETERS


@given(parameters)
def test_a_name_is_turned_back_into_its_parameters(chosen):
    try:
        name = format_run_name(chosen)
    except ValueError as error:
        assert "characters long" in str(error)
        return
    assert parse_run_name(name) == chosen
    assert list(parse_run_name(name)) == list(chosen)
    assert not set(name) & set('/\\:*?"<>| \n')


@given(parameters, parameters)
def test_two_runs_have_one_name_only_if_they_are_the_same(one, other):
    try:
        same_name = format_run_name(one) == format_run_name(other)
    except ValueError:
        return
    # True equals 1 in Python, but is another parameter
    assert not same_name or repr(one).replace(".0", "") == repr(other).replace(".0", "")


def test_text_that_reads_like_a_number_stays_text():
    given_values = {"name": "5", "flag": True, "word": "true", "many": ["a_b", 1, None]}
    back = parse_run_name(format_run_name(given_values))
    assert back == given_values
    assert type(back["name"]) is str and back["flag"] is True


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "vary at least one"),
        ({"learning rate": 1}, "no name of a Python variable"),
        ({"learning_rate": float("nan")}, "no finite number"),
        ({f"name_{n}": "x" * 30 for n in range(9)}, "vary fewer parameters"),
    ],
)
def test_parameters_that_give_no_name_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        format_run_name(wrong)


@pytest.mark.parametrize("wrong", ["", "bs", "zz3", "bs16__lr1", "bs1p", "1=2", "bs16_lr0.1"])
def test_a_text_that_is_no_name_is_refused_and_the_part_named(wrong):
    with pytest.raises(ValueError, match=r"neither a code and a number like bs16"):
        parse_run_name(wrong)
    with pytest.raises(ValueError, match="twice"):
        parse_run_name("bs16_bs16")
