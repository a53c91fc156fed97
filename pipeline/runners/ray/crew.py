"""The workers: one on each node, from its first sign of life to its death."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import ClusterUnusable
from pipeline.runners.ray import checks, cluster
from pipeline.runners.ray.shares import Bound
from pipeline.runners.ray.worker import Facts, Needs, Reply, Worker

log = logging.getLogger(__name__)

# A worker that the driver did not ask for so long ends itself; one that did not answer for longer counts as dead. In
# between it sends no requests, so that its share of the bounds is free.
LEASE_S, SILENT_S = 60.0, 80.0
# How long a worker may take to import and to make its flow.
OPEN_S = 180.0
# How long the first worker may wait for a free CPU; how long it may take to start where there is one (2 s on an idle
# host); and how long the others may take after it.
FREE_S, START_S, OTHERS_S = 6.0, 90.0, 4.0
# How often the cluster's nodes are looked at.
LOOK_S = 1.0
# A worker's answer is waited for so long where it has nothing to say.
TAKE_S = 0.5
# A node on which so many workers in a row died before they were up gets no more.
STARTS = 3
# The run stops when there is no worker for so long.
NOBODY_S = 120.0


@dataclass
class Member:
    """A worker as the driver sees it."""

    name: str
    node: str
    """The node's id."""
    actor: Any
    asked: Any
    """The call that it answers next."""
    since: float
    """When that was sent."""
    facts: Facts | None = None
    up: bool = False
    last: Reply | None = None
    granting: tuple[Any, dict[str, int]] | None = None
    """The call that tells its shares, and these."""

    @property
    def shown(self) -> str:
        """For people."""
        return f"{self.name} on {self.facts.node if self.facts else 'a node'}"


