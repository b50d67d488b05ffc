"""Shards of an input, and the order in which workers get them."""

import json

import pytest

from spark_jax.errors import SparkError
from spark_jax.jobs.shards import MAX_FAILURES, Schedule, read_input, share


def write(path, ids, end="\n"):
    path.write_text("\n".join("" if id is None else json.dumps({"id": id, "text": "x"}) for id in ids) + end)
    return path


@pytest.mark.parametrize("size", [1, 3, 4, 100])
@pytest.mark.parametrize("end", ["\n", ""])
def test_shards_hold_every_line_once(tmp_path, size, end):
    path = write(tmp_path / "jobs", ["a", "b", None, "é" * 50, "a", "c", "d", "e", "b", "a"], end)
    found = read_input(path, size)
    lines = [line for shard in found.shards for line in shard.read(path)]
    assert [number for number, _ in lines] == list(range(1, 11))
    assert b"".join(line for _, line in lines) == path.read_bytes()
    assert [shard.number for shard in found.shards] == list(range(-(-10 // size)))
    assert sum(shard.jobs for shard in found.shards) == 9
    assert [pair for shard in found.shards for pair in shard.repeated] == [(5, 1), (9, 2), (10, 1)]
    assert read_input(path, size) == found
    path.write_text(path.read_text().replace("d", "f"))
    assert read_input(path, size).sha256 != found.sha256


def test_an_input_without_jobs(tmp_path):
    for content in ("", "\n\n"):
        (tmp_path / "jobs").write_text(content)
        with pytest.raises(SparkError, match="jobs: no job, expected a line such as"):
            read_input(tmp_path / "jobs", 10)


def shards(tmp_path, count):
    return read_input(write(tmp_path / "jobs", range(count)), 1).shards


def test_several_processes_share_all_shards(tmp_path):
    found = shards(tmp_path, 7)
    shares = [share(found, index, 3) for index in range(3)]
    assert sorted(shard.number for part in shares for shard in part) == list(range(7))
    assert [shard.number for shard in shares[1]] == [1, 4]


def test_a_worker_has_some_shards_and_one_that_failed_alone(tmp_path):
    schedule = Schedule(shards(tmp_path, 3), 2)
    first, second = schedule.next(set()), schedule.next({0})
    assert (first.number, second.number) == (0, 1) and schedule.next({0, 1}) is None
    schedule.failed(first, "why", further=True)
    assert schedule.next({1}).number == 2  # what is fresh comes first
    schedule.done(second)
    assert schedule.next({2}) is None  # not beside another
    schedule.failed(schedule_shard(schedule, 2, tmp_path), "why", further=False)
    assert schedule.next(set()).number == 0 and schedule.next({0}) is None
    schedule.done(first)
    assert schedule.next(set()).number == 2
    assert schedule.left
    schedule.done(schedule_shard(schedule, 2, tmp_path))
    assert not schedule.left and not schedule.set_aside


def schedule_shard(schedule, number, tmp_path):
    return shards(tmp_path, 3)[number]


def test_the_third_failure_without_getting_further_is_the_last(tmp_path):
    [shard] = shards(tmp_path, 1)
    schedule = Schedule([shard], 2)
    for further in [True, False, True, True, False]:  # a worker that is taken away costs nothing
        assert schedule.next(set()) == shard
        schedule.failed(shard, "early", further)
        assert not schedule.set_aside
    assert schedule.next(set()) == shard
    schedule.failed(shard, "in the end", False)
    assert schedule.set_aside == {0: "in the end"} and not schedule.left and schedule.next(set()) is None
    assert MAX_FAILURES == 3
