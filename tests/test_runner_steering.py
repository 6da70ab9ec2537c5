"""How a running agent is steered: input and receipts, questions, limits, parking; and a conversation too long."""

import os
import signal
from pathlib import Path

from runnerlab import DONE, Door, Lab, bash, call, is_gone, keeper, order, prefix_is_kept, texts, until

from agentd import jobdir
from agentd.runners.parking import Parking


def test_a_message_while_a_long_tool_runs(lab: Lab) -> None:
    door = Door(lab)
    lab.serve([bash(door.command), DONE])
    run = lab.start()
    door.until_reached()
    run.send("message", "look at b too")
    run.send("message", "and at c")
    run.until("accepted", 2)
    assert run.records("consumed") == []
    door.open()
    assert run.wait() == 0
    assert order(run, "call", "accepted", "result", "consumed", "request") == [
        *("request", "call", "accepted", "accepted", "result", "consumed", "consumed", "request"),
    ]
    assert [record["n"] for record in run.records("consumed")] == [1, 2]
    result, *heard = lab.requests()[1]["body"]["messages"][-1]["content"]
    assert result["type"] == "tool_result"
    assert [block["text"] for block in heard] == [
        "Message from your user:\nlook at b too",
        "Message from your user:\nand at c",
    ]


def test_a_message_that_comes_with_the_last_answer_is_not_lost(lab: Lab) -> None:
    lab.serve([{"say": "I think I am done.", "delay": 0.5}, {"say": "Now I am."}])
    run = lab.start()
    until(lab.requests)
    run.send("message", "wait")
    assert run.wait() == 0
    assert run.end()["text"] == "Now I am."
    assert len(run.records("consumed")) == 1


def test_an_interrupt_during_a_tool(lab: Lab) -> None:
    door = Door(lab)
    lab.serve([{"calls": [call("bash", command=f"echo $$; {door.command}"), call("bash", command="touch no")]}, DONE])
    run = lab.start()
    door.until_reached()
    run.send("interrupt")
    waiting = run.until("waiting")
    assert waiting["why"] == "interrupted"
    pid = int(run.results()[0].split()[0])
    assert is_gone(pid)
    run.send("message", "finish up")
    assert run.wait() == 0
    assert run.results()[0].endswith("[agentd: interrupted; the command was ended]")
    assert run.results()[1] == "Not run: your user interrupted you."
    assert not (lab.worktree / "no").exists()
    assert texts(lab.requests()[1]["body"]["messages"][-1]) == [
        "[agentd] Your user interrupted you.",
        "Message from your user:\nfinish up",
    ]


def test_an_interrupt_during_a_request(lab: Lab) -> None:
    story = {"say": "a long story " * 100, "pause": 0.5}
    lab.serve({"scripts": [{"turns": [story], "replies": [{"when": "say it shortly", "say": "It was."}]}]})
    run = lab.start()
    until(lab.requests)
    run.send("interrupt", "say it shortly")
    assert run.wait() == 0
    assert run.end()["text"] == "It was."
    (failed,) = run.records("failed")
    assert failed["why"] == "interrupted"
    assert texts(lab.requests()[1]["body"]["messages"][0])[1:] == [
        "[agentd] Your user interrupted you.",
        "Message from your user:\nsay it shortly",
    ]


def test_a_question_is_asked_and_answered(lab: Lab) -> None:
    lab.serve([{"calls": [call("ask", question="Which one?", options=["a", "b"])]}, DONE])
    run = lab.start()
    waiting = run.until("waiting")
    (question,) = run.records("question")
    assert (question["text"], question["options"], waiting["question"]) == ("Which one?", ["a", "b"], question["id"])
    run.send("answer", "a", question["id"])
    assert run.wait() == 0
    assert run.results() == ["a"]
    assert order(run, "question", "waiting", "accepted", "consumed", "running", "result") == [
        *("question", "waiting", "accepted", "consumed", "running", "result"),
    ]
    assert run.stderr() == "agentd: waiting for an answer to q1: Which one?\n"


def test_an_interrupt_during_a_question(lab: Lab) -> None:
    lab.serve([{"calls": [call("ask", question="Which one?")]}, DONE])
    run = lab.start()
    run.until("waiting")
    run.send("interrupt", "do not ask, choose")
    assert run.wait() == 0
    assert run.results() == ["Interrupted by your user."]
    assert order(run, "waiting", "running", "result", "consumed") == ["waiting", "running", "result", "consumed"]


def test_a_question_outlives_the_runner_and_so_does_its_answer(lab: Lab) -> None:
    lab.serve([{"calls": [call("ask", question="Which one?")]}, DONE])
    run = lab.start()
    run.until("waiting")
    run.put("answer", "the second", "q1")
    run.kill()
    again = run.resumed()
    assert again.wait() == 0
    assert [question["id"] for question in again.records("question")] == ["q1"]
    assert again.results() == ["the second"]
    assert len(lab.requests()) == 2


