"""All tasks by their names on the command line."""

from __future__ import annotations

from benchmarks.method.tasks.debian import DEBIAN
from benchmarks.method.tasks.debtags import DEBTAGS
from benchmarks.method.tasks.manuals import MANUALS
from benchmarks.method.tasks.tweets import TWEETS

TASKS = {task.name: task for task in (TWEETS, DEBIAN, DEBTAGS, MANUALS)}
