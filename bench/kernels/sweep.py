"""One run of the losses: every case, operation and provider that can do it; what fails is left out with a line."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from bench.common.failures import reason
from bench.common.measure import measure
from bench.common.run import BenchRun
from bench.common.view import View
from bench.kernels import lost, plot, records
from bench.kernels.cases import LABELS, Case, Inputs, make_inputs
from bench.kernels.check import Reference, poison
from bench.kernels.goals import summary
from bench.kernels.providers import CROSS_ENTROPY, TOP_K, Call, Provider, check_room, ops_of

VIEW = View(records.table, records.NOTES, summary, plot.draw)


@dataclass(kw_only=True)
class Sweep(BenchRun):
    reps: int = 5
    cap_s: float = float("inf")  # of timed calls of a variant
    minutes: float = float("inf")  # no operation starts later
    began: float = field(default_factory=time.monotonic)

    def measure_all(self, cases: Sequence[Case], providers: Sequence[Provider]) -> None:
        first = cases[0]
        for case in cases:
            if all((op, name) in self._measured(case) for op, passes in ops_of(case).items() for name in passes):
                continue
            if self._time_is_up():
                self.say(f"skipped {case}: the {self.minutes:g} minutes are over")
                continue
            try:
                at_base = case.regime == LABELS or replace(case, regime=first.regime) == first
                self._measure_case(case, [p for p in providers if at_base or not p.slow_start])
            except torch.OutOfMemoryError:
                self.say(f"skipped {case}: out of memory")
            self._release()

    def _measured(self, case: Case) -> set[tuple[str, str]]:
        """Operations and passes that have records: an earlier process may have measured them."""
        return {(r["op"], r["pass"]) for r in self.found if records.case_of(r) == case}

    def _time_is_up(self) -> bool:
        return time.monotonic() - self.began > 60 * self.minutes

    def _measure_case(self, case: Case, providers: Sequence[Provider]) -> None:
        inputs = make_inputs(case, self.device)
        reference = Reference(inputs)
        for op, passes in ops_of(case).items():
            if all((op, name) in self._measured(case) for name in passes):
                continue
            partial_before = [r for r in self.found if (records.case_of(r), r["op"]) == (case, op)]
            if self._time_is_up():
                self.say(f"skipped {op} at {case}: the {self.minutes:g} minutes are over")
                continue
            able = [provider for provider in providers if op in provider.ops]
            tried = {provider.name: self._try(provider, op, case, inputs, reference) for provider in able}
            by_name = {provider.name: provider for provider in able}
            calls = {name: call for name, call in tried.items() if call is not None}
            for name in passes:
                variants = calls if name == "forward" else {p: partial(_full, c, inputs) for p, c in calls.items()}
                variants = {p: by_name[p].within(call) for p, call in variants.items()}
                fail = partial(self._fail, f"{op} {name} at {case}")
                timed = measure(variants, self.device, self.reps, self.cap_s, fail)
                # What an earlier process measured of this pass, before the GPU was lost in another.
                self.found = [r for r in self.found if not (r in partial_before and r["pass"] == name)]
                self.found += [
                    records.record(
                        op,
                        name,
                        provider,
                        CROSS_ENTROPY if case.regime == LABELS else by_name[provider].loss,
                        self.device_name,
                        case,
                        measured,
                        limit=self.limit,
                        union_fraction=inputs.union_fraction,
                        covered_mass=inputs.covered_mass,
                        command=self.command,
                    )
                    for provider, measured in timed.items()
                ]
                VIEW.write(self)
                print(f"{op} {name}: {', '.join(f'{p} {m.ms_p50:.4g} ms' for p, m in timed.items())}", flush=True)
        print(f"\n{records.table([r for r in self.found if records.case_of(r) == case])}\n", flush=True)

    def _fail(self, what: str, provider: str, error: Exception) -> None:
        self.leave_out(provider, f"{what}: {reason(error)}")
        lost.check_answers(self.device, provider)

    def _try(self, provider: Provider, op: str, case: Case, inputs: Inputs, reference: Reference) -> Call | None:
        """The call to be timed, after it has run once; of our loss also after its result was found to be right."""
        call = None
        print(f"{op} at {case}: {provider.name}", flush=True)  # names a provider that hangs
        try:
            check_room(provider, case, self.device)
            call = provider.ops[op](inputs)
            with provider.context():
                if provider.loss == TOP_K:
                    poison(self.device)
                    reference.check(op, call)
                else:
                    _full(call, inputs) if "full" in ops_of(case)[op] else call()
            if self.device == "cuda":
                torch.cuda.synchronize()  # an error of a kernel shows here, not in the next provider
        except Exception as error:  # noqa: BLE001  # the other providers are measured however one fails
            call = None
            self._fail(f"{op} at {case}", provider.name, error)
        self._release()  # here, where no traceback holds the provider's tensors any more
        return call

    def _release(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()


def _full(call: Call, inputs: Inputs) -> object:
    loss = cast(Tensor, call())
    return torch.autograd.grad(loss.mean(), inputs.parameters)
