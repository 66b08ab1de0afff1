"""The feedback log, every fact on SQLite and on PostgreSQL; then what only SQLite must prove."""

import csv
import json
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import postgres as own
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from pydantic import ValidationError
from sqlalchemy import text

from multimoe.decision import Choice, Considered, Decision
from multimoe.embedding import CONCEPT, Embedding, Vector
from multimoe.errors import BadConfig, BadInput, Conflict, NotFound, TooLarge, Unavailable
from multimoe.feedback import FeedbackLog, Interaction, Outcome, Rating
from multimoe.feedback.database import VERSION_TABLE
from multimoe.feedback.tables import metadata
from multimoe.outputs import Usage

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that stands until it is told to move."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture(scope="module")
def server() -> Iterator[own.Postgres]:
    with own.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        server: own.Postgres = request.getfixturevalue("server")
        return server.fresh()
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(url: str, clock: Clock) -> Iterator[FeedbackLog]:
    with FeedbackLog.open(url, now=clock) as log:
        yield log


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[FeedbackLog]:
    with FeedbackLog.open(f"sqlite:///{tmp_path}/store.db", timeout_s=0.5) as log:
        yield log


def decision(*experts: str) -> Decision:
    return Decision(
        chosen=tuple(Choice(expert=e, probability=0.6, quality=0.8, weight=1 / len(experts)) for e in experts),
        considered=(
            *(Considered(expert=e, probability=0.6, quality=0.8) for e in experts),
            Considered(expert="echo", probability=0.1, quality=0.2),
        ),
        ineligible={"audio": "reads no text"},
        propensity=0.25,
        explored=True,
        strategy="softmax",
        seed=7,
        gate_version=3,
        modalities=("text",),
    )


def embedding() -> bytes:
    vector = np.zeros(CONCEPT, np.float32)
    vector[2] = 1
    return Embedding({"text": Vector(vector, vector)}, {"text": "minilm"}).to_bytes()


def answered(
    id: str, minute: int = 0, *, experts: tuple[str, ...] = ("vision", "small"), **fields: object
) -> Interaction:
    outcomes = tuple(
        Outcome(expert=e, role="answer", weight=0.5, status="ok", latency_ms=40, cost=0.01, text=f"{e} says yes")
        for e in experts
    )
    skipped = Outcome(expert="late", role="skipped", weight=0, status="skipped")
    values = {
        "id": id,
        "created": START + timedelta(minutes=minute),
        "model": "multimoe",
        "user": "ann",
        "decision": decision(*experts),
        "embedding": embedding(),
        "question": "Is it?",
        "answer": f"Yes, says {id}",
        "outcomes": (*outcomes, skipped),
        "usage": Usage(prompt_tokens=3, completion_tokens=2),
        "timing_ms": {"embed": 1.5},
        "request_id": "req-1",
    }
    return Interaction.model_validate(values | fields)


def test_an_interaction_comes_back_as_it_was_recorded(log: FeedbackLog) -> None:
    whole = answered("a")
    bare = Interaction(id="b", created=START, model="multimoe/vision", status="error")
    log.record(whole)
    log.record(bare)
    assert log.interaction("a") == whole
    assert log.interaction("b") == bare


def test_recording_twice_keeps_the_first(log: FeedbackLog) -> None:
    log.record(answered("a"))
    log.record(answered("a", model="other"))
    assert [i.model for i in log.interactions()] == ["multimoe"]


def test_recording_at_once_from_many_threads_keeps_one(log: FeedbackLog) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(log.record, [answered("a")] * 8))
    assert len(log.interactions()) == 1