def test_a_message_instead_of_an_answer(lab: Lab) -> None:
    lab.serve([{"calls": [call("ask", question="Which one?")]}, DONE])
    run = lab.start()
    run.until("waiting")
    run.send("message", "never mind")
    assert run.wait() == 0
    assert run.results() == ["There is no answer; a message came instead."]
    assert texts(lab.requests()[1]["body"]["messages"][-1]) == ["Message from your user:\nnever mind"]


def test_sent_to_one_that_died_before_it_looked(lab: Lab) -> None:
    door = Door(lab)
    lab.serve([bash(door.command), DONE])
    run = lab.start()
    door.until_reached()
    run.put("message", "hello")
    run.kill()
    again = run.resumed()
    assert again.wait() == 0
    assert [record["text"] for record in again.records("accepted")] == ["hello"]
    assert "Message from your user:\nhello" in texts(lab.requests()[1]["body"]["messages"][-1])
    door.open()  # what the first one had begun: no keeper is here to end it


def test_a_line_that_is_no_input_is_told_and_left_out(lab: Lab) -> None:
    lab.serve([{"say": "Well.", "delay": 0.5}, DONE])
    run = lab.start()
    run.until("request")
    with open(run.path / "input.ndjson", "a") as file:
        file.write("nonsense\n")
    run.send("message", "hello")
    assert run.wait() == 0
    assert "left out a line of input.ndjson that is no input: b'nonsense" in run.stderr()
    assert len(run.records("consumed")) == 1


# --- the keeper, parking, compaction ------------------------------------------------------------------------


def test_an_endless_loop_of_calls_ends_at_the_limit(lab: Lab) -> None:
    lab.serve([{**bash("echo again >> log"), "repeat": True}])
    run = lab.start(limits_asked=True)
    with keeper(run.path, lambda turn: {"go": turn <= 20, "why": "limit: turns 20"}) as kept:
        assert run.wait() == 0
        until(lambda: "end" in kept.news)
    assert kept.turns == list(range(1, 22))
    assert len(lab.requests()) == 20
    assert (run.end()["outcome"], run.end()["text"]) == ("stopped", "limit: turns 20")


def test_a_warning_of_the_keeper_reaches_the_model(lab: Lab) -> None:
    lab.serve([bash("echo 1"), DONE])
    run = lab.start(limits_asked=True)
    with keeper(
        run.path, lambda turn: {"go": True, "warn": "80 % of the money is spent."} if turn == 2 else {"go": True}
    ):
        assert run.wait() == 0
    assert texts(lab.requests()[1]["body"]["messages"][-1]) == ["[agentd] 80 % of the money is spent."]


def test_without_a_keeper_nothing_is_spent(lab: Lab) -> None:
    lab.serve([DONE])
    run = lab.start(limits_asked=True)
    until((run.path / "stderr").exists)
    until(run.stderr)
    assert run.stderr() == "agentd: no keeper answers; waiting for one\n"
    assert lab.requests() == []
    with keeper(run.path, lambda turn: {"go": True}):
        assert run.wait() == 0


def test_a_keeper_that_dies_before_it_answers_is_waited_for(lab: Lab) -> None:
    lab.serve([DONE])
    run = lab.start(limits_asked=True)
    listener = jobdir.listen(f"{run.path}/keeper.sock")
    link, _ = listener.accept()
    listener.close()
    link.close()
    with keeper(run.path, lambda turn: {"go": True}) as kept:
        assert run.wait() == 0
    assert kept.turns == [1]


def test_a_parking_is_only_ever_put_off(tmp_path: Path) -> None:
    parking = Parking(str(tmp_path / "parking"))
    assert parking.shared() == (0.0, "")
    parking.share(2000.0, "529 overloaded\nby order")
    parking.share(1000.0, "429")
    assert parking.shared() == (2000.0, "529 overloaded by order")
    (tmp_path / "parking").write_text("nonsense")
    assert parking.shared() == (0.0, "")
    Parking(str(tmp_path / "none" / "parking")).share(1.0, "")
    assert Parking(None).shared() == (0.0, "")


def test_who_shares_a_credential_shares_its_parking(lab: Lab) -> None:
    parking = str(lab.tmp_path / "parking")
    lab.serve(
        {"scripts": [{"task": "one", "turns": [{**DONE, "fault": "429", "retry_after": 1.5}]}, {"turns": [DONE]}]}
    )
    one = lab.start("one", parking=parking)
    until_when = one.until("parked")["until"]
    two = lab.start("two", parking=parking)
    assert (two.wait(), one.wait()) == (0, 0)
    assert two.records("parked")[0]["until"] == until_when
    assert two.records("request")[0]["at"] >= until_when
    assert len(two.records("request")) == 1


