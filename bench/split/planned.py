"""What the planner says that a split serves, to be held against what was simulated."""

from __future__ import annotations

from bench.split.load import Load
from bench.split.simulated import SimulatedWorkers, step_tokens_of
from bench.split.splits import Split
from planner import split as planner
from planner.search import Search
from planner.traces import Trace
from planner.workload import Workload, steady


def planned_rates(workers: SimulatedWorkers, share: float, splits: list[Split]) -> dict[str, float]:
    """Requests/s within the targets by the cost model and queueing alone; not of splits with a
    plus, for which there is no closed form."""
    cost, slo = workers.cost, workers.slo
    plain = [split for split in splits if not split.conditional]
    if not plain:
        return {}
    search = Search(
        cost.model, cost.device, cost.precision, cost.stack,
        plain[0].workers * workers.devices, _workload(workers.load),
        planner.Targets(slo.ttft_s, slo.tpot_s, share), among={cost.layout},
    )  # fmt: skip
    return {split.name: search.rate_of(_pools(workers, split)) for split in plain}


def _pools(workers: SimulatedWorkers, split: Split) -> planner.Split:
    chunk = step_tokens_of(split)
    pools = tuple(
        planner.Pool(role.value, workers.cost.layout, count, chunk, 0.0, 0.0)
        for role, count in split.replicas
    )
    mode = planner.Mode.AGGREGATED if split.aggregated else planner.Mode.DISAGGREGATED
    return planner.Split(mode, pools, 0.0, 0.0, 0.0, 0.0, workers.load.osl, "")


def _workload(load: Load) -> Workload:
    if load.trace:
        return Trace("the trace", load.trace, ()).workload(cached=True)
    return steady(load.isl, load.osl, spread=load.spread, arrival_cv=load.burstiness)
