"""An outcome with every status in it, and names that want to be markup."""

from __future__ import annotations

from tokenpass.check.baseline import Baseline, CaseBaseline, Fingerprint, MeasuredSpeed
from tokenpass.check.differences import Difference
from tokenpass.check.facts import CaseFacts, GraphFacts
from tokenpass.check.outcome import CaseResult, Gate, Outcome

HOSTILE = 'a<b>&"\x00\x1b[31m|`x`\n::error::%0A[link](http://x),y:z'
DIFFERENCE = Difference("tokens of layer 1", "64 -> 32", "64 -> 48", "torch 1 -> 2")
MACHINE = Fingerprint(
    tokenpass="0.1.0",
    torch="2.13.0",
    transformers="5.0.0",
    python="3.11.7",
    device="a processor",
    capability="AVX512",
    threads=2,
    cpus=2.0,
    memory_gib=8.0,
    governor="performance",
)
SPEED = MeasuredSpeed(
    speedup=1.5,
    low=1.48,
    high=1.53,
    pairs=96,
    noise_low=0.99,
    noise_high=1.02,
    dense_ms=30.0,
    ours_ms=20.0,
    load=0.3,
    inputs="int64[8, 256]; parameters float32",
    fingerprint=MACHINE,
)
FACTS = CaseFacts(
    graphs=[
        GraphFacts(
            outcome="edited",
            plan="0123456789abcdef",
            edits={"token_merge/tome": 2},
            tokens=["64 -> 48", "48 -> 32"],
            share=0.62,
            flop_ratio=0.61,
            byte_ratio=0.7,
            memory_ratio=0.9,
            dense_gflop=1.25,
            rejections={"no-gain": 1},
            kernels={"tokenpass::merge_tokens": 2},
            references=0,
            packed_bytes=0,
        )
    ],
    graph_breaks=0,
    compilations=1,
    recompilations=0,
)


def baseline() -> Baseline:
    case = CaseBaseline(
        model="a:b", options={"budget": 0.5}, facts=FACTS, speed=SPEED, fingerprint=MACHINE
    )
    return Baseline(device_profile="generic-cpu", device_profile_hash="00", cases={"a": case})


def outcome(interrupted: bool = False) -> Outcome:
    gates = (
        Gate("facts", "failed", "1 differ: torch 1 -> 2", (DIFFERENCE,)),
        Gate("error", "wrong", HOSTILE),
        Gate("model", "broken", "RuntimeError: 5 % <off>"),
        Gate("speed", "inconclusive", "this machine cannot tell"),
        Gate("all", "skipped", "not started"),
        Gate("cosine", "passed", "0.99, at least 0.9"),
    )
    fine = CaseResult("fine", 9, gates[-1:], FACTS, {"cosine": 0.99}, SPEED, 12.25)
    cases = (CaseResult(HOSTILE, 3, gates, seconds=1.5), fine)
    return Outcome("dir/a,b.yaml", cases, MACHINE, ("a note",), interrupted)
