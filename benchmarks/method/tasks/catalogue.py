"""All tasks by their names on the command line."""

from __future__ import annotations

from benchmarks.method.tasks.tweets import TWEETS

TASKS = {task.name: task for task in (TWEETS,)}
