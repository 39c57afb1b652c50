"""Folding the changes of a row has the effect of applying them one by one."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.fold import Folded, Forgotten, Stretch, fold
from projections.rows import Change, Forget, Put, Set
from projections.tables import CUSTOMER_TEAM_MEMBERS, CUSTOMER_USAGE, X_META_DQ_RESULTS, X_META_STEP_LOGS

MEMBERS = CUSTOMER_TEAM_MEMBERS
FREE = [name for name in MEMBERS.names if name not in MEMBERS.key]
FIELDS = st.sampled_from(FREE)
VALUES = st.integers(0, 9)
OWNERS = {"a": "acme", "b": "acme", "c": "globex"}


def whole(member_id, value):
    return Put(MEMBERS, {**dict.fromkeys(MEMBERS.names, value), "member_id": member_id})


def some(member_id, **values):
    return Set(MEMBERS, {"member_id": member_id, **values})


@st.composite
def logs(draw):
    """A stretch of a log over a few rows of two customers, in order of position.

    An event may change a row more than once, and forget a customer, whose rows may come anew afterwards.
    """
    ids = st.sampled_from("abc")
    row = st.one_of(
        st.builds(whole, ids, VALUES),
        st.builds(lambda m, values: some(m, **values), ids, st.dictionaries(FIELDS, VALUES)),
        st.builds(Forget, st.just(MEMBERS), st.sampled_from(["acme", "globex"])),
    )
    rows = draw(st.lists(row, max_size=12))
    steps = draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    position, log = 1, []
    for row, step in zip(rows, steps, strict=True):
        forgets = isinstance(row, Forget)
        # An event that forgets a customer does nothing else to its rows.
        position += 1 if forgets or (log and isinstance(log[-1].row, Forget)) else step
        log.append(Change(row, position, row.customer_id if forgets else OWNERS[row.values["member_id"]]))
    return log


def apply(table, stretch):
    """The effect of writing on a table, a dict by key."""
    for gone in stretch.forgotten:
        for key in [key for key, row in table.items() if OWNERS[key[0]] == gone.customer_id and row[1] < gone.position]:
            del table[key]
    for change in stretch.rows:
        there = table.get(change.key)
        if there is not None and change.position <= there[1]:
            continue
        if change.whole:
            table[change.key] = (dict(change.values), change.position)
        elif there is not None:
            table[change.key] = ({**there[0], **change.values}, change.position)
    return table


def events(log):
    """The changes of each position by themselves."""
    positions = sorted({change.position for change in log})
    return [[change for change in log if change.position == position] for position in positions]


def one_by_one(log):
    table = {}
    for changes in events(log):
        apply(table, fold(changes))
    return table


@given(logs())
def test_a_folded_batch_has_the_effect_of_its_changes(log):
    assert apply({}, fold(log)) == one_by_one(log)


@given(logs(), st.data())
def test_any_cut_and_any_repetition_of_a_batch_ends_the_same(log, data):
    cuts = sorted({0, len(events(log)), *data.draw(st.lists(st.integers(0, len(events(log))), max_size=3))})
    table = {}
    for start, end in pairwise(cuts):
        batch = [change for changes in events(log)[start:end] for change in changes]
        apply(table, fold(batch))
        if data.draw(st.booleans(), label="crash before the checkpoint"):
            repeated = [change for changes in events(log)[start : end + 1] for change in changes]
            apply(table, fold(repeated))
    assert table == one_by_one(log)


@given(logs(), st.randoms())
def test_the_order_within_a_batch_is_that_of_the_positions(log, random):
    shuffled = [[changes[0].position, changes] for changes in events(log)]
    random.shuffle(shuffled)
    assert fold([change for _, changes in shuffled for change in changes]) == fold(log)


@given(logs())
def test_each_row_comes_once_in_order_of_appearance_with_its_last_position(log):
    last = {change.row.customer_id: change.position for change in log if isinstance(change.row, Forget)}
    stays = [c for c in log if not isinstance(c.row, Forget) and c.position > last.get(c.customer_id, 0)]
    keys = [change.row.values["member_id"] for change in stays]
    forgotten, folded = fold(log)
    assert {gone.customer_id: gone.position for gone in forgotten} == last
    assert [row.key for row in folded] == [(key,) for key in dict.fromkeys(keys)]
    assert [row.position for row in folded] == [
        max(change.position for change in stays if change.row.values["member_id"] == row.key[0]) for row in folded
    ]


def test_what_a_customer_had_goes_and_what_comes_later_stays():
    step, result = {"step_logging_id": "s"}, {"dq_result_id": "r"}
    log = [
        Change(whole("a", 1), 1, "acme"),
        Change(whole("c", 1), 2, "globex"),
        Change(Set(X_META_STEP_LOGS, step), 3, "acme"),
        Change(Set(X_META_DQ_RESULTS, result), 3, "acme"),
        Change(some("c", role="OWNER"), 4, "globex"),
        Change(Forget(MEMBERS, "acme"), 5, "acme"),
        Change(Forget(X_META_STEP_LOGS, "acme"), 5, "acme"),
        Change(some("a", role="GHOST"), 6, "acme"),
    ]
    assert fold(log) == Stretch(
        [Forgotten(MEMBERS, "acme", 5), Forgotten(X_META_STEP_LOGS, "acme", 5)],
        [
            Folded(MEMBERS, None, ("c",), {**whole("c", 1).values, "role": "OWNER"}, whole=True, position=4),
            Folded(X_META_DQ_RESULTS, "acme", ("r",), result, whole=False, position=3),
            # of a row that is gone: it changes nothing, and makes none
            Folded(MEMBERS, None, ("a",), {"member_id": "a", "role": "GHOST"}, whole=False, position=6),
        ],
    )


@given(logs())
def test_without_what_is_forgotten_rows_are_left(log):
    """The control: a writer that passes over the first half of what it is given."""
    table = {}
    for changes in events(log):
        apply(table, fold(changes)._replace(forgotten=()))
    gone = [c for c in log if isinstance(c.row, Forget)]
    if any(OWNERS[key[0]] == c.customer_id and row[1] < c.position for c in gone for key, row in table.items()):
        assert table != one_by_one(log)


def test_a_put_replaces_what_came_before_and_a_set_names_what_it_changes():
    log = [
        Change(some("a", role="OWNER", name="gone"), 1, "acme"),
        Change(whole("a", 0), 2, "acme"),
        Change(some("a", role="ADMIN"), 3, "acme"),
        Change(some("b", role="ADMIN"), 4, "acme"),
        Change(some("b", email=None), 5, "acme"),
    ]
    assert fold(log).rows == [
        Folded(MEMBERS, None, ("a",), {**whole("a", 0).values, "role": "ADMIN"}, whole=True, position=3),
        Folded(MEMBERS, None, ("b",), {"member_id": "b", "role": "ADMIN", "email": None}, whole=False, position=5),
    ]


def test_rows_are_told_apart_by_table_whole_key_and_customer():
    usage = {"customer_id": "acme", "usage_date": 1}
    result = {"dq_result_id": "a"}
    log = [
        Change(some("a"), 1, "acme"),
        Change(Set(CUSTOMER_USAGE, usage), 2, "acme"),
        Change(Set(CUSTOMER_USAGE, {**usage, "usage_date": 2}), 3, "acme"),
        Change(Set(X_META_DQ_RESULTS, result), 4, "acme"),
        Change(Set(X_META_DQ_RESULTS, result), 5, "globex"),
        Change(some("a"), 6, "globex"),
    ]
    assert [(row.table.name, row.customer_id, row.key, row.position) for row in fold(log).rows] == [
        ("customer_team_members", None, ("a",), 6),
        ("customer_usage", None, ("acme", 1), 2),
        ("customer_usage", None, ("acme", 2), 3),
        ("x_meta_dq_results", "acme", ("a",), 4),
        ("x_meta_dq_results", "globex", ("a",), 5),
    ]


def test_the_changes_themselves_stay_as_they_are():
    put = whole("a", 0)
    before = dict(put.values)
    fold([Change(put, 1, "acme"), Change(some("a", role="ADMIN"), 2, "acme"), Change(some("a", name="x"), 3, "acme")])
    assert put.values == before


def test_a_change_without_its_key_is_refused():
    with pytest.raises(KeyError, match="member_id"):
        fold([Change(Set(MEMBERS, {"role": "ADMIN"}), 1, "acme")])
