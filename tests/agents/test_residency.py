"""Which models stay: by cost, size and recency, within bounds, and never one that is in use."""

from hypothesis import given
from hypothesis import strategies as st

from starloom.agents.residency import Resident, victims, worth

MEGABYTE = 1024 * 1024

residents = st.builds(
    Resident,
    load_seconds=st.floats(0, 60),
    bytes=st.integers(0, 100),
    used=st.floats(0, 10_000),
    in_use=st.booleans(),
)
many = st.dictionaries(st.integers(0, 50), residents, max_size=12)
bounds = {"now": st.floats(0, 20_000), "count_max": st.integers(1, 12), "bytes_max": st.integers(0, 400)}


def test_of_models_used_lately_the_one_that_is_cheap_to_load_goes() -> None:
    kept = {
        "dear": Resident(2.0, 10 * MEGABYTE, used=99.0),
        "cheap": Resident(0.1, 10 * MEGABYTE, used=100.0),
        "last": Resident(0.1, MEGABYTE, used=101.0),
    }
    assert victims(kept, 102.0, 2, 100 * MEGABYTE) == ["cheap"]


def test_of_models_that_cost_the_same_the_large_one_goes() -> None:
    kept = {
        "large": Resident(0.5, 50 * MEGABYTE, used=100.0),
        "small": Resident(0.5, MEGABYTE, used=100.0),
        "last": Resident(0.5, MEGABYTE, used=101.0),
    }
    assert victims(kept, 102.0, 3, 10 * MEGABYTE) == ["large"]


def test_what_nobody_asked_for_in_a_long_time_goes_even_if_it_was_dear() -> None:
    kept = {
        "dear": Resident(2.0, MEGABYTE, used=0.0),
        "cheap": Resident(0.5, MEGABYTE, used=3_600.0),
        "last": Resident(0.1, MEGABYTE, used=3_601.0),
    }
    assert victims(kept, 3_602.0, 2, 100 * MEGABYTE) == ["dear"]


def test_what_is_in_use_and_what_was_asked_for_last_stays_whatever_the_bounds() -> None:
    kept = {"busy": Resident(0.0, 500, used=0.0, in_use=True), "last": Resident(0.0, 500, used=1.0)}
    assert victims(kept, 2.0, 1, 10) == []
    assert victims({}, 2.0, 1, 10) == []


@given(kept=many, **bounds)
def test_no_more_goes_than_must_and_never_what_is_in_use(
    kept: dict[int, Resident], now: float, count_max: int, bytes_max: int
) -> None:
    gone = victims(kept, now, count_max, bytes_max)
    assert len(set(gone)) == len(gone)
    assert not any(kept[key].in_use for key in gone)
    left = {key: each for key, each in kept.items() if key not in gone}
    assert left or not kept
    fits = len(left) <= count_max and sum(each.bytes for each in left.values()) <= bytes_max
    newest = max(kept, key=lambda key: kept[key].used, default=None)
    assert fits or all(each.in_use or key == newest for key, each in left.items())
    if gone:
        with_last = [*left.values(), kept[gone[-1]]]
        assert len(with_last) > count_max or sum(each.bytes for each in with_last) > bytes_max
    assert all(
        worth(kept[key], now) <= worth(each, now)
        for key in gone
        for other, each in left.items()
        if not each.in_use and other != newest
    )


@given(one=residents, older=st.floats(0, 1_000), dearer=st.floats(0, 10), larger=st.integers(0, 100))
def test_worth_falls_with_age_and_size_and_grows_with_cost(
    one: Resident, older: float, dearer: float, larger: int
) -> None:
    now = one.used + 5.0
    assert worth(one, now + older) <= worth(one, now)
    assert worth(one._replace(load_seconds=one.load_seconds + dearer), now) >= worth(one, now)
    assert worth(one._replace(bytes=one.bytes + larger), now) <= worth(one, now)
