"""The emulator finds at least nine of ten defects put into a compiled kernel."""

from collections import Counter

import pytest

from emulator import EmulationError, parse
from emulator.mutation import Equivalence, mutants_of, sample
from support.emulated_mqa import VARIANTS, Case, Disagreement, execute, prepare, windowed

pytestmark = pytest.mark.one_lane

# Windows that reach the loops over tiles and strips, masked and whole stores, in full groups of rows and in broken ones.
CALLS = [
    ([(-5, 20), (120, 300), (290, 300), (0, 300), (7, 9)], 300),
    ([(2100, 2300), (2200, 2140), (2049, 2180), (2049, 3100), (1000, 1001)], 4500),
    ([(700, 1800), (690, 1900), (705, 1800), (720, 1790), (0, 5), (2400, 2499), (2300, 2400), (5, 2444)], 2500),
]
SWITCHES = [{"landing": "late", "preload": True}, {"landing": "early", "preload": False}]
OF_EACH_KIND = 12
SEED = 7
REQUIRED = 0.9


@pytest.mark.parametrize("variant", VARIANTS)
def test_mutants_are_caught(variant):
    cases = [prepare(VARIANTS[variant], Case(windowed(rows, 64, 128, keys), clean_logits=True)) for rows, keys in CALLS]
    program = parse(cases[0].compiled.asm["amdgcn"])
    assert all(case.compiled is cases[0].compiled for case in cases), "one kernel is to be tried on all calls"
    launches = [(case, switches) for case in cases for switches in SWITCHES]

    runs = [execute(case, measure=False, **switches) for case, switches in launches]
    executed = [sum(times) for times in zip(*(run.executed for run in runs), strict=True)]
    endless = 10 * max(sum(run.executed) for run in runs)
    mutants = sample(mutants_of(program, executed), OF_EACH_KIND, SEED)
    equivalence = Equivalence(program, mutants)
    for case, switches in launches:
        execute(case, measure=False, observe=equivalence.observe, **switches)

    def finding(mutant) -> str:
        """What the emulator, or the comparison behind it, says first."""
        for case, switches in launches:
            try:
                execute(case, mutant.applied(program), measure=False, limit=endless, **switches)
            except (EmulationError, Disagreement) as error:
                return type(error).__name__
        return ""

    findings = {mutant: finding(mutant) for mutant in mutants}
    equivalent = [mutant for mutant in mutants if equivalence.same_effect(mutant)]
    missed = [mutant for mutant in mutants if not findings[mutant] and mutant not in equivalent]
    caught = len(mutants) - len(equivalent) - len(missed)
    for kind in sorted({mutant.kind for mutant in mutants}):
        fates = Counter(findings[m] or ("equivalent" if m in equivalent else "missed") for m in mutants if m.kind == kind)
        print(f"{kind}: {dict(fates)}")
    for title, group in (("equivalent: the same state after every execution", equivalent), ("missed", missed)):
        for mutant in group:
            print(f"{title}: {mutant.index} {program.instructions[mutant.index].text} -> {mutant.text}")
    print(f"{caught} of {caught + len(missed)} caught, {len(equivalent)} equivalent")

    assert not [mutant for mutant in equivalent if findings[mutant]], "a mutant without effect was caught"
    assert {mutant.kind for mutant in mutants} >= {"wait dropped", "wait loosened", "barrier dropped", "offset shifted"}
    # Triton also puts barriers before the first copy to LDS and behind the last read, where they order nothing.
    ends = [times for step, times in zip(program.instructions, executed, strict=True) if step.mnemonic == "s_endpgm"]
    in_loops = [index for index, times in enumerate(executed) if times > sum(ends)]
    assert not [mutant for mutant in missed if mutant.kind == "barrier dropped" and mutant.index in in_loops]
    assert "UnknownInstruction" not in findings.values(), "a mutant is no instruction"
    assert caught >= REQUIRED * (caught + len(missed)), f"missed: {missed}"
