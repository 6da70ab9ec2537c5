"""A coding agent's cost: ours, as a job of a real daemon, beside the vendors' command lines; the same scripted task.

One turn, for time: from asking until one is told of the end. Ten turns, for memory. A few turns, for bytes. The model
server answers at once, so what is measured is the agent and not its model.
"""

import contextlib
import itertools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from . import vendors
from .contest import TASK, Look, Ours, Request, Served, Theirs, Took
from .figures import median, mib, ms, percentile, ratio, ratio_text
from .lab import Lab, make_repository, output
from .report import Goal, Result, Table

WORKTREE, IN_PLACE = "agentd delegate", "agentd delegate --in-place"
DONE = {"say": "Done."}
HOLD_S = 0.8
SETTLED_S = 0.3
ONE_TURN = [DONE]
FEW_TURNS = [
    {"say": "I look.", "run": "ls"},
    {"say": "I read the first file.", "run": "cat d000/f00.txt"},
    {"say": "And the state of the repository.", "run": "git status --short"},
    DONE,
]
STEP = {"say": "I go on with the next part, and look at what is there.", "run": "ls d000; cat d000/f01.txt"}
TEN_TURNS = [*[STEP] * 9, DONE | {"hold": HOLD_S}]
TIME_GOAL, TIME_HOPE = 1 / 5, 1 / 10
MEMORY_GOAL = 1 / 15
BYTES_GOAL, BYTES_HOPE = 1 / 2, 1 / 4
OURS_A_ROUND = 4
SLOW_S, SLOW_EVERY = 2.0, 4
STEPS = (
    ("request, git's answers, spec.json", "job.created"),
    ("admitted", "job.preparing worktree|job.starting"),
    ("worktree: notes, add", "job.preparing checkout"),
    ("worktree: checkout", "job.preparing fill"),
    ("worktree: fill, its record", "worktree.made"),
    ("keeper and agent forked", "forked"),
    ("agent.json, agent let go, first record", "transcript start"),
    ("connection, keeper's leave, request written", "transcript request"),
    ("request sent and read by the server", "at the server"),
    ("answer read", "transcript assistant"),
    ("transcript synced", "transcript end"),
    ("agent's exit, log synced", "exit.json"),
    ("exit.json synced, tree swept", "end.json"),
    ("end.json synced, daemon looks", "job.completed"),
    ("committed, told", "told"),
)
Agent = Ours | Theirs


class Found(NamedTuple):
    took: dict[str, list[Took]]
    looks: dict[str, list[list[Look]]]
    agents: dict[str, list[int]]
    """The pids of our agents."""
    shared: Look
    requests: dict[str, list[Request]]
    skipped: list[str]
    refused: set[str]
    load: tuple[float, float]


def measure(lab: Lab) -> Result:
    if vendors.sdk_is_missing():
        return Result("agents", "**Not measured:** the Anthropic SDK is missing; pip install 'agentd[agent]'")
    repository = make_repository(lab.place("agents") / "repo", 100)
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(lab.state("agents"))
        servers = [
            stack.enter_context(Served(lab, name, turns))
            for name, turns in (("one", ONE_TURN), ("few", FEW_TURNS), ("ten", TEN_TURNS))
        ]
        ours = [Ours(state, WORKTREE, repository, False), Ours(state, IN_PLACE, repository, True)]
        for agent in ours:
            stack.callback(agent.close)
        theirs, skipped = installed(lab, repository)
        found = contest(lab, ours, theirs, servers, skipped)
    return told(found, lab)


def installed(lab: Lab, repository: Path) -> tuple[list[Theirs], list[str]]:
    theirs, skipped = [], []
    for vendor in vendors.VENDORS:
        path = vendors.program(lab.clis, vendor.name)
        if path is None:
            where = f"in {lab.clis}" if lab.clis else "in PATH"
            skipped.append(f"`{vendor.command}` is not installed {where}: **skipped** (bench/README.md says how)")
        else:
            theirs.append(Theirs(lab, vendor, path, repository))
    return theirs, skipped


