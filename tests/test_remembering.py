"""What a worker remembers of a pass changes nothing but the work."""

import numpy as np
from oracles import blobs

from daskcurate import remembering
from daskcurate.kernels.assign import Scorer, assign
from daskcurate.rows import Block
from daskcurate.store import write_scratch


def test_a_remembered_pass_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(remembering, "_entries", type(remembering._entries)())
    x = blobs(0, n=500)
    block = Block(np.arange(500), x)
    centroids = x[:20]
    first = remembering.step_block(block, Scorer(centroids, "l2"), "rows")
    moved = Scorer(centroids + np.float32(0.01), "l2")
    again = remembering.step_block(block, moved, "rows")
    anew = remembering.step_block(block, moved, "other rows")
    assert first.counts.sum() == 500
    np.testing.assert_array_equal(again.sums, anew.sums)
    np.testing.assert_array_equal(
        remembering.assign_block(block, moved, "rows").labels, assign(x, moved).labels
    )


def test_another_block_or_another_number_of_clusters_is_not_mixed_up(monkeypatch):
    monkeypatch.setattr(remembering, "_entries", type(remembering._entries)())
    x = blobs(1, n=400)
    one, other = Block(np.arange(200), x[:200]), Block(np.arange(200, 400), x[200:])
    few = Block(np.arange(0, 200, 2), x[0:200:2])  # the same first row, fewer rows
    for scorer in (Scorer(x[:10], "l2"), Scorer(x[:11], "l2")):
        for block in (one, other, few):
            found = remembering.assign_block(block, scorer, "rows").labels
            np.testing.assert_array_equal(found, assign(block.rows, scorer).labels)


def test_rows_in_work_keep_their_place_and_those_before_them_make_room(monkeypatch):
    monkeypatch.setattr(remembering, "_entries", type(remembering._entries)())
    monkeypatch.setattr(remembering, "_used", 0)
    monkeypatch.setattr(remembering, "LIMIT_BYTES", 2000)  # a block's labels and bounds take 800
    x = blobs(2, n=100)
    scorer = Scorer(x[:5], "l2")

    def passed(name):
        for start in range(0, 500, 100):
            remembering.assign_block(Block(np.arange(start, start + 100), x), scorer, name)
        assert remembering._used == sum(entry.nbytes for entry in remembering._entries.values()) <= 2000

    for name in ("rows", "rows", "others"):
        passed(name)
        assert list(remembering._entries) == [(name, 0), (name, 100)]


def test_sums_give_way_to_bounds(monkeypatch):
    monkeypatch.setattr(remembering, "_entries", type(remembering._entries)())
    monkeypatch.setattr(remembering, "_used", 0)
    x = blobs(2, n=100)  # labels and bounds of 100 rows take 800 bytes, the sums of 5 clusters 200
    assert x.shape[1] == 5
    monkeypatch.setattr(remembering, "LIMIT_BYTES", 1900)
    for start in (0, 100, 200):
        remembering.step_block(Block(np.arange(start, start + 100), x), Scorer(x[:5], "l2"), "rows")
    found = {first: entry.partial is not None for (_, first), entry in remembering._entries.items()}
    assert found == {0: True, 100: False}


def test_no_rows(monkeypatch):
    block = Block(np.empty(0, np.int64), np.empty((0, 5), np.float32))
    partial = remembering.step_block(block, Scorer(blobs(3)[:4], "l2"), "rows")
    assert partial.counts.tolist() == [0, 0, 0, 0]
    assert partial.squares == 0


def test_moves_are_computed_once_for_all_blocks(monkeypatch):
    monkeypatch.setattr(remembering, "_entries", type(remembering._entries)())
    calls, original = [], remembering.moves_of
    monkeypatch.setattr(remembering, "moves_of", lambda *tables: calls.append(0) or original(*tables))
    rows = blobs(4)
    centroids = rows[:6].copy()
    blocks = [Block(np.arange(i, i + 100), rows[i : i + 100]) for i in range(0, 400, 100)]
    for turn in range(3):
        scorer = Scorer(centroids + np.float32(0.001 * turn), "l2")
        for block in blocks:
            found = remembering.assign_block(block, scorer, "rows of moves").labels
            np.testing.assert_array_equal(found, assign(block.rows, scorer).labels)
        assert len(calls) == turn


def test_what_belongs_to_a_table_is_made_once_and_goes_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(remembering, "_scorers", type(remembering._scorers)())
    monkeypatch.setattr(remembering, "_made", {})
    tables = []
    for number in range(2):
        write_scratch(str(tmp_path / f"{number}"), blobs(number)[:4])
        tables.append(remembering.Table(str(tmp_path / f"{number}"), "l2", "run"))
    calls = []
    for table, name in ((0, "a"), (0, "a"), (0, "b"), (1, "a"), (1, "a"), (0, "a")):
        tables[table].scorer()
        assert tables[table].kept(name, lambda key=(table, name): calls.append(key) or key) == (table, name)
    assert calls == [(0, "a"), (0, "b"), (1, "a"), (0, "a")]
