"""`segmap check`: an audit of store, memory and agents while everything goes on, in slices between which faults are
answered; and, after a restore, the end of the freeze.

One check at a time. Its parts are iterators that yield how long to pause; each is in a module of its own: the image
(store/audit.py), memory against the store (check_store), agents and labels (check_agents).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from controller.core.check_agents import check_agents, check_labels, renew_labels
from controller.core.check_store import AllocatorCheck, StoreComparison, settled
from controller.core.cluster import FROZEN_ADVICE, Cluster
from controller.core.refusals import Refusal
from controller.core.reports import quarantine
from controller.store.audit import WARNING, Finding, Findings, ImageAudit, JobRun, Shape, runs_of_job
from controller.store.image import MapImage
from controller.store.interface import FROZEN_KEY, FROZEN_KIND, StoreState

RUNS_KEPT: Final = 8
SLICE_PAUSE_NS: Final = 1_000_000
"""Between two slices of work in memory, each of a millisecond or two."""
UNITS_PER_SLICE: Final = 1
PASSES: Final = 3


class Check:
    """One run of it. `incomplete`: something could not be looked at, so that nothing may be concluded from silence."""

    def __init__(self, run: int, reconcile: bool, discard: bool) -> None:
        self.run = run
        self.reconcile = reconcile
        self.discard = discard
        self.stage = "store"
        self.findings = Findings()
        self.counts: dict[str, int] = {}
        self.progress = 0.0
        self.over = False
        self.incomplete = False
        self.quarantine: list[dict[str, Any]] = []
        self.lifted = False
        self.frozen = ""
        self.now_ns = 0

    def missing(self, kind: str, text: str) -> None:
        """Something could not be looked at."""
        self.incomplete = True
        self.findings.add(WARNING, kind, text)

    def count(self, what: str, number: int) -> None:
        """So many more were looked at."""
        self.counts[what] = self.counts.get(what, 0) + number

    def row(self) -> dict[str, Any]:
        """For operators."""
        return {
            "run": self.run,
            "state": "done" if self.over else "running",
            "stage": self.stage,
            "progress": round(self.progress, 3),
            "good": self.over and not self.findings.errors,
            "findings": [finding.row() for finding in self.findings.found],
            "findings_dropped": self.findings.dropped,
            "counts": dict(self.counts),
            "quarantine": self.quarantine,
            "reconcile": self.reconcile,
            "lifted": self.lifted,
            "frozen": self.frozen,
        }


class _Books:
    """The core's own state, as what the audit reads."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @property
    def image(self) -> MapImage:
        return self._cluster.image

    def containers(self) -> Mapping[int, Shape]:
        containers = self._cluster.containers.values()
        return {one.slot: Shape(one.name, one.segment_count) for one in containers if one.ready}

    def vdisks(self) -> Mapping[int, Shape]:
        return {one.number: Shape(one.name, one.segment_count) for one in self._cluster.vdisks.values()}

    def job_runs(self) -> Iterable[JobRun]:
        return [run for job in self._cluster.zeroing.jobs.values() for run in runs_of_job(job)]