def test_text_no_database_can_hold_does_no_harm(log: FeedbackLog) -> None:
    log.record(answered("a", question="nul \0 half \ud83d whole \ud83d\ude00"))
    log.rate(Rating(completion_id="a", score=1, comment="\0", user="\udc00"))
    assert log.interaction("a").question == "nul \ufffd half \ufffd whole \U0001f600"
    assert log.ratings("a")[0].comment == "\ufffd"
    for probe in (lambda: log.interaction("\0"), lambda: log.interactions(before="\ud800"), lambda: log.job("\0")):
        with pytest.raises(NotFound):
            probe()


def test_an_unknown_completion_is_not_found(log: FeedbackLog) -> None:
    for ask in (
        lambda: log.interaction("x"),
        lambda: log.interactions(before="x"),
        lambda: log.rate(Rating(completion_id="x", score=1)),
    ):
        with pytest.raises(NotFound, match="'x'") as caught:
            ask()
        assert caught.value.code == "completion_not_found"


def test_interactions_are_newest_first_and_page_without_gap_or_repeat(log: FeedbackLog) -> None:
    for number in range(7):
        log.record(answered(f"i{number}", minute=number // 3))  # three at a time share a moment
    seen: list[str] = []
    while page := log.interactions(limit=2, before=seen[-1] if seen else None):
        seen += [interaction.id for interaction in page]
    assert seen == [f"i{number}" for number in reversed(range(7))]


def test_interactions_are_found_by_expert_and_time(log: FeedbackLog) -> None:
    log.record(answered("old", 0))
    log.record(answered("new", 5))
    log.record(answered("other", 6, experts=("echo",)))
    found = log.interactions(expert="vision", since=START + timedelta(minutes=5))
    assert [interaction.id for interaction in found] == ["new"]


def test_a_second_rating_of_the_same_key_replaces_the_first(log: FeedbackLog) -> None:
    log.record(answered("a"))
    assert log.rate(Rating(completion_id="a", score=1, user="ann", comment="fine"))
    assert not log.rate(Rating(completion_id="a", score=0, user="ann"))
    assert [(r.score, r.comment) for r in log.ratings("a")] == [(0, None)]


def test_ratings_of_another_key_stand_beside_each_other(log: FeedbackLog) -> None:
    log.record(answered("a"))
    log.record(answered("b"))
    keys: list[dict[str, object]] = [
        {},
        {"user": "ann"},
        {"name": "eval"},
        {"target": "expert", "expert": "vision"},
        {"target": "expert", "expert": "small"},
        {"target": "comparison", "preferred": "vision", "rejected": ("small",), "score": None},
        {"completion_id": "b"},
    ]
    ratings = [Rating.model_validate({"completion_id": "a", "score": 1, "created": START} | key) for key in keys]
    assert all(log.rate(rating) for rating in ratings)
    assert log.rating_count() == len(keys)
    assert set(log.ratings("a")) == set(ratings[:-1])


def test_every_earlier_value_stays_in_the_history(log: FeedbackLog) -> None:
    log.record(answered("a"))
    for score in (1, 0):
        log.rate(Rating(completion_id="a", score=score))
    log.withdraw("a")
    with log.database.reading() as connection:
        rows = connection.execute(text("SELECT action, score FROM rating_history ORDER BY id")).all()
    assert [tuple(row) for row in rows] == [("rated", 1), ("rated", 0), ("withdrawn", 0)]


def test_withdrawing_says_whether_there_was_something(log: FeedbackLog) -> None:
    log.record(answered("a"))
    log.rate(Rating(completion_id="a", target="expert", expert="vision", score=1, user="ann"))
    assert not log.withdraw("a")
    assert log.withdraw("a", "expert", "vision", user="ann")
    assert not log.withdraw("a", "expert", "vision", user="ann")
    assert log.ratings("a") == ()


def test_only_experts_that_took_part_can_be_rated(log: FeedbackLog) -> None:
    log.record(answered("a"))
    for name in ("late", "nobody"):
        with pytest.raises(BadInput, match=f"'{name}' took no part.* small, vision") as caught:
            log.rate(Rating(completion_id="a", target="expert", expert=name, score=1))
        assert caught.value.param == "expert"
    assert log.rating_count() == 0


def test_a_comparison_names_experts_that_took_part_or_other_answers(log: FeedbackLog) -> None:
    log.record(answered("a"))
    log.record(answered("b"))
    assert log.rate(Rating(completion_id="a", target="comparison", preferred="vision", rejected=("small", "b")))
    with pytest.raises(BadInput, match="'nobody' took no part") as caught:
        log.rate(Rating(completion_id="a", target="comparison", preferred="a", rejected=("nobody",)))
    assert caught.value.param == "rejected"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "score"),
        ({"score": 1.2}, "score"),
        ({"score": float("nan")}, "score"),
        ({"score": 1, "target": "expert"}, "expert"),
        ({"score": 1, "expert": "vision"}, "target"),
        ({"score": 1, "preferred": "vision"}, "target"),
        ({"target": "comparison", "preferred": "vision"}, "preferred"),
        ({"target": "comparison", "rejected": ("vision",)}, "preferred"),
        ({"target": "comparison", "preferred": "vision", "rejected": ("vision",)}, "rejected"),
        ({"score": 1, "user": "u" * 129}, "user"),
        ({"score": 1, "name": ""}, "name"),
    ],
)
def test_a_rating_that_makes_no_sense_is_refused(fields: dict[str, object], param: str) -> None:
    with pytest.raises(BadInput) as caught:
        Rating.model_validate({"completion_id": "a"} | fields)
    assert caught.value.param == param


