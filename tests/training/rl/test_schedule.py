"""The schedule under every order of events: none lost, none twice, none stale, never stuck."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from recsys.errors import DataError
from training.rl.schedule import Plan, PoisonedPromptError, Schedule, Stage, Ticket, rollout_seed

MANY_TRIES = 10**6
WORKERS = st.sampled_from(["a", "b", "c"])


class AnyOrder(RuleBasedStateMachine):
    """Workers that take, finish, fail and die as hypothesis likes; a learner that dies too."""

    @initialize(
        prompts=st.integers(1, 7),
        epochs=st.integers(1, 3),
        batch=st.integers(1, 5),
        alpha=st.integers(0, 3),
        chunk=st.integers(1, 4),
        pinned=st.booleans(),
    )
    def begin(self, prompts: int, epochs: int, batch: int, alpha: int, chunk: int, pinned: bool) -> None:
        self.plan = Plan(prompts, epochs, batch, alpha, chunk, MANY_TRIES, pinned=pinned)
        self.schedule = Schedule(self.plan)
        self.held: list[tuple[str, Ticket]] = []
        self.late: list[tuple[str, Ticket]] = []
        self.trained: list[int] = []

    def teardown(self) -> None:
        """From whatever state was reached, one honest worker brings the run to its end."""
        if hasattr(self, "schedule"):
            for worker in ("a", "b", "c"):
                self.schedule.lost(worker, "end")
            while not self.schedule.finished:
                before = len(self.trained), self.schedule.version
                self.work("honest")
                assert (len(self.trained), self.schedule.version) != before, "no progress"
            assert self.trained == list(range(self.plan.positions))
            used = Counter((self.plan.epoch(p), self.plan.prompt(p)) for p in self.trained)
            assert used == {(e, p): 1 for e in range(self.plan.epochs) for p in range(self.plan.prompts)}

    def work(self, worker: str) -> None:
        while (ticket := self.schedule.issue_rollout(worker)) is not None:
            assert self.schedule.complete(worker, ticket.number) == ticket
        while (ticket := self.schedule.issue_scoring(worker)) is not None:
            assert self.schedule.complete(worker, ticket.number) == ticket
        self.train()

    @rule(worker=WORKERS)
    def take_rollout(self, worker: str) -> None:
        ticket = self.schedule.issue_rollout(worker)
        self.held += [(worker, t) for t in [ticket] if t is not None]

    @rule(worker=WORKERS)
    def take_scoring(self, worker: str) -> None:
        ticket = self.schedule.issue_scoring(worker)
        self.held += [(worker, t) for t in [ticket] if t is not None]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        worker, ticket = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        assert self.schedule.complete(worker, ticket.number) == ticket
        self.late.append((worker, ticket))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        worker, ticket = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.schedule.failed(worker, ticket.number, "could not")
        self.late.append((worker, ticket))

    @rule(worker=WORKERS)
    def die(self, worker: str) -> None:
        self.schedule.lost(worker, "killed")
        self.late += [(w, t) for w, t in self.held if w == worker]
        self.held = [(w, t) for w, t in self.held if w != worker]

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def answer_again(self, data: st.DataObject) -> None:
        worker, ticket = data.draw(st.sampled_from(self.late))
        before = self.schedule.dropped
        assert self.schedule.complete(worker, ticket.number) is None
        assert self.schedule.dropped == before + 1

    @rule()
    def train(self) -> None:
        positions = self.schedule.ready()
        if positions is not None:
            ages = [self.schedule.version - at for at in self.schedule.rolled_at(positions)]
            assert all(0 <= age <= self.plan.alpha for age in ages)
            self.schedule.trained()
            self.trained += positions

    @rule(back=st.integers(0, 2))
    def learner_dies(self, back: int) -> None:
        version = max(0, self.schedule.version - back)
        self.schedule = Schedule(self.plan, version, first_ticket=self.schedule.first_ticket)
        self.trained = self.trained[: version * self.plan.batch]
        self.late += self.held
        self.held = []

    @invariant()
    def nobody_works_on_the_same_group(self) -> None:
        held = [position for _, ticket in getattr(self, "held", []) for position in ticket.positions]
        assert len(held) == len(set(held))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 3))
def test_each_epoch_is_an_order_of_all_prompts(prompts: int, epochs: int, seed: int) -> None:
    plan = Plan(prompts, epochs, seed=seed)
    for epoch in range(epochs):
        positions = range(epoch * prompts, (epoch + 1) * prompts)
        assert sorted(map(plan.prompt, positions)) == list(range(prompts))


def test_a_stream_that_is_not_shuffled_comes_by_ids() -> None:
    plan = Plan(5, 2, shuffled=False)
    assert [plan.prompt(position) for position in range(plan.positions)] == [0, 1, 2, 3, 4] * 2


def test_seeds_are_of_prompt_and_epoch_and_fit_in_63_bits() -> None:
    seeds = {rollout_seed(s, p, e) for s in range(4) for p in range(20) for e in range(4)}
    assert len(seeds) == 4 * 20 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    plan = Plan(5, 2, seed=3)
    assert [plan.rollout_seed(p) for p in range(10)] == [rollout_seed(3, plan.prompt(p), p // 5) for p in range(10)]


def test_alpha_opens_exactly_that_many_batches_ahead() -> None:
    schedule = Schedule(Plan(prompts=20, batch=4, alpha=2, chunk=4))
    tickets = [schedule.issue_rollout("a") for _ in range(4)]
    assert [t and t.positions[0] for t in tickets] == [0, 4, 8, None]


def test_pinned_groups_are_rolled_out_again_by_the_same_version() -> None:
    schedule = Schedule(Plan(prompts=8, batch=2, alpha=1, chunk=2), version=2)
    first = schedule.issue_rollout("a")
    schedule.lost("a", "killed")
    again = schedule.issue_rollout("b")
    assert first is not None
    assert again is not None
    assert (first.version, again.version) == (1, 1)
    assert (first.positions, again.positions) == ((4, 5), (4,))  # alone, to find out which one kills


def test_a_poisoned_prompt_is_named_after_its_tries() -> None:
    plan = Plan(prompts=6, batch=3, chunk=3, tries=2)
    schedule = Schedule(plan)
    together = schedule.issue_rollout("a")
    assert together is not None
    schedule.failed("a", together.number, "boom")
    ticket = schedule.issue_rollout("a")
    assert ticket is not None
    assert (len(together.positions), ticket.positions) == (3, (0,))
    with pytest.raises(PoisonedPromptError, match=rf"failed 2 times while rolling, last: boom.*{plan.prompt(0)}"):
        schedule.failed("a", ticket.number, "boom")


def test_a_batch_is_not_trained_before_it_is_whole() -> None:
    with pytest.raises(RuntimeError, match="batch 0 was trained before it was complete"):
        Schedule(Plan(prompts=2)).trained()


@pytest.mark.parametrize("bad", [{"prompts": 0}, {"batch": 0}, {"alpha": -1}, {"tries": 0}, {"seed": -1}])
def test_a_bad_plan_is_named(bad: dict[str, int]) -> None:
    with pytest.raises(DataError, match=next(iter(bad))):
        replace(Plan(prompts=3), **bad)  # type: ignore[arg-type]


def test_a_version_outside_the_run_is_refused() -> None:
    with pytest.raises(DataError, match="version = '3'"):
        Schedule(Plan(prompts=2, batch=1), version=3)


def test_stages_of_tickets() -> None:
    schedule = Schedule(Plan(prompts=1))
    ticket = schedule.issue_rollout("a")
    assert ticket is not None
    assert ticket.stage is Stage.ROLLING
    assert schedule.positions_of(ticket.number) == (0,)
    schedule.complete("a", ticket.number)
    scoring = schedule.issue_scoring("r")
    assert scoring is not None
    assert scoring.stage is Stage.SCORING
    assert schedule.complete("another", scoring.number) is None
    assert schedule.ready() is None
