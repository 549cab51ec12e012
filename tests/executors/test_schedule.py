"""The order of stages, and what failures and losses do to it."""

from __future__ import annotations

import random

import pytest

from bench.executors.schedule import Schedule, State
from bench.graph import Cell, Stage, topological


def stage(name: str, **inputs: Stage) -> Stage:
    return Stage("fit", {"name": name}, inputs, label=name)


def cell(name: str, **inputs: Stage) -> Cell:
    return Cell(Stage("evaluate", {"name": name, "identity": {}}, inputs, label=name))


DATA = stage("data")
ENCODER = stage("encoder", data=DATA)
VICTIM = stage("victim", data=DATA, encoder=ENCODER)
SLOW, FAST = stage("slow", encoder=VICTIM), stage("fast", encoder=ENCODER)
SECONDS = {"data": 1, "encoder": 100, "victim": 50, "slow": 60, "fast": 3, "a": 1, "b": 1}
CELLS = (cell("a", score=SLOW, data=DATA), cell("b", score=FAST))


def seconds(stage: Stage) -> float:
    return SECONDS[stage.label]


def drain(schedule: Schedule) -> list[str]:
    """Labels in the order in which one worker takes them."""
    taken = []
    while schedule.open:
        taken.append(schedule.take().label)
        schedule.finish(schedule_key(schedule, taken[-1]))
    return taken


def schedule_key(schedule: Schedule, label: str) -> str:
    return next(key for key in schedule._stages if schedule.stage(key).label == label)


def test_the_longest_way_to_an_end_comes_first_and_a_cell_that_can_end_before_all():
    schedule = Schedule(CELLS, seconds)
    assert drain(schedule) == ["data", "encoder", "victim", "slow", "a", "fast", "b"]
    assert schedule.counts[State.done] == 7
    assert schedule.seconds_left == 0


def test_nothing_is_ready_while_its_inputs_are_out():
    schedule = Schedule(CELLS, seconds)
    assert schedule.take() is DATA
    assert schedule.peek() is None
    with pytest.raises(LookupError):
        schedule.take()


def test_a_failure_fails_what_needs_it_and_drops_what_nobody_else_wants():
    schedule = Schedule(CELLS, seconds)
    schedule.take(), schedule.finish(DATA.key)
    schedule.take(), schedule.finish(ENCODER.key)
    assert schedule.take() is VICTIM
    assert schedule.fail(VICTIM.key, "broken") == {CELLS[0].key: "broken"}
    assert drain(schedule) == ["fast", "b"]
    only = stage("only", encoder=ENCODER)
    lonely = Schedule([cell("a", left=VICTIM, right=only)], lambda _: 1.0)
    lonely.take(), lonely.finish(DATA.key)
    lonely.take(), lonely.finish(ENCODER.key)
    taken = lonely.take()
    lonely.fail(taken.key, "broken")
    assert not lonely.open  # the other input would serve nobody


def test_what_is_lost_is_computed_again_before_who_waits_for_it():
    schedule = Schedule(CELLS, seconds)
    for wanted in (DATA, ENCODER, VICTIM):
        assert schedule.take() is wanted
        schedule.finish(wanted.key)
    assert schedule.take() is SLOW
    schedule.lose(VICTIM.key)
    schedule.give_back(SLOW.key)
    assert drain(schedule) == ["victim", "slow", "a", "fast", "b"]


def test_losing_what_is_not_stored_changes_nothing():
    schedule = Schedule(CELLS, seconds)
    schedule.lose(ENCODER.key)
    assert drain(schedule)[:2] == ["data", "encoder"]


def test_untimed_stages_are_ordered_by_a_guess_and_promise_no_time():
    schedule = Schedule(CELLS, lambda _: None, lambda stage: SECONDS[stage.label])
    assert (schedule.seconds_left, schedule.untimed_left) == (0, 7)
    assert drain(schedule)[3] == "slow"
    assert schedule.untimed_left == 0


@pytest.mark.parametrize("seed", range(40))
def test_whatever_fails_or_is_lost_every_cell_ends(seed: int):
    """A random graph under random losses and failures: each cell is done or failed, never both."""
    draw = random.Random(seed)
    stages = [stage("0")]
    for number in range(1, 60):
        chosen = draw.sample(stages, min(len(stages), draw.randint(1, 3)))
        stages.append(stage(str(number), **{f"i{i}": s for i, s in enumerate(chosen)}))
    cells = [cell(f"c{i}", x=draw.choice(stages), y=draw.choice(stages)) for i in range(25)]
    schedule = Schedule(cells, lambda s: draw.random())
    failed: dict[str, str] = {}
    out, done = [], set()
    steps = 0
    while schedule.open:
        steps += 1
        assert steps < 10_000
        while schedule.peek() is not None and len(out) < 4:
            out.append(schedule.take().key)
        key = out.pop(draw.randrange(len(out)))
        kind = draw.random() if steps < 500 else 1.0
        needed = [s.key for s in schedule.stage(key).inputs.values()]
        if kind < 0.04:
            failed |= schedule.fail(key, f"failed: {key}")
        elif kind < 0.2 and needed:
            failed |= schedule.lose(draw.choice(needed))
            schedule.give_back(key)
        elif schedule.awaited(key):
            schedule.finish(key)
            done.add(key)
    ended = {c.key for c in cells}
    assert ended == (done & ended) | failed.keys()
    assert not (done & failed.keys())
    assert sum(schedule.counts.values()) == len(topological([c.stage for c in cells]))
