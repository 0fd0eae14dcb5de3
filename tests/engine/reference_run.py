"""Run by test_engine_reference.py in a process of its own: answers of an engine, as JSON.

Arguments: checkpoint folder, and JSON {"policy": engine options, "cut": engine options, "prompts",
"max_tokens", "poison": token whose embedding shall be NaN}. Prints {"isa", "alone", "together"}:
tokens per prompt (null for one that failed), each prompt alone in one shot and all in one engine.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from saccade import Engine, SamplingParams
from saccade.kernels import native


def answers(engine: Engine, prompts: list[list[int]], job: dict[str, Any]) -> list[Any]:
    engine._runner._model.embedding[job["poison"]] = math.nan
    params = SamplingParams(
        temperature=0,
        max_tokens=job["max_tokens"],
        ignore_eos=True,
        logit_bias={job["poison"]: -100.0},
    )
    outputs = engine.generate(prompts, params)
    engine.scheduler.check_integrity()
    return [None if each.error else each.outputs[0].token_ids for each in outputs]


def main(folder: Path, job: dict[str, Any]) -> None:
    options = {"kv_cache_memory": 1 << 20, **job["policy"]}
    with Engine(folder, **options, enable_prefix_caching=False) as engine:
        alone = [answers(engine, [prompt], job)[0] for prompt in job["prompts"]]
    with Engine(folder, **{**options, **job["cut"]}) as engine:
        together = answers(engine, job["prompts"] * 2, job)
    print(json.dumps({"isa": native.chosen_isa(), "alone": alone, "together": together}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