@dataclass
class Crew:
    """All workers."""

    needs: Needs
    open: Callable[[Any], Any]
    """Makes an actor ready; gives the call."""
    bounds: dict[str, Bound]
    """By the services' names."""
    members: dict[str, Member] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    """By node: workers in a row that died before they were up."""
    bound: str = ""
    """Of the trace's sample."""
    _made: int = 0
    _looked: float = 0.0
    _manned: float = field(default_factory=time.monotonic)
    why: str = "none has started"
    """How the last worker that is gone ended."""

    @property
    def up(self) -> list[Member]:
        """Those that can work."""
        return [member for member in self.members.values() if member.up]

    def first(self) -> None:
        """Start a worker on each node, and see that each that answers soon has what it needs.

        Raises:
            ClusterUnusable: a node lacks something, or no worker answers.
        """
        free = ray.available_resources().get("CPU", 0)
        began, limit_s = time.monotonic(), START_S if free >= 1 else FREE_S
        self.tend()
        answered: list[Facts] = []
        while len(answered) < max(len(self.members), 1):
            if time.monotonic() - began > (OTHERS_S if answered else limit_s):
                break
            waiting = {member.asked: member for member in self.members.values() if member.facts is None}
            if not waiting:
                time.sleep(LOOK_S)
                self.tend()
                continue
            for call in ray.wait(list(waiting), num_returns=1, timeout=0.2)[0]:
                answered.append(self._facts(waiting[call], call))
                began = time.monotonic()
        if not answered:
            raise ClusterUnusable(
                f"ray: no worker started within {limit_s:.0f} s: {len(self.members)} nodes have CPUs, {free:g} of them "
                "free: wait for other jobs, or see 'ray status' and the nodes' logs"
            )

    def _facts(self, member: Member, call: Any) -> Facts:
        try:
            facts: Facts = ray.get(call)
        except RayError as error:
            raise ClusterUnusable(
                f"ray: no worker can start on a node ({ending(error)}): its image needs the packages of this one"
            ) from error
        if fault := checks.fault(facts):
            raise ClusterUnusable(fault)
        self._welcome(member, facts)
        return facts

    def _welcome(self, member: Member, facts: Facts) -> None:
        member.facts = facts
        member.asked, member.since = self.open(member.actor), time.monotonic()

    def tend(self) -> None:
        """Start a worker on each node that has none."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        taken = {member.node for member in self.members.values()}
        most = min(bound.most for bound in self.bounds.values())
        for node in cluster.nodes():
            if node in taken or self.starts.get(node, 0) >= STARTS or len(self.members) >= most:
                continue
            name = f"w{self._made}"
            self._made += 1
            actor = (
                ray.remote(Worker)
                .options(
                    num_cpus=1,
                    max_restarts=0,
                    max_task_retries=0,
                    max_concurrency=8,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                )
                .remote(self.needs, LEASE_S)
            )
            self.members[name] = Member(name, node, actor, actor.facts.remote(), now)

    def nobody(self) -> str | None:
        """Why the run cannot go on; None while there are workers."""
        now = time.monotonic()
        if self.up:
            self._manned = now
        if now - self._manned <= NOBODY_S:
            return None
        return f"no worker is left on the cluster ({self.why}): see its nodes and their memory, then run again"

    def replies(self, wait_s: float) -> Iterator[tuple[Member, Reply | None]]:
        """What the workers say within some time; None from one that is gone, which is a member no more."""
        now = time.monotonic()
        calls = {member.asked: member for member in self.members.values()}
        ready: list[Any] = []
        if calls:
            ready = ray.wait(list(calls), num_returns=1, timeout=wait_s)[0]
            ready = ray.wait(list(calls), num_returns=len(calls), timeout=0)[0] if ready else []
        else:
            time.sleep(wait_s)
        for call in ready:
            yield from self._answered(calls[call], call)
        for member in list(self.members.values()):
            limit_s = SILENT_S if member.up else OPEN_S
            # A member without facts may wait for a free CPU.
            if member.facts is not None and now - member.since > limit_s and member.asked not in ready:
                ray.kill(member.actor)
                self._gone(member, f"{member.shown} did not answer for {limit_s:g} s")
                yield member, None

    def _answered(self, member: Member, call: Any) -> Iterator[tuple[Member, Reply | None]]:
        try:
            answer = ray.get(call)
        except RayError as error:
            self._gone(member, f"{member.shown}: {ending(error)}")
            yield member, None
            return
        if isinstance(answer, Facts):
            if fault := checks.fault(answer):
                self.starts[member.node] = STARTS
                ray.kill(member.actor)
                self._gone(member, fault)
            else:
                self._welcome(member, answer)
            return
        if answer is None and not member.up:
            member.up = True
            self.starts[member.node] = 0
            log.info("worker %s is up", member.shown)
        member.asked, member.since = member.actor.take.remote(TAKE_S, self.bound), time.monotonic()
        if isinstance(answer, Reply):
            member.last = answer
            yield member, answer

    def _gone(self, member: Member, why: str) -> None:
        self.why = why
        log.warning("worker gone: %s", why)
        del self.members[member.name]
        if not member.up:
            self.starts[member.node] = self.starts.get(member.node, 0) + 1
        for bound in self.bounds.values():
            bound.gone(member.name, time.monotonic())

    def share(self, working: list[str]) -> None:
        """Share the bounds out among these workers, as far as others have given back."""
        now = time.monotonic()
        for member in self.up:
            if member.granting and ray.wait([member.granting[0]], timeout=0)[0]:
                for service, share in member.granting[1].items():
                    self.bounds[service].holds(member.name, share)
                member.granting = None
        changes = {service: bound.next(working, now) for service, bound in self.bounds.items()}
        for member in self.up:
            if member.granting or not any(member.name in changed for changed in changes.values()):
                continue
            shares = {}
            for service, bound in self.bounds.items():
                shares[service] = changes[service].get(member.name, bound.held.get(member.name, 0))
                bound.told(member.name, shares[service])
            member.granting = member.actor.grant.remote(shares), shares


def ending(error: RayError) -> str:
    """How a worker ended, as Ray has it, in a line."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (said[-1] if "Error" in (said or [""])[-1] else " ".join(said))[:200]
