"""Long jobs as rows: who runs, how far, how it ended. The database itself sees to it that one of a kind runs."""

import json
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import exc, insert, select, update

from multimoe.errors import Conflict, NotFound
from multimoe.feedback.database import Database
from multimoe.feedback.records import Job
from multimoe.feedback.rows import job_of
from multimoe.feedback.tables import jobs

FRESH = timedelta(minutes=5)  # without a sign of life for longer, a job's process is taken for dead


class JobLog:
    """The jobs half of the log. A job that another one replaced learns so at its next `update_job`."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self.database = database
        self.now = now

    def start_job(self, kind: str) -> Job:
        """Raises Conflict (`job_running`) while another of this kind runs and gave a sign of life in 5 minutes."""
        now = self.now()
        job = Job(
            id=f"job-{secrets.token_hex(12)}",
            kind=kind,
            status="running",
            progress=0.0,
            message="",
            result=None,
            error=None,
            created=now,
            updated=now,
        )
        dead = (jobs.c.kind == kind) & (jobs.c.status == "running") & (jobs.c.updated < now - FRESH)
        try:
            with self.database.writing() as connection:
                connection.execute(update(jobs).where(dead).values(status="failed", error=_silence(now - FRESH)))
                connection.execute(insert(jobs).values(job.model_dump()))
        except exc.IntegrityError as error:
            raise Conflict(f"a {kind} job is running already; wait until it has ended", code="job_running") from error
        return job

    def update_job(self, id: str, progress: float, message: str = "") -> None:
        """A sign of life. Call it at least every few minutes. Raises Conflict when the job is no longer ours to run."""
        self._change(id, progress=min(max(progress, 0.0), 1.0), message=message)

    def finish_job(
        self,
        id: str,
        status: Literal["done", "failed"],
        result: dict[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        """Raises Conflict when another process took the job for dead meanwhile: its result must not count."""
        progress = {"progress": 1.0} if status == "done" else {}
        self._change(id, status=status, result=result and json.dumps(result), error=error, **progress)

    def job(self, id: str) -> Job:
        """As it stands; a running one without a sign of life for 5 minutes reads as failed. Raises NotFound."""
        with self.database.reading() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == id)).mappings().first()
        if row is None:
            raise NotFound(f"no job {id!r}", "id", "job_not_found")
        return self._as_seen(job_of(row))

    def jobs(self, limit: int = 20) -> tuple[Job, ...]:
        """Newest first."""
        query = select(jobs).order_by(jobs.c.created.desc(), jobs.c.id.desc()).limit(limit)
        with self.database.reading() as connection:
            return tuple(self._as_seen(job_of(row)) for row in connection.execute(query).mappings())

    def _change(self, id: str, **values: Any) -> None:
        ours = (jobs.c.id == id) & (jobs.c.status == "running")
        with self.database.writing() as connection:
            changed = connection.execute(update(jobs).where(ours).values(updated=self.now(), **values)).rowcount
        if not changed:
            found = self.job(id)
            raise Conflict(f"job {id!r} has ended already: {found.error or found.status}", code="job_not_running")

    def _as_seen(self, job: Job) -> Job:
        if job.status == "running" and job.updated < self.now() - FRESH:
            return job.model_copy(update={"status": "failed", "error": _silence(job.updated)})
        return job


def _silence(since: datetime) -> str:
    return f"no sign of life since {since:%Y-%m-%d %H:%M:%S} UTC; its process has probably died"
