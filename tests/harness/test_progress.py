"""What a reader of a run is shown."""

from __future__ import annotations

import io

from bench.progress import LiveBars, PlainLines


def test_stages_computed_once_more_do_not_exceed_the_total():
    shown = io.StringIO()
    lines = PlainLines(shown)
    lines.plan(stages=2, cells=1, done=0)
    for stage in ("fit", "fit", "score"):  # the first was lost with its machine
        lines.finish(stage, 1.0, "computed")
    counts = [line.split()[0] for line in shown.getvalue().splitlines()[1:]]
    assert counts == ["[1/2]", "[2/2]", "[3/3]"]


def test_the_bar_does_not_exceed_its_total_either():
    bars = LiveBars()  # not entered: nothing is drawn
    bars.plan(stages=1, cells=1, done=0)
    for _ in range(2):
        bars.finish("fit", 1.0, "cached")
    (bar,) = [task for task in bars._bars.tasks if task.id == bars._all]
    assert (bar.completed, bar.total) == (2, 2)
