"""The ruler: tokens per pass and the share of drafts that were of use."""

from specstream.core.stats import RowStats, Timings


def test_counts_of_a_row():
    stats = RowStats(emitted=[3, 1, 4], drafted=12, accepted=5)
    assert stats.target_passes == 3
    assert stats.new_tokens == 8
    assert stats.mean_accepted_length == 8 / 3
    assert stats.acceptance_rate == 5 / 12


def test_nothing_yet_is_zero():
    stats = RowStats()
    assert (stats.target_passes, stats.new_tokens, stats.mean_accepted_length, stats.acceptance_rate) == (0, 0, 0, 0)


def test_rows_do_not_share_their_counts():
    first, second = RowStats(), RowStats()
    first.emitted.append(1)
    assert second.emitted == []


def test_total_time_counts_no_part_twice():
    assert Timings(prefill=1.0, propose=0.5, score=2.0, decode=3.0).total == 4.0