def contest(lab: Lab, ours: list[Ours], theirs: list[Theirs], servers: list[Served], skipped: list[str]) -> Found:
    one, few, ten = servers
    load = os.getloadavg()[0]
    warm, requests = {}, {}
    for agent in [*ours, *theirs]:
        try:
            agent.run(one)  # homes are made, caches filled
            warm[agent.name] = agent.run(one)[0].whole
            requests[agent.name] = agent.run(few)[1]
        except RuntimeError as error:
            if agent in ours:
                raise
            skipped.append(f"`{agent.name}` does not do the task: {error}")
    able = [agent for agent in theirs if agent.name in requests]
    took = timed(lab, ours, able, one, warm)
    looks: dict[str, list[list[Look]]] = {}
    agents: dict[str, list[int]] = {}
    for _ in range(lab.pick(1, 2)):
        for agent in able:
            looks.setdefault(agent.name, []).append(agent.watched(ten))
    for _ in range(lab.pick(1, 4)):
        for mine in ours:
            seen, pid = mine.watched(ten)
            looks.setdefault(mine.name, []).append(seen)
            agents.setdefault(mine.name, []).append(pid)
    refused = {address for server in servers for address in server.refused}
    shared = ours[0].shared()
    return Found(took, looks, agents, shared, requests, skipped, refused, (load, os.getloadavg()[0]))


def timed(
    lab: Lab, ours: list[Ours], theirs: list[Theirs], server: Served, warm: dict[str, float]
) -> dict[str, list[Took]]:
    """In changing order. Ours go several times a round, for their p99; who is slow goes in some rounds only."""
    took: dict[str, list[Took]] = {}
    for number in range(lab.pick(3, 20)):
        due: list[Agent] = [one for one in theirs if warm[one.name] < SLOW_S or number % SLOW_EVERY == 0]
        due += [one for one in ours for _ in range(OURS_A_ROUND)]
        for agent in lab.random.sample(due, len(due)):
            took.setdefault(agent.name, []).append(agent.run(server)[0])
    return took


# --- what was found -------------------------------------------------------------------------------------------


def told(found: Found, lab: Lab) -> Result:
    programs = [output(path, "--version") for v in vendors.VENDORS if (path := vendors.program(lab.clis, v.name))]
    refused = ", ".join(sorted(found.refused)) or "nobody"
    return Result(
        title="agents: a scripted task, beside the vendors' command lines",
        how=f"The task: *{TASK}* One model server on loopback answers all of them at once, from the same script."
        " A vendor's"
        " time is that of its process, in the folder, with a warm home; ours is from before the daemon gets the request"
        " until a subscriber has read the completion, by then durable, with a worktree made and without."
        f" Interleaved in changing order, ours {OURS_A_ROUND} times a round. Memory: after ten turns, while the last"
        " answer is awaited, and the highest at any moment; private pages (USS) and proportional ones (PSS) of the"
        " whole tree of processes."
        f" Load before {found.load[0]:.1f}, after {found.load[1]:.1f}.",
        tables=[time_table(found), steps_table(found), memory_table(found), bytes_table(found)],
        goals=[*time_goals(found), *memory_goals(found), *bytes_goals(found)],
        notes=[
            *found.skipped,
            f"Versions: {', '.join(text.splitlines()[-1] for text in programs) or 'none'}.",
            f"Whom they tried to reach besides, and could not: {refused}.",
            "p99 of fewer than a hundred samples is the slowest of them.",
        ],
        raw=raw(found),
    )


def names_of(found: Found) -> list[str]:
    return [name for name in (WORKTREE, IN_PLACE, *(v.command for v in vendors.VENDORS)) if name in found.took]


def whole(found: Found, name: str) -> list[float]:
    return [one.whole for one in found.took[name]]


def rivals(found: Found) -> list[str]:
    return [name for name in names_of(found) if name not in (WORKTREE, IN_PLACE)]