class Checking:
    """Begins, drives and remembers checks."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._checks: dict[int, Check] = {}
        self._comparison: StoreComparison | None = None

    def find(self, run: int) -> Check | None:
        """A run that is going on, or one of the last ones."""
        return self._checks.get(run)

    def begin(self, now_ns: int, *, reconcile: bool = False, discard: bool = False) -> Check:
        """Begin one, or join the one that is going on. Raises Refusal if that is not what was asked for."""
        newest = self._checks[max(self._checks)] if self._checks else None
        if newest is not None and not newest.over:
            if reconcile and (not newest.reconcile or discard != newest.discard):
                raise Refusal("busy", f"check {newest.run} is going on", "try again when it is done")
            return newest
        check = Check(max(self._checks, default=0) + 1, reconcile, discard)
        self._checks[check.run] = check
        self._checks.pop(check.run - RUNS_KEPT, None)
        work = self._work(check)
        self._cluster.timers.at(now_ns + 1, lambda now: self._slice(check, work, now))
        return check

    def store_was_read(self, run: int, state: StoreState | None, findings: tuple[Finding, ...]) -> None:
        """The shell has read the store back."""
        if self._comparison is not None and self._comparison.run_number == run:
            self._comparison.answered(state, findings)

    def _slice(self, check: Check, work: Iterator[int], now_ns: int) -> None:
        check.now_ns = now_ns
        pause_ns = next(work, None) if not self._cluster.deposed else None
        if pause_ns is not None:
            self._cluster.timers.at(now_ns + pause_ns, lambda now: self._slice(check, work, now))
            return
        if self._comparison is not None:
            self._comparison.stop()
            self._comparison = None
        if self._cluster.deposed:
            check.missing("leadership", "the controller was deposed meanwhile")
        self._finish(check, now_ns)

    def _finish(self, check: Check, now_ns: int) -> None:
        check.over, check.stage, check.progress = True, "done", 1.0
        check.frozen = self._cluster.frozen
        check.quarantine = quarantine(self._cluster)
        for finding in check.findings.found:
            self._cluster.log.add(now_ns, finding.severity.replace("error", "alarm"), "check", finding.text)
        errors = check.findings.errors + check.findings.dropped
        text = f"check {check.run} found " + (f"{errors} errors" if errors else "nothing wrong")
        self._cluster.log.add(now_ns, "info", "check", text)

    # --- what is done ------------------------------------------------------------------------------------------------

    def _work(self, check: Check) -> Iterator[int]:
        cluster = self._cluster
        comparison = self._comparison = StoreComparison(cluster, check)
        comparison.start()
        yield from comparison.ask()
        check.stage = "memory"
        yield from self._image(check)
        yield from AllocatorCheck(cluster, check).run()
        check.stage = "comparison"
        yield from comparison.compare()
        check.stage, check.progress = "agents", 0.6
        yield from check_agents(cluster, check)
        check.stage, check.progress = "labels", 0.9
        yield from check_labels(cluster, check)
        if check.reconcile:
            check.stage = "reconcile"
            yield from self._reconcile(check)
        elif cluster.frozen:
            check.findings.add(WARNING, "frozen", FROZEN_ADVICE.format(cluster.frozen))

    def _image(self, check: Check) -> Iterator[int]:
        audit = ImageAudit(_Books(self._cluster), PASSES)
        for number, again in enumerate(audit.run()):
            check.progress = 0.3 * audit.done / max(1, audit.total)
            if again:  # a job is forgotten when its end is on its way to the store, its segments change after that
                yield from settled(self._cluster)
            elif number % UNITS_PER_SLICE == UNITS_PER_SLICE - 1:
                yield SLICE_PAUSE_NS
        check.count("container_segments", audit.segments)
        for finding in audit.findings.found:
            check.findings.add(finding.severity, finding.kind, finding.text)
        check.findings.dropped += audit.findings.dropped

    def _reconcile(self, check: Check) -> Iterator[int]:
        """Nothing differs: renew the labels, so that an older store would be noticed, and allocate again."""
        cluster = self._cluster
        if check.findings.errors or check.incomplete:
            hint = "see what else was found; `segmap agent fence` ends what an agent holds"
            check.findings.add(WARNING, "reconcile", f"allocation stays as it is: {hint}")
            return
        yield from renew_labels(cluster, check)
        if check.incomplete or not cluster.frozen:
            return
        cluster.journal.delete(FROZEN_KIND, FROZEN_KEY)
        cluster.journal.then(lambda now: self._lifted(check, now))
        while not check.lifted:
            yield SLICE_PAUSE_NS

    def _lifted(self, check: Check, now_ns: int) -> None:
        """Committed: the freeze is over."""
        cluster = self._cluster
        check.lifted = True
        cluster.frozen = ""
        cluster.log.clear(now_ns, "frozen", "store", "agents and labels have been compared: allocation goes on")
        cluster.zeroing.consider(now_ns)
        cluster.faults.space_found(now_ns)