def test_a_message_is_accepted_while_it_is_parked(lab: Lab) -> None:
    lab.serve([{**DONE, "fault": "529", "retry_after": 1.0}])
    run = lab.start()
    run.until("parked")
    run.send("message", "hello")
    accepted = run.until("accepted")
    assert run.wait() == 0
    assert accepted["at"] < run.records("running")[0]["at"]
    _, second = lab.requests()
    assert "Message from your user:\nhello" in texts(second["body"]["messages"][-1])


SUMMARY = {
    "when": "goes on from a summary, which you write now",
    "say": "I did three steps. [the script goes on at turn 3]",
    "usage": {"input_tokens": 7000, "output_tokens": 50},
}


def test_a_conversation_that_grows_too_long_goes_on_from_a_summary(lab: Lab) -> None:
    step = {**bash("echo step >> log; echo ok"), "usage": {"input_tokens": 3000, "output_tokens": 10}}
    last = {**step, "usage": {"input_tokens": 6000, "output_tokens": 10}}
    noted = {"calls": [call("note", text="the plan")]}
    turns = [noted, step, last, bash("wc -l < log"), DONE]
    run = lab.play({"scripts": [{"turns": turns, "replies": [SUMMARY]}]}, "a long task", profile={"context": 5000})
    assert run.code == 0
    assert run.results()[-1] == "2"
    (compacted,) = run.records("compacted")
    assert compacted["tokens"] == 6010 and compacted["usage"]["input_tokens"] == 7000
    asked, follows = lab.requests()[3:5]
    assert asked["body"]["tool_choice"] == {"type": "none"}
    assert prefix_is_kept([lab.requests()[2], asked])
    (message,) = follows["body"]["messages"]
    assert texts(message)[0].startswith("a long task")
    assert "I did three steps." in texts(message)[1]
    assert "- the plan" in texts(message)[2]
    assert follows["bytes"] < asked["bytes"] + 100
    again = run.resumed()
    assert again.wait() == 0 and len(lab.requests()) == 6


def test_a_summary_that_cannot_be_had_leaves_out_old_results(lab: Lab) -> None:
    step = bash("head -c 2000 /dev/zero | tr '\\0' x")
    last = {**step, "usage": {"input_tokens": 6000, "output_tokens": 10}}
    refusing = {"when": "goes on from a summary", "fault": "refusal"}
    run = lab.play(
        {"scripts": [{"turns": [step] * 8 + [last, DONE], "replies": [refusing]}]}, profile={"context": 5000}
    )
    assert run.code == 0
    (compacted,) = run.records("compacted")
    assert compacted["why"] == "the model wrote no summary"
    bodies = lab.requests()[-1]["body"]["messages"]
    results = [block["content"] for message in bodies for block in message["content"] if block["type"] == "tool_result"]
    assert [len(result) for result in results[-6:]] == [2000] * 6
    assert results[:3] == ["[left out by agentd: the conversation had grown too long]"] * 3


def test_terminated_it_ends_its_commands_and_says_so(lab: Lab) -> None:
    door = Door(lab)
    lab.serve([bash("sleep 1000 & echo $!"), bash(f"{door.command}"), DONE])
    run = lab.start()
    door.until_reached()
    pid = int(run.results()[0].split()[0])
    run.kill(signal.SIGTERM)
    assert is_gone(pid)


def test_what_runs_in_the_background_is_left_to_the_keeper(lab: Lab) -> None:
    lab.serve([bash("sleep 1000 & echo $!"), DONE])
    run = lab.start(kept=True)
    assert run.wait() == 0
    pid = int(run.results()[0].split()[0])
    assert not is_gone(pid)
    os.kill(pid, signal.SIGKILL)


def test_a_notice_answers_no_question_and_lets_nobody_go_on(lab: Lab) -> None:
    """What agentd itself has to say is heard at the next turn, and is nobody's word."""
    lab.serve([{"calls": [call("ask", question="Which one?")]}, {"calls": [call("ask", question="Sure?")]}, DONE])
    run = lab.start()
    run.until("waiting")
    run.send("notice", "[agentd:overlap] somebody writes there too")
    run.until("accepted")
    run.send("answer", "a", "q1")
    run.until("waiting", 2)
    assert run.results() == ["a"]
    heard = lab.requests()[1]["body"]["messages"][-1]["content"]
    assert [block.get("text") for block in heard] == [None, "[agentd:overlap] somebody writes there too"]
    run.send("interrupt")
    run.until("waiting", 3)
    run.send("notice", "[agentd:overlap] again")
    run.until("consumed", 4)
    assert len(run.records("request")) == 2, "it is still held"
    run.send("message", "go on")
    assert run.wait() == 0