def time_table(found: Found) -> Table:
    fastest = min(rivals(found), key=lambda name: median(whole(found, name)), default=None)
    rows = []
    for name in names_of(found):
        times, firsts = whole(found, name), [one.to_request for one in found.took[name]]
        cells = [ms(figure) for column in (times, firsts) for figure in (median(column), percentile(column, 0.99))]
        against = ratio_text(times, whole(found, fastest)) if fastest else "–"
        rows.append((name, str(len(times)), *cells, against))
    head = ("", "runs", "one turn, ms: median", "p99", "start to first request: median", "p99", "÷ the fastest of them")
    return Table("Time of a task of one turn", head, rows)


def steps_table(found: Found) -> Table:
    """Where each millisecond goes. A step that one of the two does not have is part of the one behind it."""
    columns = [spent(found.took[name]) for name in (WORKTREE, IN_PLACE)]
    rows = [(step, *(ms(median(c[step])) if step in c else "–" for c in columns)) for step, _ in STEPS]
    answered = [
        ms(median([one.moments["answered"] - one.moments["asked"] for one in found.took[name]]))
        for name in (WORKTREE, IN_PLACE)
    ]
    rows.append(("(meanwhile, from asking: the prompt is back)", *answered))
    return Table("Where our milliseconds go (medians)", ("until", WORKTREE, IN_PLACE), rows)


def spent(took: list[Took]) -> dict[str, list[float]]:
    spent: dict[str, list[float]] = {}
    for one in took:
        before = one.moments["asked"]
        for step, names in STEPS:
            at = next((one.moments[name] for name in names.split("|") if name in one.moments), None)
            if at is not None:
                spent.setdefault(step, []).append(at - before)
                before = at
    return spent


def after_last_turn(looks: list[Look]) -> list[Look]:
    """Those while the last answer is awaited: the run ends soon after it."""
    end = looks[-1].at
    return [look for look in looks if end - HOLD_S + SETTLED_S <= look.at <= end - SETTLED_S / 3]


def kept(found: Found, name: str) -> list[float]:
    return [look.private() for run in found.looks[name] for look in after_last_turn(run)]


def alone(found: Found, name: str) -> list[tuple[int, int]]:
    """Private and proportional bytes of the agent's process, without its keeper."""
    runs = zip(found.looks[name], found.agents[name], strict=True)
    return [look.sizes[pid] for run, pid in runs for look in after_last_turn(run) if pid in look.sizes]


def memory_table(found: Found) -> Table:
    rows = []
    for name in names_of(found):
        runs = found.looks[name]
        shares = [look.proportional() for run in runs for look in after_last_turn(run)]
        peaks = [max(look.private() for look in run) for run in runs]
        rows.append((name, mib(median(kept(found, name))), mib(median(shares)), mib(median(peaks))))
        if name in found.agents:
            columns = zip(*alone(found, name), strict=True)
            rows.append(("– the agent's process alone", *(mib(median(column)) for column in columns), ""))
    shared = found.shared
    rows.append(("– daemon and zygotes, once for all jobs", mib(shared.private()), mib(shared.proportional()), ""))
    return Table("MiB of memory, ten turns", ("", "after the last turn: private", "proportional", "peak private"), rows)


def bytes_table(found: Found) -> Table:
    rows = []
    for name in names_of(found):
        asked = [request for request in found.requests[name] if request["tools"]]
        total = sum(request["bytes"] for request in found.requests[name])
        same = min(kept_prefix(a, b) for a, b in itertools.pairwise(asked))
        marks = asked[0]["body"].count('"cache_control"')
        rows.append((name, str(asked[0]["tools"]), str(asked[0]["bytes"]), str(total), f"{same:.1%}", str(marks)))
    head = ("", "tools", "first request", "whole task", "head kept from turn to turn", "marks for the cache")
    return Table(f"Bytes of a task of {len(FEW_TURNS)} turns", head, rows)


