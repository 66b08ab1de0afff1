"""T26: what somebody can do to the store and to learning by rating too much, too often, or nonsense."""

from datetime import timedelta

import pytest
from api_world import World, said
from sqlalchemy import text
from worlds import City, Person, Rows, citizens

from gateway.access.pace import MOST_KNOWN, Pace
from multimoe.examples import label_votes, largest_share, read
from multimoe.feedback import FeedbackLog, Rated, Rating
from multimoe.feedback.log import MOST_RATINGS
from multimoe.screen import screen

FEEDBACK = "/v1/feedback"


async def answered(client) -> str:
    return (await client.post("/v1/chat/completions", json=said("hi"))).json()["id"]


@pytest.mark.parametrize(
    ("score", "status"),
    [
        ("NaN", 400),
        ("Infinity", 400),
        ("-Infinity", 400),
        ("1e309", 400),
        ("-0.01", 400),
        ("1.01", 400),
        ("1e-300", 201),
    ],
)
async def test_a_score_that_is_none_is_refused_whatever_json_calls_it(world, score, status):
    async with world.client() as client:
        body = f'{{"completion_id": "{await answered(client)}", "score": {score}}}'
        response = await client.post(FEEDBACK, content=body, headers={"content-type": "application/json"})

    assert response.status_code == status
    assert status == 201 or response.json()["error"]["message"]


async def test_a_comment_of_a_megabyte_is_refused_and_nothing_of_it_kept(world):
    async with world.client() as client:
        rating = {"completion_id": await answered(client), "score": 1, "comment": "x" * 2**20}
        response = await client.post(FEEDBACK, json=rating)

    assert response.status_code == 413
    assert response.json()["error"]["param"] == "comment"
    assert world.log.stats().ratings == 0


async def test_a_rating_of_no_answer_is_refused(world):
    async with world.client() as client:
        response = await client.post(FEEDBACK, json={"completion_id": "chatcmpl-forged", "score": 1})

    assert response.status_code == 404


async def test_replays_are_one_rating(tmp_path):
    world = World(tmp_path / "home", limits={"ratings_per_minute": 200})
    async with world.client() as client:
        rating = {"completion_id": await answered(client), "score": 1, "user": "ann"}
        statuses = {(await client.post(FEEDBACK, json=rating)).status_code for _ in range(150)}

    assert statuses == {201, 200}
    with world.log.database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM ratings")).scalar_one() == 1
    world.log.close()


async def test_who_rates_too_fast_is_told_to_wait_and_others_are_not_kept_waiting(tmp_path):
    world = World(tmp_path / "home", limits={"ratings_per_minute": 5})
    async with world.client() as client:
        id = await answered(client)
        replies = [await client.post(FEEDBACK, json={"completion_id": id, "score": 1, "user": "bot"}) for _ in range(8)]
        other = await client.post(FEEDBACK, json={"completion_id": id, "score": 0, "user": "ann"})

    assert [reply.status_code for reply in replies] == [201, 200, 200, 200, 200, 429, 429, 429]
    error = replies[-1].json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "rate_limit_exceeded", "user")
    assert "'user bot' gives more than 5 ratings a minute; wait" in error["message"]
    assert int(replies[-1].headers["retry-after"]) > 0
    assert other.status_code == 201
    world.log.close()


async def test_other_names_and_taking_back_do_not_help_who_rates_too_fast(tmp_path):
    world = World(tmp_path / "home", limits={"ratings_per_minute": 2})
    async with world.client() as client:
        id = await answered(client)
        for i in range(10):
            await client.post(FEEDBACK, json={"completion_id": id, "score": 1, "user": f"bot{i}"})
            await client.delete(FEEDBACK, params={"completion_id": id, "user": f"bot{i}"})
        late = await client.post(FEEDBACK, json={"completion_id": id, "score": 1, "user": "bot99"})
        unnamed = await client.post(FEEDBACK, json={"completion_id": id, "score": 1})

    assert (late.status_code, unnamed.status_code) == (429, 429)
    world.log.close()


def test_a_pace_is_kept_over_time_and_only_those_last_seen_are_known():
    clock = [0.0]
    pace = Pace(lambda: clock[0])

    assert [pace.wait("ann", 60) > 0 for _ in range(61)] == [False] * 60 + [True]
    assert 0 < pace.wait("ann", 60) <= 1
    clock[0] = 1.0
    assert [pace.wait("ann", 60) > 0 for _ in range(2)] == [False, True]
    for i in range(MOST_KNOWN + 5):
        pace.wait(f"bot{i}", 60)
    assert len(pace.buckets) == MOST_KNOWN


def test_one_user_has_so_many_ratings_of_one_answer_and_no_more(world):
    (row,) = City(0).live(citizens(1), 1, seed=0)
    world.log.record(row.interaction)
    for i in range(MOST_RATINGS):
        world.log.rate(Rating(completion_id=row.interaction.id, score=1, user="bot", name=f"n{i}"))

    with pytest.raises(Exception, match="has rated this answer 64 times"):
        world.log.rate(Rating(completion_id=row.interaction.id, score=1, user="bot", name="one more"))
    assert not world.log.rate(Rating(completion_id=row.interaction.id, score=0, user="bot", name="n0"))
    assert world.log.rate(Rating(completion_id=row.interaction.id, score=1, user="ann"))


@pytest.fixture(scope="module")
def flooded() -> list[Rated]:
    """Three hundred people, and one who rates every answer of theirs as bad, many times over."""
    rows = City(0).live([Person(f"u{i}") for i in range(300)], 900, seed=0)
    bad = [Rating(completion_id="c", score=0.0, user="flood", name=f"n{k}") for k in range(11)]
    return [
        row.model_copy(
            update={
                "ratings": (*row.ratings, *(r.model_copy(update={"completion_id": row.interaction.id}) for r in bad))
            }
        )
        for row in rows
    ]


def test_ten_thousand_ratings_of_one_user_weigh_a_hundredth(flooded):
    labels = [label for example in read(flooded) for label in example.labels]
    raters = [label.rater for label in labels]

    assert raters.count("flood") == 9900
    assert largest_share(raters, label_votes(labels)) <= 0.0101


def test_ten_thousand_ratings_of_one_user_do_not_move_what_answers_were_worth(flooded):
    alone = read([row.model_copy(update={"ratings": row.ratings[:1]}) for row in flooded])
    examples = read(flooded)

    assert [e.rater for e in examples] == [e.rater for e in alone]
    assert max(abs((a.reward or 0) - (b.reward or 0)) for a, b in zip(examples, alone, strict=True)) < 0.02


def test_nor_does_that_user_weigh_more_after_the_screen(flooded):
    labels = [label for example in screen(read(flooded)).examples for label in example.labels]

    assert largest_share([label.rater for label in labels], label_votes(labels)) <= 0.011


def test_a_rating_that_came_late_counts_at_the_time_of_its_answer(tmp_path):
    rows = City(0).live(citizens(20), 40, seed=0)
    with FeedbackLog.open(f"sqlite:///{tmp_path}/log.db") as log:
        for row in rows:
            log.record(row.interaction)
        for row in rows[10:]:
            log.rate(row.ratings[0])
        before = read(log.rated())
        late = rows[0].ratings[0].model_copy(update={"created": rows[-1].interaction.created + timedelta(days=2)})
        log.rate(late)
        after = read(log.rated())

    assert [example.id for example in before] == [row.interaction.id for row in rows[10:]]
    assert after[0].id == rows[0].interaction.id
    assert len(after) == len(before) + 1
    assert [e.id for e in read(Rows(rows).rated())][:1] == [after[0].id]
