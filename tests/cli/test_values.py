import pytest
import typer

from memfold.cli.values import human_duration, key_value, seconds_of


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [
        ("45s", 45),
        ("90m", 5400),
        ("12h", 43_200),
        ("30d", 2_592_000),
        ("2w", 1_209_600),
        ("1y", 31_536_000),
        ("1d12h", 129_600),
        ("1h 30m", 5400),
        ("1.5H", 5400),
        ("never", 0),
        ("0", 0),
    ],
)
def test_durations_are_read_as_people_type_them(typed, seconds):
    assert seconds_of(typed) == seconds


@pytest.mark.parametrize("typed", ["", "30", "d", "30x", "-3d", "3dd", "0.1s", "1d 3", "2024-01-01"])
def test_what_is_no_duration_is_refused_with_an_example(typed):
    with pytest.raises(typer.BadParameter, match="say 30d"):
        seconds_of(typed)


def test_durations_are_told_in_the_words_that_are_read_back():
    assert human_duration(1_209_600) == "14 days"
    assert human_duration(2_592_000) == "30 days"
    assert human_duration(5_401) == "1 hour 30 minutes 1 second"


def test_a_pair_has_a_key_and_may_have_an_empty_value():
    assert key_value("day=Monday=1", "--label") == ("day", "Monday=1")
    assert key_value("day=", "--label") == ("day", "")
    for text in ("day", "=Monday"):
        with pytest.raises(typer.BadParameter, match="KEY=VALUE"):
            key_value(text, "--label")
