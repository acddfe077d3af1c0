"""Hours, feeding and what is short, worked out by hand."""

import pytest

from tools.measure.outlook import Speeds, on_the_same_cores, outlook, share_of_cores

LOADER = {1: 4_000.0, 2: 2_000.0, 4: 1_000.0}
FAST = Speeds(step=1_000.0, loader=LOADER, storage=3_000.0, fits=True)


def test_as_many_devices_as_the_loader_feeds_are_fed_and_the_next_are_not() -> None:
    one, two, four = (outlook(FAST, n, num_images=3_600_000, epochs=90) for n in (1, 2, 4))
    assert (one.images_per_second, one.fed, one.short) == (1_000, True, "step")
    assert (one.hours_per_epoch, one.hours) == (1.0, 90.0)
    assert (two.images_per_second, two.fed, two.delivered) == (2_000, True, 4_000)
    assert (four.images_per_second, four.hours_per_epoch) == (4_000, 0.25)
    assert (four.fed, four.short) == (False, "decode")  # enough, but without headroom


def test_storage_counts_where_the_shards_do_not_fit_in_memory() -> None:
    slow = Speeds(step=1_000.0, loader={1: 4_000.0}, storage=500.0, fits=False)
    seen = outlook(slow, 1, num_images=1_800_000, epochs=2)
    assert (seen.delivered, seen.short, seen.hours) == (500, "storage", 2.0)
    fitting = Speeds(step=1_000.0, loader={1: 4_000.0}, storage=500.0, fits=True)
    assert outlook(fitting, 1, num_images=1, epochs=1).fed


def test_without_a_device_it_says_what_would_be_delivered_and_no_more() -> None:
    seen = outlook(Speeds(step=None, loader={2: 70.0}, storage=9.0, fits=True), 2,
                   num_images=1, epochs=1)  # fmt: skip
    assert seen.delivered == 140
    assert (seen.images_per_second, seen.hours, seen.fed, seen.short) == (None, None, None, None)


def test_on_the_same_cores_times_add_up() -> None:
    assert on_the_same_cores(100.0, 100.0) == pytest.approx(50)
    assert on_the_same_cores(10.0, 1e12) == pytest.approx(10)


@pytest.mark.parametrize(
    ("cores", "processes", "expected"),
    [(16, 4, (4, 1.0)), (2, 2, (1, 1.0)), (2, 4, (1, 0.5)), (1, 4, (1, 0.25)), (7, 2, (3, 1.0))],
)
def test_cores_are_shared_evenly_and_never_counted_twice(
    cores: int, processes: int, expected: tuple[int, float]
) -> None:
    assert share_of_cores(cores, processes) == expected
    threads, share = expected
    assert processes * threads * share <= cores
