"""Batches on a Ray cluster whose workers and head are killed, and one with a shard that kills its workers."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers.batch_runs import contents, short_jobs, spoken, start, write

from spark_jax.cli.main import main
from spark_jax.jobs.ray_pool import Cluster, resources

OPTIONS = ["--slots", "8", "--shard-size", "10"]
ON_RAY = [*OPTIONS, "--engine", "ray", "--workers", "2"]


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([{"CPU": 8}, {"CPU": 4}, {"CPU": 0}], {}, (2, {})),
        ([{"CPU": 8, "GPU": 8}, {"CPU": 4, "GPU": 2}, {"CPU": 4}], {}, (10, {"GPU": 1})),
        ([{"CPU": 8, "GPU": 8}, {"CPU": 4, "GPU": 3}], {"gpus": 2}, (5, {"GPU": 2})),
        ([{"CPU": 8}, {"CPU": 99, "TPU": 4}, {"CPU": 99, "TPU": 4}], {}, (2, {"TPU": 4})),
        ([{"CPU": 8, "TPU": 8}], {"tpus": 1}, (8, {"TPU": 1})),
        ([{"CPU": 8, "GPU": 8}], {"gpus": 0, "workers": 3}, (3, {})),
        ([{"CPU": 8}], {"tpus": 4}, (1, {"TPU": 4})),  # of nodes that come later
        ([], {}, (1, {})),
    ],
)
def test_workers_take_what_the_nodes_have(nodes, asked, expected):
    assert resources(nodes, Cluster(**asked)) == expected


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, short_jobs(1))
    with pytest.raises(SystemExit) as end:
        main(["batch", "jobs.jsonl", "-o", "out", "--engine", "ray"])
    assert end.value.code == 2 and 'expected the extra: pip install "spark-jax[ray]"' in capsys.readouterr().err


def descendants(pid: int) -> dict[int, str]:
    """Returns the processes that a process has started, and theirs, with their names."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, IndexError):
            continue
    found, generation = {}, {pid}
    while generation := {child for child, parent in parents.items() if parent in generation}:
        found |= {child: names.get(child, "") for child in generation}
    return found


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)


def kill_a_worker(process) -> None:
    workers = lambda: [pid for pid, name in descendants(process.pid).items() if name.startswith("ray::_Speaker.speak")]  # noqa: E731
    wait_for(workers, process)
    os.kill(workers()[0], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_two_workers_and_then_the_head_are_killed(tiny_model_directory, tmp_path):
    pytest.importorskip("ray")
    count = 1000
    write(tmp_path, short_jobs(count))
    model = ["--model", str(tiny_model_directory)]
    assert start(tmp_path, *model, *OPTIONS, "-o", "whole").wait() == 0
    output = tmp_path / "out"
    patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}  # by default 60: the workers may be done before it ends
    process = start(tmp_path, *model, *ON_RAY, "-o", "out", **patience)
    for done in (20, 50):
        wait_for(lambda done=done: spoken(output) >= done, process)
        kill_a_worker(process)
    wait_for(lambda: spoken(output) >= 80, process)
    head = [pid for pid, name in descendants(process.pid).items() if "gcs_server" in name or "raylet/raylet" in name]
    assert len(head) >= 2
    for pid in head:
        os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=180) != 0
    done = spoken(output)
    assert 80 <= done < count
    assert start(tmp_path, *model, *ON_RAY, "-o", "out").wait() == 0
    assert contents(output) == contents(tmp_path / "whole")
    print(f"without the head the command ended after {done} jobs")


POISON = """
import os, sys
if any("default_worker" in word for word in sys.orig_argv):
    from spark_jax.jobs import lines
    read = lines.read_job
    def read_job(line, number, folder):
        if b"job-35" in line:
            os._exit(9)
        return read(line, number, folder)
    lines.read_job = read_job
"""


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_is_set_aside(tiny_model_directory, tmp_path):
    pytest.importorskip("ray")
    write(tmp_path, short_jobs(60))
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison" / "sitecustomize.py").write_text(POISON)
    path = os.pathsep.join([str(tmp_path / "poison"), os.environ.get("PYTHONPATH", "")])
    options = ["--model", str(tiny_model_directory), *ON_RAY, "-o", "out"]
    assert start(tmp_path, *options, PYTHONPATH=path).wait() == 1
    messages = (tmp_path / "messages.txt").read_text()
    assert messages.count("shard 3 (from line 31) failed, tried again") == 2
    assert messages.count("shard 3 (from line 31) failed, set aside") == 1
    assert "error: shard 3 is set aside, start the same command to try it again" in messages
    assert sorted(os.listdir(tmp_path / "out/audio")) == ["00000", "00001", "00002", "00004", "00005"]
    assert start(tmp_path, *options).wait() == 0  # what was wrong with it is gone
    assert start(tmp_path, *options[:-1], "whole").wait() == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