def test_a_comment_over_ten_thousand_characters_is_too_large() -> None:
    assert Rating(completion_id="a", score=1, comment="x" * 10_000)
    with pytest.raises(TooLarge, match="10,000"):
        Rating(completion_id="a", score=1, comment="x" * 10_001)


def test_a_moment_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        Interaction(id="a", created=datetime(2026, 1, 1), model="multimoe")


def test_rated_gives_the_rated_ones_in_order_of_time_across_chunks(
    log: FeedbackLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multimoe.feedback.log.CHUNK", 2)
    for number in (4, 0, 3, 1, 2, 5):
        log.record(answered(f"i{number}", minute=number // 2))
        if number != 3:
            log.rate(Rating(completion_id=f"i{number}", score=1, user="late", created=START + timedelta(days=1)))
            log.rate(Rating(completion_id=f"i{number}", score=0, user="early", created=START))
    rated = list(log.rated())
    assert [one.interaction.id for one in rated] == ["i0", "i1", "i2", "i4", "i5"]
    assert [rating.user for rating in rated[0].ratings] == ["early", "late"]
    assert rated[0].interaction == log.interaction("i0")
    middle = log.rated(since=START + timedelta(minutes=1), until=START + timedelta(minutes=2))
    assert [one.interaction.id for one in middle] == ["i2"]


def test_a_rating_may_come_while_the_rated_are_read(log: FeedbackLog) -> None:
    for number in range(3):
        log.record(answered(f"i{number}", minute=number))
        log.rate(Rating(completion_id=f"i{number}", score=1))
    for one in log.rated():
        assert not log.rate(Rating(completion_id=one.interaction.id, score=0))


def test_rating_count_counts_those_given_since(log: FeedbackLog) -> None:
    log.record(answered("a"))
    for day in range(3):
        log.rate(Rating(completion_id="a", score=1, user=str(day), created=START + timedelta(days=day)))
    assert (log.rating_count(), log.rating_count(since=START + timedelta(days=1))) == (3, 2)


def test_concurrent_ratings_of_one_key_leave_one_row(log: FeedbackLog) -> None:
    log.record(answered("a"))
    with ThreadPoolExecutor(8) as pool:
        ratings = [Rating(completion_id="a", score=number % 2, user="ann") for number in range(40)]
        created = list(pool.map(log.rate, ratings))
    assert created.count(True) == 1
    assert log.rating_count() == 1
    with log.database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM rating_history")).scalar_one() == 40


def test_stats_add_up(log: FeedbackLog) -> None:
    assert log.stats().positive is None
    failed = Outcome(expert="vision", role="answer", weight=0.1, status="timeout", latency_ms=9000)
    log.record(answered("a"))
    log.record(answered("b", outcomes=(failed,)))
    log.rate(Rating(completion_id="a", score=1))
    log.rate(Rating(completion_id="a", label="too_slow", name="why"))
    log.rate(Rating(completion_id="a", target="expert", expert="vision", score=0.25))
    stats = log.stats()
    assert (stats.interactions, stats.ratings, stats.positive) == (2, 3, 0.5)
    assert set(stats.experts) == {"vision", "small"}
    vision = stats.experts["vision"]
    assert (vision.asked, vision.answered, vision.failed) == (2, 1, 1)
    assert vision.mean_weight == pytest.approx(0.3)
    assert vision.mean_latency_ms == pytest.approx(40)
    assert (vision.ratings, vision.mean_score) == (1, 0.25)
    assert stats.experts["small"].mean_score is None


def test_the_migrations_make_the_tables_the_code_reads(log: FeedbackLog) -> None:
    with log.database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_a_newer_schema_is_refused(log: FeedbackLog, url: str) -> None:
    with log.database.writing() as connection:
        connection.execute(text("UPDATE multimoe_version SET version_num = 'r9999'"))
    with pytest.raises(BadConfig, match=r"newer multimoe.*'r9999'.*upgrade multimoe"):
        FeedbackLog.open(url)


def test_a_second_opening_finds_what_the_first_left(log: FeedbackLog, url: str) -> None:
    log.record(answered("a"))
    with FeedbackLog.open(url) as again:
        assert again.interaction("a").id == "a"


def test_two_processes_may_open_a_fresh_store_at_once(url: str) -> None:
    program = "import sys; from multimoe.feedback import FeedbackLog; FeedbackLog.open(sys.argv[1]).close()"
    openers = [subprocess.Popen([sys.executable, "-c", program, url], stderr=subprocess.PIPE) for _ in range(2)]
    errors = [opener.communicate(timeout=60)[1].decode() for opener in openers]
    assert [opener.returncode for opener in openers] == [0, 0], errors
    with FeedbackLog.open(url) as log:
        log.record(answered("a"))


@pytest.mark.parametrize("url", ["mysql://host/db", "nonsense", "sqlite://", "sqlite:///:memory:"])
def test_a_url_that_cannot_keep_ratings_is_refused(url: str) -> None:
    with pytest.raises(BadConfig, match="allowed are sqlite:///FILE"):
        FeedbackLog.open(url)


# jobs


def test_a_job_tells_its_progress_and_its_end(log: FeedbackLog, clock: Clock) -> None:
    job = log.start_job("train")
    clock.time += timedelta(seconds=1)
    log.update_job(job.id, 0.5, "epoch 2 of 4")
    seen = log.job(job.id)
    assert (seen.status, seen.progress, seen.message, seen.updated) == ("running", 0.5, "epoch 2 of 4", clock.time)
    log.finish_job(job.id, "done", {"version": 8})
    seen = log.job(job.id)
    assert (seen.status, seen.progress, seen.result) == ("done", 1.0, {"version": 8})


def test_one_job_of_a_kind_runs(log: FeedbackLog) -> None:
    job = log.start_job("train")
    with pytest.raises(Conflict) as caught:
        log.start_job("train")
    assert caught.value.code == "job_running"
    log.start_job("export")
    log.finish_job(job.id, "failed", error="no data")
    log.start_job("train")
    assert len(log.jobs()) == 3


def test_many_who_start_at_once_get_one_job(log: FeedbackLog) -> None:
    def start(_: int) -> bool:
        try:
            return bool(log.start_job("train"))
        except Conflict:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(start, range(8))).count(True) == 1


def test_a_silent_job_is_replaced_and_cannot_come_back(log: FeedbackLog, clock: Clock) -> None:
    paused = log.start_job("train")
    clock.time += timedelta(minutes=6)
    assert log.job(paused.id).status == "failed"
    heir = log.start_job("train")
    with pytest.raises(Conflict, match="no sign of life"):
        log.update_job(paused.id, 0.9)
    with pytest.raises(Conflict, match="no sign of life"):
        log.finish_job(paused.id, "done", {"version": 9})
    assert log.job(heir.id).status == "running"
    assert log.job(paused.id).result is None


def test_a_job_that_was_only_slow_goes_on(log: FeedbackLog, clock: Clock) -> None:
    slow = log.start_job("train")
    clock.time += timedelta(minutes=6)
    log.update_job(slow.id, 0.9)
    assert log.job(slow.id).status == "running"


def test_an_unknown_job_is_not_found(log: FeedbackLog) -> None:
    for ask in (lambda: log.job("x"), lambda: log.update_job("x", 0.1), lambda: log.finish_job("x", "done")):
        with pytest.raises(NotFound, match="'x'"):
            ask()


# export


@pytest.fixture
def told(lite: FeedbackLog) -> FeedbackLog:
    """A liked answer, a disliked expert, a comparison, a pinned answer, and one whose texts were not kept."""
    lite.record(answered("a", 0))
    lite.record(answered("b", 1))
    lite.record(answered("pinned", 2, decision=None, embedding=None, experts=("vision",)))
    lite.record(answered("secret", 3, question=None, answer=None, outcomes=()))
    lite.rate(Rating(completion_id="a", score=1, user="ann", comment="=cmd()|calc"))
    lite.rate(Rating(completion_id="a", target="expert", expert="small", score=0))
    lite.rate(Rating(completion_id="b", target="comparison", preferred="vision", rejected=("small", "a")))
    for id in ("pinned", "secret"):
        lite.rate(Rating(completion_id=id, score=0.5 if id == "pinned" else 1))
    return lite


def test_jsonl_is_exact(told: FeedbackLog) -> None:
    rows = [json.loads(line) for line in told.export("jsonl")]
    assert len(rows) == told.rating_count()
    assert rows[0]["comment"] == "=cmd()|calc"
    assert rows[0]["interaction"]["decision"]["propensity"] == 0.25
    fields = {key: value for key, value in rows[0].items() if key != "interaction"}
    assert Rating.model_validate_json(json.dumps(fields)) == told.ratings("a")[0]


def test_csv_has_a_header_and_no_live_formulas(told: FeedbackLog) -> None:
    rows = list(csv.DictReader(told.export("csv")))
    assert len(rows) == told.rating_count()
    assert rows[0]["comment"] == "'=cmd()|calc"
    assert (rows[0]["experts"], rows[0]["propensity"], rows[0]["gate_version"]) == ("vision small", "0.25", "3")


def test_kto_labels_texts_that_were_liked_or_not(told: FeedbackLog) -> None:
    rows = [json.loads(line) for line in told.export("trl-kto")]
    assert [(row["completion"][0]["content"], row["label"]) for row in rows] == [
        ("Yes, says a", True),
        ("small says yes", False),
    ]
    assert rows[0]["prompt"] == [{"role": "user", "content": "Is it?"}]


def test_dpo_pairs_the_preferred_with_each_rejected(told: FeedbackLog) -> None:
    rows = [json.loads(line) for line in told.export("trl-dpo")]
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows] == [
        ("vision says yes", "small says yes"),
        ("vision says yes", "Yes, says a"),
    ]


def test_vw_examples_label_the_expert_drawn_first(told: FeedbackLog) -> None:
    lines = list(told.export("vw"))
    first = lines[: lines.index("") + 1]
    assert first[0].startswith("shared |text 0:0 1:0 2:1 3:0 ")
    assert first[1:] == ["0:0:0.6 |a expert=vision", "|a expert=small", "|a expert=echo", ""]
    assert lines.count("") == 2  # the pinned one and the comparison carry no cost of a choice


def test_an_unknown_format_is_refused(lite: FeedbackLog) -> None:
    with pytest.raises(BadInput, match=r"'xml'.*jsonl, csv, trl-kto, trl-dpo, vw"):
        lite.export("xml")  # type: ignore[arg-type]


# trouble


def test_a_store_that_is_gone_is_unavailable_and_comes_back(url: str, request: pytest.FixtureRequest) -> None:
    if not url.startswith("postgresql"):
        pytest.skip("a file cannot be stopped")
    server: own.Postgres = request.getfixturevalue("server")
    with FeedbackLog.open(url) as log:
        log.record(answered("a"))
        server.stop()
        try:
            with pytest.raises(Unavailable, match="does not answer") as caught:
                log.rate(Rating(completion_id="a", score=1))
            with pytest.raises(Unavailable):
                FeedbackLog.open(url)
        finally:
            server.start()
        assert caught.value.code == "store_unavailable"
        assert log.rate(Rating(completion_id="a", score=1))


def test_postgres_that_may_lose_commits_is_named_in_a_warning(
    server: own.Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    FeedbackLog.open(server.fresh()).close()
    assert caplog.text == ""
    server.stop()
    server.start("full_page_writes=off")
    try:
        FeedbackLog.open(server.fresh()).close()
    finally:
        server.stop()
        server.start()
    assert "full_page_writes=off" in caplog.text


def test_a_commit_waits_for_the_disk_even_where_postgres_is_set_not_to(server: own.Postgres) -> None:
    waits = text("SHOW synchronous_commit")
    for set_to, wanted in (("off", "on"), ("on", "on"), ("remote_apply", "remote_apply")):
        url = f"{server.fresh()}?options=-csynchronous_commit%3D{set_to}"
        with FeedbackLog.open(url) as log, log.database.writing() as connection:
            assert connection.execute(waits).scalar_one() == wanted


def test_of_all_that_share_a_store_one_is_alone(log: FeedbackLog, url: str) -> None:
    if not url.startswith("postgresql"):
        pytest.skip("a file lock does it")
    order: list[str] = []

    def second() -> None:
        with FeedbackLog.open(url) as other, other.database.alone("x", 30):
            order.append("second")

    with log.database.alone("x", 5):
        waiting = threading.Thread(target=second)
        waiting.start()
        with pytest.raises(Unavailable, match="locked by another"), log.database.alone("x", 0.1):
            pass
        with log.database.alone("y", 5):
            order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_sqlite_is_set_up_to_survive_a_power_cut(lite: FeedbackLog) -> None:
    with lite.database.reading() as connection:
        read = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")}
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 500
    assert read["journal_mode"] == "delete"
    assert read["synchronous"] == 3  # EXTRA


def test_a_store_left_in_wal_mode_is_taken_out_of_it(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    FeedbackLog.open(f"sqlite:///{path}").close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    connection.close()
    with FeedbackLog.open(f"sqlite:///{path}") as log, log.database.reading() as reading:
        assert reading.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"


def test_a_store_that_somebody_holds_in_wal_mode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    FeedbackLog.open(f"sqlite:///{path}").close()
    holder = sqlite3.connect(path)
    holder.execute("PRAGMA journal_mode=WAL").close()
    holder.execute("SELECT count(*) FROM ratings").fetchone()
    with pytest.raises(Unavailable, match=r"locked|WAL mode"):
        FeedbackLog.open(f"sqlite:///{path}", timeout_s=0.1)
    holder.close()
    FeedbackLog.open(f"sqlite:///{path}").close()


def test_a_file_deleted_under_a_running_product_is_not_replaced_by_an_empty_one(
    lite: FeedbackLog, tmp_path: Path
) -> None:
    lite.record(answered("a"))
    (tmp_path / "store.db").rename(tmp_path / "away.db")
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"moved or deleted|cannot be opened"):
            lite.rate(Rating(completion_id="a", score=1))
    assert not (tmp_path / "store.db").exists()
    (tmp_path / "away.db").rename(tmp_path / "store.db")
    assert lite.rate(Rating(completion_id="a", score=1))


def test_a_store_that_is_away_at_first_is_opened_by_whoever_uses_it_first(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    url = f"sqlite:///{tmp_path}/home/store.db"
    with FeedbackLog.open(url, at_once=False) as log:
        with pytest.raises(Unavailable, match="cannot be created"):
            log.record(answered("a"))
        (tmp_path / "home").unlink()
        log.record(answered("a"))
        assert log.interaction("a").id == "a"


def test_a_schema_that_another_version_changed_is_unavailable_and_no_bug(log: FeedbackLog) -> None:
    log.record(answered("a"))
    with log.database.writing() as connection:
        connection.execute(text("ALTER TABLE ratings RENAME COLUMN comment TO remark"))
    with pytest.raises(Unavailable, match="upgraded elsewhere"):
        log.rate(Rating(completion_id="a", score=1))


def test_the_file_is_made_with_its_folder_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "store.db"
    FeedbackLog.open(f"sqlite:///{path}").close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[[str], sqlite3.Connection]]:
    """Locks the store as another process would."""
    others: list[sqlite3.Connection] = []

    def lock(how: str) -> sqlite3.Connection:
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None, check_same_thread=False)
        others.append(other)
        other.execute(f"BEGIN {how}")
        return other

    yield lock
    for other in others:
        other.close()


def test_a_locked_store_is_unavailable_in_time_and_recovers(
    lite: FeedbackLog, hold: Callable[[str], sqlite3.Connection]
) -> None:
    lite.record(answered("a"))
    other = hold("EXCLUSIVE")
    for call in (lambda: lite.rate(Rating(completion_id="a", score=1)), lambda: lite.interaction("a")):
        began = time.monotonic()
        with pytest.raises(Unavailable, match="locked by another writer; try again"):
            call()
        assert 0.4 < time.monotonic() - began < 2
    other.rollback()
    assert lite.rate(Rating(completion_id="a", score=1))


def test_a_store_locked_for_a_moment_is_waited_for(
    lite: FeedbackLog, hold: Callable[[str], sqlite3.Connection]
) -> None:
    lite.record(answered("a"))
    other = hold("IMMEDIATE")
    release = threading.Timer(0.2, other.rollback)
    release.start()
    assert lite.rate(Rating(completion_id="a", score=1))
    release.join()


def test_a_full_disk_is_unavailable_and_loses_nothing(lite: FeedbackLog) -> None:
    lite.record(answered("a"))
    with lite.database.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")  # SQLITE_FULL, as on a disk without space
    with pytest.raises(Unavailable, match="full; free some space"):
        lite.record(answered("b", answer="x" * 100_000))
    assert [interaction.id for interaction in lite.interactions()] == ["a"]


def test_a_read_only_store_can_be_read(tmp_path: Path, lite: FeedbackLog) -> None:
    lite.record(answered("a"))
    with FeedbackLog.open(f"sqlite:///file:{tmp_path}/store.db?mode=ro&uri=true") as log:
        assert log.interaction("a").id == "a"
        with pytest.raises(Unavailable, match="read-only; make its file"):
            log.rate(Rating(completion_id="a", score=1))


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_text("certainly not a database " * 100)
    with pytest.raises(Unavailable, match="no SQLite database"):
        FeedbackLog.open(f"sqlite:///{tmp_path}/store.db")


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"cannot be created.*folder that can be written"):
        FeedbackLog.open(f"sqlite:///{tmp_path}/file/store.db")