def kept_prefix(before: Request, after: Request) -> float:
    """How much of a request stands, byte for byte, at the head of the next one; in the order in which models read it,
    and without the marks for the cache, which move on."""
    texts = as_read(before), as_read(after)
    same = next((n for n, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    return same / len(texts[0])


def as_read(request: Request) -> str:
    body = without_marks(json.loads(request["body"]))
    parts = [body.get(name) for name in ("tools", "system", "instructions", "systemInstruction")]
    turns = next(body[name] for name in ("messages", "input", "contents") if name in body)
    return json.dumps(parts) + "".join(json.dumps(turn) for turn in turns)


def without_marks(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_marks(inner) for name, inner in value.items() if name != "cache_control"}
    return [without_marks(inner) for inner in value] if isinstance(value, list) else value


# --- goals ----------------------------------------------------------------------------------------------------


def time_goals(found: Found) -> list[Goal]:
    if not rivals(found):
        return [Goal("a job of one turn over the fastest command line", "≤ 1/5", "none is installed", None)]
    fastest = min(rivals(found), key=lambda name: median(whole(found, name)))
    goals = []
    for name, (limit, words) in itertools.product((WORKTREE, IN_PLACE), ((TIME_GOAL, "≤ 1/5"), (TIME_HOPE, "≤ 1/10"))):
        value, low, high = ratio(whole(found, name), whole(found, fastest))
        text = f"{value:.3f} ({low:.3f}–{high:.3f})"
        goals.append(Goal(f"{name}, a job of one turn over {fastest}", words, text, value <= limit))
    return goals


def memory_goals(found: Found) -> list[Goal]:
    if not rivals(found):
        return [Goal("private memory over that of the leanest command line", "≤ 1/15", "none is installed", None)]
    leanest = min(rivals(found), key=lambda name: median(kept(found, name)))
    sizes = {"keeper and agent": kept(found, WORKTREE), "the agent alone": [size for size, _ in alone(found, WORKTREE)]}
    goals = []
    for what, ours in sizes.items():
        value, low, high = ratio(ours, kept(found, leanest))
        text = f"1/{1 / value:.1f} (1/{1 / high:.1f}–1/{1 / low:.1f})"
        goals.append(Goal(f"private memory of {what} over {leanest}", "≤ 1/15", text, value <= MEMORY_GOAL))
    return goals


def bytes_goals(found: Found) -> list[Goal]:
    asked = found.requests[WORKTREE]
    is_whole = all(kept_prefix(a, b) == 1 for a, b in itertools.pairwise(asked))
    marked = asked[0]["body"].count('"cache_control"')
    text = f"{'the same' if is_whole else 'changed'}, {marked} marks"
    goals = [Goal("prefix the same byte for byte, and marked", "the same, 2 marks", text, is_whole and marked == 2)]
    for what, size in (("first request", first_bytes), ("whole task", all_bytes)):
        sizes = {name: size(found.requests[name]) for name in rivals(found)}
        leanest = min(sizes, key=lambda name: sizes[name], default=None)
        for limit, words in ((BYTES_GOAL, "≤ 1/2"), (BYTES_HOPE, "≤ 1/4")):
            if leanest is None:
                goals.append(Goal(f"bytes of the {what}", words, "none is installed", None))
                continue
            value = size(asked) / sizes[leanest]
            goals.append(Goal(f"bytes of the {what} over {leanest}", words, f"1/{1 / value:.1f}", value <= limit))
    return goals


def first_bytes(requests: list[Request]) -> int:
    return next(int(request["bytes"]) for request in requests if request["tools"])


def all_bytes(requests: list[Request]) -> int:
    return sum(request["bytes"] for request in requests)


def raw(found: Found) -> dict[str, Any]:
    return {
        "whole": {name: whole(found, name) for name in found.took},
        "to_request": {name: [one.to_request for one in took] for name, took in found.took.items()},
        "moments": {name: [one.moments for one in found.took[name]] for name in (WORKTREE, IN_PLACE)},
        "private": {name: kept(found, name) for name in found.looks},
        "bytes": {name: [request["bytes"] for request in requests] for name, requests in found.requests.items()},
        "load": found.load,
    }
