"""The conversation of an agent with its model, written once. It does no I/O: everything is passed in.

Each step looks at what is owed (a result of a tool, an answer of the model, nothing) and pays it. What happens is
written to the transcript first and then applied to the conversation, so a conversation that is read back from a
transcript is simply run on:

* an answer that is recorded is never asked for again; a request without a recorded answer is repeated,
* a tool call is recorded before it runs; one without a result is told to the model as unknown, and not run again,
* one that was not begun yet is run now.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from . import compact, conversation, prompt
from .answers import Answer, Block, Broken, Busy, Rejected, TooLong
from .conversation import Call, Conversation, Record
from .parts import Gate, Inbox, Model, Parking, Tools, Transcript

T = TypeVar("T")
LONG_S = 0.3
"""A tool that runs for so long is told of: before that, the next request tells enough."""
MOST_STUMBLES = 5
"""So many useless answers in a row are no accident: the run ends before more is spent."""
AFTER_STUMBLE = 0.25


class Ended(Exception):
    """The run is over. ``code`` is the process's, ``outcome`` the transcript's word for it."""

    def __init__(self, code: int, outcome: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.outcome = outcome


class Loop:
    def __init__(
        self,
        conversation: Conversation,
        model: Model,
        transcript: Transcript,
        inbox: Inbox,
        gate: Gate,
        parking: Parking,
        say: Callable[[str], None],
        context: int | None = None,
    ) -> None:
        self.conversation = conversation
        self.model = model
        self.tools: Tools
        self.transcript = transcript
        self.inbox = inbox
        self.gate = gate
        self.parking = parking
        self.say = say
        self.context = context
        self.call: Call | None = None
        self.refusals = 0
        self.parked_until = 0.0
        self.is_parked = False
        self.parked_why = ""
        self.asked: set[str] = set()
        """Calls whose question is in the transcript of this attempt."""
        self.is_resumed = conversation.turns > 0

    async def run(self) -> Ended:
        try:
            for call in self.conversation.was_killed_in():
                self.write("result", id=call.id, content=conversation.UNKNOWN, error=True, unknown=True)
            while True:
                await self.step()
        except Ended as ended:
            self.write("end", outcome=ended.outcome, code=ended.code, text=str(ended))
            self.gate.tell("end")
            return ended

    async def step(self) -> None:
        self.accept()
        state = self.conversation
        if state.calls:
            await self.run_call(next(iter(state.calls.values())))
        elif state.is_models_turn():
            await self.take_turn()
        elif state.pending:
            self.consume()
        elif state.stop in ("max_tokens", "model_context_window_exceeded"):
            if state.stumbles >= MOST_STUMBLES:
                raise Ended(
                    1, "failed", f"the answer was cut off at the limit of tokens {state.stumbles} times in a row"
                )
            self.write("user", text=conversation.CUT_OFF)
        elif state.stop == "refusal":
            raise Ended(2, "refused", state.last_text() or "the model refused to answer")
        else:
            raise Ended(0, "done", state.last_text())

    def write(self, kind: str, /, **fields: object) -> Record:
        record = self.transcript.write(kind, **fields)
        self.conversation.apply(record)
        return record

    # --- input ----------------------------------------------------------------------------------------------

    def accept(self) -> None:
        for sent in self.inbox.look():
            if (sent["n"], sent["sent"]) not in self.conversation.accepted:
                self.write("accepted", **sent)
                self.gate.tell("accepted")

    def consume(self) -> None:
        """Put what was sent into the conversation, where the model reads it next."""
        for sent in list(self.conversation.pending.values()):
            self.write("consumed", n=sent["n"], sent=sent["sent"], turn=self.conversation.turns + 1)
            self.gate.tell("consumed")

    def is_interrupted(self) -> bool:
        return any(sent["kind"] == "interrupt" for sent in self.conversation.pending.values())

    async def unless_interrupted(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What comes of it; None if it was interrupted and left nothing. Receipts are given meanwhile."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                nudge = asyncio.ensure_future(self.inbox.nudged())
                await asyncio.wait({task, nudge}, return_when=asyncio.FIRST_COMPLETED)
                nudge.cancel()
                self.accept()
                if self.is_interrupted() and not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        return await task
                    return None
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # --- tools ----------------------------------------------------------------------------------------------

    async def run_call(self, call: Call) -> None:
        if self.is_interrupted():
            self.write("result", id=call.id, content="Not run: your user interrupted you.", error=True)
            return
        if call.invalid is not None:
            self.write("result", id=call.id, content=call.invalid, error=True)
            return
        if not call.is_started:
            self.write("call", id=call.id, tool=call.tool, input=call.input)
        self.call = call
        telling = asyncio.get_running_loop().call_later(LONG_S, self.gate.tell, "call")
        try:
            done = await self.unless_interrupted(self.tools.run(call.tool, call.input))
        finally:
            telling.cancel()
        if done is None:
            self.write("result", id=call.id, content="Interrupted by your user.", error=True)
        else:
            self.write("result", id=call.id, content=done.text, error=done.is_error)

    def note(self, text: str) -> None:
        self.write("note", text=text)
        self.gate.tell("note")

    async def ask(self, question: str, options: list[str]) -> str:
        """The answer of whoever delegated. A message that comes instead lets the model go on, too."""
        assert self.call is not None
        state = self.conversation
        known = state.questions.get(self.call.id)
        number = known["id"] if known else f"q{len(state.questions) + 1}"
        if self.call.id not in self.asked:  # who reads this attempt's transcript has no other
            self.asked.add(self.call.id)
            self.write("question", id=number, call=self.call.id, text=question, options=options)
        is_told = False
        try:
            while number not in state.answers:
                self.accept()
                kinds = {sent["kind"] for sent in state.pending.values() if sent["question"] in (number, None)}
                if "answer" in kinds:
                    self.take_answer(number)
                elif "message" in kinds:
                    break
                else:
                    if not is_told:
                        self.transcript.sync()
                        self.wait_for("question", f"waiting for an answer to {number}: {question}", question=number)
                    is_told = True
                    await self.inbox.nudged()
        finally:
            if is_told:
                self.go_on()
        return state.answers.get(number, "There is no answer; a message came instead.")

    def take_answer(self, number: str) -> None:
        for sent in self.conversation.pending.values():
            if sent["kind"] == "answer" and sent["question"] in (number, None):
                turn = self.conversation.turns + 1
                self.write("consumed", n=sent["n"], sent=sent["sent"], turn=turn, question=number)
                self.gate.tell("consumed")
                return

    def wait_for(self, why: str, said: str, **fields: object) -> None:
        self.write("waiting", why=why, **fields)
        self.say(said)
        self.gate.tell("waiting")

    def go_on(self) -> None:
        self.write("running")
        self.gate.tell("running")

    # --- the model ------------------------------------------------------------------------------------------

    async def take_turn(self) -> None:
        """One request, and what comes of it. What does not come to an answer is owed again in the next step."""
        if self.is_interrupted():
            await self.hear()  # whoever interrupts does not wait until a parking is over
        if not await self.pass_parking():
            return
        await self.hear()
        await self.pass_gate()
        if self.is_interrupted():
            return
        self.consume()  # what came while a keeper was waited for
        state = self.conversation
        if compact.is_due(state.tokens, self.context) and len(state.messages) > 1:
            return await self.compact()
        answer = await self.request(state.messages)
        if answer is not None:
            self.keep(answer)

    async def hear(self) -> None:
        """All that was sent is in the conversation, and nobody holds the agent back."""
        if self.is_resumed:
            self.is_resumed = False
            self.write("user", text=prompt.RESUMED)
        self.consume()
        if not self.conversation.is_held:
            return
        self.wait_for("interrupted", "interrupted; waiting for a message")
        while self.conversation.is_held:
            await self.inbox.nudged()
            self.accept()
            self.consume()
        self.go_on()
        if self.is_parked:
            self.tell_parked(self.parked_why)

    async def pass_gate(self) -> None:
        answer = await self.unless_interrupted(self.gate.ask(self.conversation.turns + 1))
        if answer is None:
            return
        if not answer["go"]:
            raise Ended(0, "stopped", str(answer.get("why") or "a limit is reached"))
        if answer.get("warn"):
            self.write("user", text=f"[agentd] {answer['warn']}")

    async def pass_parking(self) -> bool:
        """Whether the model may be asked now; False if the wait for it was interrupted."""
        until, why = self.parking.shared()
        if self.parking.is_over(max(until, self.parked_until)):
            return True
        if until > self.parked_until:
            self.parked_until = until
            self.tell_parked(why or "others with this credential wait")
        await self.unless_interrupted(self.parking.wait(self.parked_until))
        if self.is_interrupted():
            return False
        if self.is_parked:
            self.is_parked = False
            self.go_on()
        return await self.pass_parking()

    def tell_parked(self, why: str) -> None:
        self.is_parked, self.parked_why = True, why
        self.write("parked", why=why, until=round(self.parked_until, 3))
        self.say(f"parked: {why}")
        self.gate.tell("parked")

    async def request(self, messages: list[Block], **more: object) -> Answer | None:
        """A whole answer, or None: it was interrupted, or is to be tried again."""
        state = self.conversation
        parameters = self.model.parameters(state.system, self.tools.schema, messages) | more
        self.write("request", turn=state.turns + 1)
        try:
            answer = await self.unless_interrupted(self.model.answer(parameters, self.transcript.partial))
        except Busy as busy:
            self.write("failed", why=str(busy))
            self.refusals += 1
            # In milliseconds, as the others read it: what we shared ourselves is not told a second time.
            self.parked_until = round(self.parking.until(self.refusals, busy.after), 3)
            if busy.is_shared:
                self.parking.share(self.parked_until, str(busy))
            self.tell_parked(str(busy))
        except Broken as broken:
            self.stumble(str(broken), broken.usage)
        except TooLong as error:
            self.write("failed", why=str(error))
            self.shorten(str(error))
        except Rejected as error:
            self.write("failed", why=str(error))
            raise Ended(1, "failed", f"the model server rejects the request: {error}") from None
        else:
            self.refusals = 0
            if answer is None:
                self.write("failed", why="interrupted", usage=self.model.usage or None)
            return answer
        return None

    def stumble(self, why: str, usage: dict[str, Any] | None) -> None:
        self.write("failed", why=why, usage=usage, counts=True)
        count = self.conversation.stumbles
        if count >= MOST_STUMBLES:
            raise Ended(1, "failed", f"no answer could be used, {count} times in a row; the last time: {why}")
        self.say(f"{why}; trying again ({count} of {MOST_STUMBLES - 1})")
        self.parked_until = self.parking.until(count, first=AFTER_STUMBLE)

    def keep(self, answer: Answer) -> None:
        if answer.content:
            self.write("assistant", id=answer.id, model=answer.model, content=answer.content, stop=answer.stop,
                       usage=answer.usage, **({"invalid": answer.invalid} if answer.invalid else {}))  # fmt: skip
            self.transcript.sync()
        elif answer.stop == "refusal":
            self.write("failed", why="refused", usage=answer.usage)
            raise Ended(2, "refused", "the model refused to answer")
        else:
            self.stumble(f"the model's answer was empty ({answer.stop})", answer.usage)
            self.write("user", text=conversation.EMPTY)

    # --- a conversation that grows too long -----------------------------------------------------------------

    async def compact(self) -> None:
        state = self.conversation
        answer = await self.request(compact.request(state.messages), tool_choice={"type": "none"})
        if answer is None:
            return
        summary = "\n\n".join(block["text"] for block in answer.content if block["type"] == "text")
        if not summary or answer.stop == "refusal":
            return self.shorten("the model wrote no summary", answer.usage)
        anew = compact.begun_anew(state.task, summary, state.notes, compact.unsaid(state.messages))
        self.write("compacted", messages=anew, tokens=state.tokens, usage=answer.usage)
        self.transcript.sync()

    def shorten(self, why: str, usage: dict[str, Any] | None = None) -> None:
        messages = compact.shortened(self.conversation.messages)
        if messages is None:
            raise Ended(1, "failed", f"the conversation is too long, and nothing is left to take out: {why}")
        self.write("compacted", messages=messages, tokens=self.conversation.tokens, why=why, usage=usage)
        self.transcript.sync()
