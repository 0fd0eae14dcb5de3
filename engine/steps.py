"""Steps: runs what the scheduler planned, and finds out to whom an exception belongs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .errors import SaccadeError
from .generation import Branch, Generation
from .logprobs import NOT_FINITE
from .request import Request
from .runner import ModelRunner, StepResult
from .sampler import Sampled, Sampler
from .scheduler import Scheduler
from .stats import AttentionReads
from .step_plan import Chunk, StepPlan


class Steps:
    """Runs, samples and commits plans; the engine keeps the table of branches that it looks into.

    branches: the scheduler's request id -> its generation and branch. reads: of all requests so
    far.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        sampler: Sampler,
        branches: dict[str, tuple[Generation, Branch]],
    ) -> None:
        self.reads = AttentionReads()
        self._scheduler = scheduler
        self._runner = runner
        self._sampler = sampler
        self._branches = branches

    def run(self, plan: StepPlan) -> None:
        """Runs a plan and commits it.

        An exception fails the request that caused it and no other: the plan is run again, a chunk
        at a time. What the broken run left in the pages is written again, what it must not have
        overwritten is put back, and rows do not depend on the batch around them, so the others do
        not notice. An interrupt fails them all, and is raised again.
        """
        try:
            self._runner.copy_pages(plan.copies)
            plan = replace(plan, copies=[])
            try:
                self._run(plan)
            except Exception as error:
                if len(plan.live) < 2:
                    raise
                self._run_apart(plan, error)
        except BaseException as error:
            self._scheduler.fail(plan, error)
            if not isinstance(error, Exception):
                raise

    def _run_apart(self, plan: StepPlan, error: Exception) -> None:
        if any(chunk.start != chunk.request.num_computed for chunk in plan.live):
            raise error  # some of it was committed: there is no way back
        try:
            if not self._runner.undo():
                raise error
            for chunk in plan.live:
                part = replace(plan, chunks=[chunk])
                try:
                    self._run(part)
                except Exception as own:  # noqa: BLE001 - whatever it is, it is this request's
                    self._scheduler.fail(part, own)
        finally:
            self._runner.settle()

    def _run(self, plan: StepPlan) -> None:
        chunks = plan.live
        for chunk in chunks:
            self._branches[chunk.request.id][0].note_step()
        result = self._runner.run(chunks, plan.copies)
        for index in result.not_finite():  # before its pages are published to others
            self._scheduler.fail_request(chunks[index].request.id, NOT_FINITE)
        for index, chunk in enumerate(chunks):
            self._read_prompt_logprobs(index, chunk, result)
            self._pool(index, chunk, result)
        wanted = [index for index, chunk in enumerate(chunks) if chunk.sample]
        sampled = self._sample(result, chunks, wanted)
        self._note_reads(result)
        for request in self._scheduler.commit(
            plan, {name: each.token for name, each in sampled.items()}
        ):
            self._take(request, sampled[request.id])

    def _take(self, request: Request, sampled: Sampled) -> None:
        """Hands a committed token to its completion; what goes wrong there is its own affair."""
        generation, branch = self._branches[request.id]
        try:
            stop = generation.take(branch, sampled)
        except Exception as error:  # noqa: BLE001 - e.g. a decoder that cannot go on
            self._scheduler.fail_request(request.id, error, publish=True)
            return
        if stop is not None or branch.state.is_complete:
            self._stop_by_text(request, stop)

    def _note_reads(self, result: StepResult) -> None:
        for run, counts in result.reads:
            decodes = run.start >= len(run.request.prompt)
            self.reads.add(counts, decodes)
            self._branches[run.request.id][0].reads.add(counts, decodes)

    def _stop_by_text(self, request: Request, stop: str | None) -> None:
        """A stop string, or the end of a structure (None), outranks the length limit that the same
        token may have reached."""
        if not self._scheduler.finish(request.id, "stop", stop):
            request.finish_reason, request.stop_reason = "stop", stop

    def _sample(
        self, result: StepResult, chunks: Sequence[Chunk], wanted: Sequence[int]
    ) -> dict[str, Sampled]:
        """A token for each chunk that wants one; a row that cannot be sampled fails its request
        alone.
        """
        if not wanted:
            return {}
        states = [self._branches[chunks[index].request.id][1].state for index in wanted]
        found = self._sampler.sample(result.last_logits(wanted), states)
        sampled = {}
        for index, each in zip(wanted, found, strict=True):
            request_id = chunks[index].request.id
            if each.error is not None:
                self._scheduler.fail_request(request_id, each.error)
            else:
                sampled[request_id] = each
        return sampled

    def _pool(self, index: int, chunk: Chunk, result: StepResult) -> None:
        pooling = self._branches[chunk.request.id][0].pooling
        if pooling is not None:
            for start, hidden in result.chunk_hidden(index):
                pooling.add(start, hidden)

    def _read_prompt_logprobs(self, index: int, chunk: Chunk, result: StepResult) -> None:
        generation, branch = self._branches[chunk.request.id]
        wanted = generation.prompt_logprobs
        if wanted is None or wanted.complete or branch is not generation.branches[0]:
            return
        try:
            for start, logits in result.chunk_logits(index):
                wanted.add(start, logits)
        except SaccadeError as error:  # its logits are not finite
            self._scheduler.fail_request(chunk.request.id, error)
