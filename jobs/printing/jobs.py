"""Print the jobs of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs import terminal

if TYPE_CHECKING:
    from pipelines.workers.job_client import Job


def print_jobs(jobs: Sequence[Job]) -> None:
    """Print the jobs of a cluster, the newest first."""
    if not jobs:
        terminal.say("no jobs; `spin submit` starts one")
        return
    table = terminal.new_table(["job"], ["seconds", "exit status"])
    for name in ("status", "started (UTC)"):
        table.add_column(name, no_wrap=True)
    for job in jobs:
        figures = ("" if value is None else f"{value:.0f}" for value in (job.seconds, job.exit_status))
        table.add_row(job.id, *figures, job.status.lower(), job.started)
    terminal.show(table)
