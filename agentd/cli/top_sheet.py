"""``top`` as lines of text: pure."""

from collections.abc import Mapping, Sequence

from agentd.cli import render
from agentd.cli.meter import Use
from agentd.cli.paint import Style, of_jobs, paint
from agentd.cli.render import View

LEFT_OUT = ("PROCS", "LOG/S", "COST", "TIME", "MEMORY")
NONE = Use(None, 0, 0, None)
SORTS = ("cpu", "memory", "log", "cost", "id")
BUSY = 0.5


def sheet(
    jobs: Sequence[View],
    uses: Mapping[int, Use],
    now: float,
    sort: str = "cpu",
    width: int | None = None,
    is_colored: bool = False,
    is_online: bool = True,
) -> list[str]:
    """A line of sums, and a row for each job."""
    jobs = ordered(jobs, uses, sort)
    head = summary(jobs, uses, is_online)
    head = head if width is None else render.cut(head, width)
    style = None if not is_colored else styles(jobs, uses)
    lines = table(jobs, uses, now, width, style) if jobs else ["no job runs"]
    return [paint(head, "strong" if is_colored else ""), "", *lines]


def ordered(jobs: Sequence[View], uses: Mapping[int, Use], sort: str) -> list[View]:
    """The hungriest first; those that use the same by their ids."""

    def hunger(job: View) -> float:
        use = uses.get(job["id"], NONE)
        return {"cpu": use.cpu or 0.0, "memory": use.memory, "log": use.log or 0.0, "cost": cost(job) or 0.0}.get(
            sort, 0.0
        )

    return sorted(jobs, key=lambda job: (-hunger(job), job["id"]))


def cost(job: View) -> float | None:
    return job["progress"]["cost"] if job["progress"] else None


def summary(jobs: Sequence[View], uses: Mapping[int, Use], is_online: bool) -> str:
    asking = sum(job["state"] == "waiting" for job in jobs)
    parts = [render.count(len(jobs), "job")]
    if asking:
        parts.append(f"{asking} {'waits' if asking == 1 else 'wait'} for you")
    cpus = [use.cpu for use in uses.values() if use.cpu is not None]
    parts.append(f"cpu {percent(sum(cpus)) if cpus else '-'}")
    parts.append(f"memory {short_size(sum(use.memory for use in uses.values()))}")
    costs = [sum_ for job in jobs if (sum_ := cost(job)) is not None]
    if costs:
        parts.append(f"cost {render.money(sum(costs))}")
    if not is_online:
        parts.append("no daemon is running; this is what the files tell")
    return "  ".join(parts)


def table(
    jobs: Sequence[View], uses: Mapping[int, Use], now: float, width: int | None, style: Style | None
) -> list[str]:
    found = [uses.get(job["id"], NONE) for job in jobs]
    columns = {
        "ID": [str(job["id"]) for job in jobs],
        "NAME": [render.cut(job["name"], 20) for job in jobs],
        "STATE": [render.state_words(job) for job in jobs],
        "TIME": [render.running_time(job, now) for job in jobs],
        "CPU": ["-" if use.cpu is None else percent(use.cpu) for use in found],
        "MEMORY": [short_size(use.memory) if use.processes else "-" for use in found],
        "PROCS": [str(use.processes) if use.processes else "-" for use in found],
        "LOG/S": ["-" if use.log is None else short_size(round(use.log)) for use in found],
        "COST": [render.money(cost(job)) if render.has_spent(job) else "-" for job in jobs],
        "TASK": [render.task_words(job) for job in jobs],
    }
    if set(columns["COST"]) <= {"-"}:
        del columns["COST"]
    for name in ("CPU", "MEMORY", "PROCS", "LOG/S", "COST"):
        if name in columns:
            columns[name] = to_the_right(name, columns[name])
    heads = {name: to_the_right(name, cells, head=True)[0] for name, cells in columns.items()}
    render.fit(columns, width, LEFT_OUT)
    names = [heads[name] if name in RIGHT else name for name in columns]
    return render.table(names, list(zip(*columns.values(), strict=True)), width, style)


RIGHT = ("CPU", "MEMORY", "PROCS", "LOG/S", "COST")


def to_the_right(name: str, cells: Sequence[str], head: bool = False) -> list[str]:
    """Numbers stand under each other by their last digit."""
    size = max(len(cell) for cell in (name, *cells))
    return [name.rjust(size)] if head else [cell.rjust(size) for cell in cells]


def styles(jobs: Sequence[View], uses: Mapping[int, Use]) -> Style:
    of_state = of_jobs(jobs)

    def style(row: int, column: str) -> str:
        if row >= 0 and column.strip() == "CPU" and (uses.get(jobs[row]["id"], NONE).cpu or 0.0) >= BUSY:
            return "held"
        return of_state(row, column.strip())

    return style


def percent(share: float) -> str:
    """Of one processor."""
    return f"{share * 100:.0f}%"


def short_size(number: int) -> str:
    """``712``, ``1.4K``, ``312M``, ``2.1G``: bytes."""
    if number < 1024:
        return str(number)
    for unit in "KMGT":
        number_of = number / 1024
        if number_of < 1000 or unit == "T":
            return f"{number_of:.1f}{unit}" if number_of < 10 else f"{number_of:.0f}{unit}"
        number //= 1024
    raise AssertionError
