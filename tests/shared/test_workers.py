import subprocess
import sys

PROGRAM = """
import threading, time
from spark_jax.shared import workers

news = threading.Condition()

def work():
    while not workers.ending():
        time.sleep(0.01)
    print("worked to the end", flush=True)

def wait():
    with news:
        while not workers.ending():
            news.wait()
    print("was woken", flush=True)

def wake():
    with news:
        news.notify_all()

workers.start(lambda: None, "short").join()
workers.start(work, "working")
workers.start(wait, "waiting", wake)
"""


def test_threads_end_before_the_interpreter():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["was woken", "worked to the end"]
