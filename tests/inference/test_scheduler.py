"""The scheduler under random arrivals, departures and lengths: nobody is lost, overtaken or cut short."""

import random

import pytest

from spark_jax.inference.scheduler import Scheduler, windows

LENGTHS, CAPACITY, BLOCK = (64, 96, 128), 512, 16


class Simulation:
    """Random requests through a scheduler, with a device that decodes and reports one block behind."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.slots = self.random.choice([1, 2, 5, 8])
        rows = [self.random.choice([1, 2, 4]) for _ in LENGTHS]
        self.rows = dict(zip(LENGTHS, rows, strict=True))
        self.scheduler = Scheduler(self.slots, BLOCK, windows(CAPACITY), LENGTHS, rows)
        self.prompts, self.limits = {}, {}  # of each ticket
        self.waiting, self.left, self.finished = [], set(), []
        self.device = [None] * self.slots  # ticket, tokens in the cache, tokens left
        self.pending = None

    def submit(self):
        ticket = len(self.prompts)
        self.prompts[ticket] = self.random.randint(1, LENGTHS[-1])
        self.limits[ticket] = self.random.randint(1, CAPACITY - BLOCK - LENGTHS[-1])
        self.waiting.append(ticket)
        self.scheduler.submit(ticket, self.prompts[ticket])

    def cancel(self):
        ticket = self.random.randrange(len(self.prompts) or 1)
        there = ticket in self.prompts and ticket not in self.left and ticket not in self.finished
        assert self.scheduler.cancel(ticket) == there
        if there:
            self.left.add(ticket)
            if ticket in self.waiting:
                self.waiting.remove(ticket)

    def padded(self, ticket):
        return min(length for length in LENGTHS if length >= self.prompts[ticket])

    def admit(self):
        for admission in self.scheduler.admissions():
            assert 1 <= len(admission.tickets) <= admission.rows == self.rows[admission.length]
            assert len(set(admission.slots)) == len(admission.slots) == len(admission.tickets)
            same = [ticket for ticket in self.waiting if self.padded(ticket) == admission.length]
            assert list(admission.tickets) == same[: len(admission.tickets)]  # in their order
            assert admission.tickets[0] == self.waiting[0]  # the first is always among them
            for ticket, slot in zip(admission.tickets, admission.slots, strict=True):
                assert self.holder(slot) is None
                self.waiting.remove(ticket)
                self.device[slot] = [ticket, self.prompts[ticket], self.limits[ticket]]
        if self.waiting and self.scheduler.running == 0:
            raise AssertionError("free slots and a queue, and nobody is admitted")
        assert self.scheduler.waiting == len(self.waiting)

    def holder(self, slot):
        """Who has a slot and is neither known to be finished nor gone."""
        item = self.device[slot]
        return None if item is None or item[0] in self.left or item[0] in self.finished else item[0]

    def turn(self):
        self.admit()
        block = self.scheduler.begin_block()
        results = []
        if block is not None:
            assert list(block.tickets) == [self.holder(slot) for slot in range(self.slots)]
            for item, ticket in zip(self.device, block.tickets, strict=True):
                if ticket is None:
                    continue
                assert item[1] <= block.window
                assert item[1] + BLOCK <= CAPACITY  # the merge has room
                steps = min(BLOCK, item[2])
                item[1], item[2] = item[1] + steps, item[2] - steps
                results.append((ticket, item[2] == 0))
        known, self.pending = self.pending, results
        for ticket, ended in known or []:
            if ended and ticket not in self.left and ticket not in self.finished:
                assert self.scheduler.finish(ticket)
                self.finished.append(ticket)
                assert not self.scheduler.finish(ticket)
        return block is not None or bool(known)


@pytest.mark.parametrize("seed", range(60))
def test_everyone_is_served_or_has_left(seed):
    simulation = Simulation(seed)
    for _ in range(120):
        for _ in range(simulation.random.choice([0, 0, 1, 3])):
            simulation.submit()
        if simulation.random.random() < 0.1:
            simulation.cancel()
        simulation.turn()
    while simulation.turn():
        pass
    assert sorted([*simulation.finished, *simulation.left]) == sorted(simulation.prompts)
    assert simulation.scheduler.waiting == simulation.scheduler.running == 0


def test_windows_follow_the_longest():
    scheduler = Scheduler(2, 16, windows(512), [64, 128], [1, 1])
    scheduler.submit(0, 120)
    scheduler.admissions()
    found = [scheduler.begin_block().window for _ in range(10)]
    assert found == [128] + [256] * 8 + [512]
    scheduler.submit(1, 10)
    scheduler.admissions()
    assert scheduler.begin_block().window == 512
    scheduler.finish(0)
    assert scheduler.begin_block().window == 128


def test_a_prefill_waits_for_its_rows_while_others_decode():
    scheduler = Scheduler(4, 16, windows(512), [64], [2])
    for ticket in range(7):
        scheduler.submit(ticket, 10)
    assert [admission.tickets for admission in scheduler.admissions()] == [(0, 1), (2, 3)]
    scheduler.finish(1)
    assert scheduler.admissions() == []
    scheduler.cancel(2)
    assert [(found.tickets, found.slots) for found in scheduler.admissions()] == [((4, 5), (1, 2))]
    scheduler.finish(4)
    scheduler.cancel(5)
    assert [found.tickets for found in scheduler.admissions()] == [(6,)]  # which waits for nobody


def test_windows_are_powers_of_two():
    assert windows(1024) == (128, 256, 512, 1024) and windows(128) == (128,)
    for capacity in (64, 1000):
        with pytest.raises(ValueError, match="expected a power of two"):
            windows(capacity)
